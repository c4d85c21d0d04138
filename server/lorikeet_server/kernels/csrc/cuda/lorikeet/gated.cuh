// act(gate) * up, of a base product and what an adapter adds to it. For a place where streams meet, which programmatic launches do
// not cross.
//
// A thread has 8 columns of gate, of up, and of both in the delta: four loads that do not wait for each other.
#pragma once

#include <cmath>

#include "device.cuh"
#include "eight.cuh"

namespace lorikeet {

constexpr int kGatedThreads = 128;

struct Silu {
  static __device__ __forceinline__ float of(float x) { return x / (1.0f + expf(-x)); }
};

// By its approximation with tanh.
struct Gelu {
  static __device__ __forceinline__ float of(float x) {
    constexpr float kRoot = 0.7978845608028654f;  // of 2 / pi
    return 0.5f * x * (1.0f + tanhf(kRoot * (x + 0.044715f * x * x * x)));
  }
};

// Grid (rows, blocks that share a row); kGatedThreads. y and delta: [rows][2 * width], gate first; out: [rows][width].
template <class T, class Act>
__global__ void __launch_bounds__(kGatedThreads) gated(const uint16_t* y, const uint16_t* delta, int width, uint16_t* out) {
  const int64_t row = blockIdx.x, column = 8 * (static_cast<int64_t>(blockIdx.y) * kGatedThreads + threadIdx.x);
  if (column >= width) return;
  const int64_t at = 2 * row * width + column;
  const Quad read[4] = {load_written(y + at), load_written(y + at + width), load_written(delta + at), load_written(delta + at + width)};
  Eight<T> gate = Eight<T>::of(read[0]), up = Eight<T>::of(read[1]);
  gate.add(read[2]);
  up.add(read[3]);
#pragma unroll
  for (int i = 0; i < 8; ++i) gate.value[i] = Act::of(gate.value[i]) * up.value[i];
  *reinterpret_cast<Quad*>(out + row * width + column) = gate.packed();
}

}  // namespace lorikeet
