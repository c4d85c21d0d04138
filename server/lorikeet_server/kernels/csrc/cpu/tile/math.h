// exp and the walk over a row, shared by the tiles.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kWidth = Vec::kWidth;

// Error below 2 ulp. Below -87.3 the result is exactly 0, exp(0) is exactly 1, NaN stays NaN.
inline Vec exp_of(Vec x) {
  const Vec lowest = Vec::set(-87.3f);
  const Vec bounded = max_of(lowest, min_of(Vec::set(88.7f), x));
  const Vec n = round_nearest(bounded * Vec::set(1.44269504f));
  const Vec r = fma(n, Vec::set(2.12194440e-4f), fma(n, Vec::set(-0.693359375f), bounded));
  Vec p = Vec::set(1.9875691500e-4f);
  p = fma(p, r, Vec::set(1.3981999507e-3f));
  p = fma(p, r, Vec::set(8.3334519073e-3f));
  p = fma(p, r, Vec::set(4.1665795894e-2f));
  p = fma(p, r, Vec::set(1.6666665459e-1f));
  p = fma(p, r, Vec::set(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec::set(1.0f);
  return keep_from(scale_by_power(p, n), x, lowest);
}

// Absolute error below 1e-6.
inline Vec tanh_of(Vec x) {
  const Vec one = Vec::set(1.0f), e = exp_of(x + x);
  return (e - one) / (e + one);
}

inline float exp_of(float x) {
  float lanes[kWidth];
  exp_of(Vec::set(x)).store(lanes);
  return lanes[0];
}

inline Vec size_of(Vec value) { return max_of(value, Vec::zero() - value); }

// Of 16-bit integers that share a scale.
constexpr float kLargestCode = 32767.0f;
// Where no value is larger all count as zeros: the reciprocal of the scale would not be finite.
constexpr float kSmallestScaled = 1e-30f;

// Calls visit(offset, count) for whole vectors with the constant kWidth, then once for the rest.
template <typename Visit>
LORIKEET_INLINED inline void for_vectors(int n, Visit visit) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) visit(i, kWidth);
  if (i < n) visit(i, n - i);
}

template <typename T>
inline Vec load_up_to(const T* p, int count) {
  return count == kWidth ? Vec::load(p) : Vec::load(p, count);
}
template <typename T>
inline void store_up_to(Vec v, T* p, int count) {
  count == kWidth ? v.store(p) : v.store(p, count);
}

}  // namespace lorikeet::LORIKEET_ISA
