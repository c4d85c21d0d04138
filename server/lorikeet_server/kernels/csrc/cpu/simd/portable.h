// Eight floats in plain C++: for machines without AVX2, and for tests. The compiler vectorises the
// loops.
#pragma once
#include <bit>
#include <cmath>
#include <cstring>

#include "../types.h"

namespace lorikeet::portable {

inline float to_float(float value) { return value; }
inline float to_float(bfloat16_t value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }
inline float to_float(int16_t value) { return value; }
inline float to_float(half_t value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  const float scaled = std::bit_cast<float>(magnitude << 13) *
                       0x1p112f;  // moves the exponent bias, denormals included
  const uint32_t bits =
      magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

inline void from_float(float value, float* out) { *out = value; }
inline void from_float(float value, bfloat16_t* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  out->bits =
      uint16_t(value != value ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void from_float(float value, half_t* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = (bits >> 16) & 0x8000,
                 magnitude = bits & 0x7fffffff;
  uint32_t result;
  if (magnitude > 0x7f800000) {
    result = 0x7e00;
  } else if (magnitude >= 0x477ff000) {
    result = 0x7c00;
  } else if (magnitude < 0x38800000) {  // denormal: let the float adder round
    result = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    result = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  out->bits = uint16_t(result | sign);
}

struct Vec {
  static constexpr int kWidth = 8;
  float lane[kWidth];

  static Vec zero() { return set(0.0f); }
  static Vec set(float value) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = value;
    return r;
  }
  template <typename T>
  static Vec load(const T* p) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = to_float(p[i]);
    return r;
  }
  template <typename T>
  static Vec load(const T* p, int count) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = i < count ? to_float(p[i]) : 0.0f;
    return r;
  }
  // Of pairs (k, k + 1) per column of a bfloat16 panel, the first or the second.
  template <int kSecond>
  static Vec load_of_pairs(const bfloat16_t* p) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = to_float(p[2 * i + kSecond]);
    return r;
  }
  using Words = const uint32_t*;
  static Words load_words(const uint32_t* p) { return p; }
  // Four bits of each word, as numbers 0 to 15.
  static Vec nibbles(Words words, int shift) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = float((words[i] >> shift) & 15);
    return r;
  }
  template <int kSecond>
  static Vec load_of_pairs(const int8_t* p) {
    Vec r;
    for (int i = 0; i < kWidth; ++i) r.lane[i] = float(p[2 * i + kSecond]);
    return r;
  }
  template <typename T>
  void store(T* p) const {
    for (int i = 0; i < kWidth; ++i) from_float(lane[i], p + i);
  }
  template <typename T>
  void store(T* p, int count) const {
    for (int i = 0; i < kWidth && i < count; ++i) from_float(lane[i], p + i);
  }
};

#define LORIKEET_LANEWISE(name, expression)     \
  inline Vec name(Vec a, Vec b) {               \
    Vec r;                                      \
    for (int i = 0; i < Vec::kWidth; ++i) {     \
      const float x = a.lane[i], y = b.lane[i]; \
      r.lane[i] = expression;                   \
    }                                           \
    return r;                                   \
  }
LORIKEET_LANEWISE(operator+, x + y)
LORIKEET_LANEWISE(operator-, x - y)
LORIKEET_LANEWISE(operator*, x* y)
LORIKEET_LANEWISE(operator/, x / y)
LORIKEET_LANEWISE(max_of, x > y ? x : y)  // y when either is NaN, as on x86
LORIKEET_LANEWISE(min_of, x < y ? x : y)
#undef LORIKEET_LANEWISE

inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

inline Vec round_nearest(Vec a) {
  for (float& x : a.lane) x = std::nearbyintf(x);
  return a;
}

// a * 2^n for integral n in -126..128
inline Vec scale_by_power(Vec a, Vec n) {
  for (int i = 0; i < Vec::kWidth; ++i) {
    const int whole = n.lane[i] == n.lane[i] ? int(n.lane[i]) : 0, half = whole / 2;
    a.lane[i] = a.lane[i] * std::bit_cast<float>(uint32_t(half + 127) << 23) *
                std::bit_cast<float>(uint32_t(whole - half + 127) << 23);
  }
  return a;
}

// `kept` where `tested` >= bound or is NaN, zero elsewhere
inline Vec keep_from(Vec kept, Vec tested, Vec bound) {
  for (int i = 0; i < Vec::kWidth; ++i)
    kept.lane[i] = tested.lane[i] < bound.lane[i] ? 0.0f : kept.lane[i];
  return kept;
}

// The lanes in which `tested` is >= bound or NaN, a bit for each
inline uint32_t lanes_from(Vec tested, Vec bound) {
  uint32_t lanes = 0;
  for (int i = 0; i < Vec::kWidth; ++i) lanes |= uint32_t(!(tested.lane[i] < bound.lane[i])) << i;
  return lanes;
}

inline float sum_lanes(Vec a) {
  const float* x = a.lane;
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
inline float max_lanes(Vec a) {
  float r = a.lane[0];
  for (float x : a.lane) r = x > r ? x : r;
  return r;
}

}  // namespace lorikeet::portable
