// Eight 16-bit values, which are moved at once, in fp32.
#pragma once

#include "device.cuh"

namespace lorikeet {

template <class T>
struct Eight {
  float value[8];

  static __device__ __forceinline__ Eight of(const Quad& packed) {
    Eight made;
#pragma unroll
    for (int i = 0; i < 8; ++i) made.value[i] = T::to_float(static_cast<uint16_t>(packed.word[i / 2] >> (16 * (i % 2))));
    return made;
  }

  __device__ __forceinline__ void add(const Quad& packed) {
    const Eight other = of(packed);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] += other.value[i];
  }

  // Each rounded once.
  __device__ __forceinline__ Quad packed() const {
    Quad made;
#pragma unroll
    for (int i = 0; i < 4; ++i) made.word[i] = T::pack(value[2 * i], value[2 * i + 1]);
    return made;
  }
};

}  // namespace lorikeet
