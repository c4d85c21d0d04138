// Eight floats with AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include "../types.h"

namespace lorikeet::avx2 {

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set(float value) { return {_mm256_set1_ps(value)}; }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const half_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
  static Vec load(const int16_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)))};
  }
  static Vec load(const bfloat16_t* p) {
    return {_mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16))};
  }
  template <typename T>
  static Vec load(const T* p, int count) {
    alignas(32) T padded[kWidth] = {};
    for (int i = 0; i < kWidth && i < count; ++i) padded[i] = p[i];
    return load(padded);
  }
  // Of pairs (k, k + 1) per column of a bfloat16 panel, the first or the second.
  template <int kSecond>
  static Vec load_of_pairs(const bfloat16_t* p) {
    const __m256i pairs = _mm256_loadu_si256((const __m256i*)p);
    return {_mm256_castsi256_ps(kSecond
                                    ? _mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000)))
                                    : _mm256_slli_epi32(pairs, 16))};
  }

  using Words = __m256i;
  static Words load_words(const uint32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  // Four bits of each word, as numbers 0 to 15.
  static Vec nibbles(Words words, int shift) {
    return {_mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(words, shift), _mm256_set1_epi32(15)))};
  }
  template <int kSecond>
  static Vec load_of_pairs(const int8_t* p) {
    const __m256i pairs = pairs_of_bytes(p);
    return {_mm256_cvtepi32_ps(
        _mm256_srai_epi32(kSecond ? pairs : _mm256_slli_epi32(pairs, 16), 16))};
  }

  // Pairs of 16-bit integers; as sums, single ones of 32 bits.
  using Pairs = __m256i;
  static Pairs sum_of_pairs(int32_t value) { return _mm256_set1_epi32(value); }
  static Pairs pair_everywhere(const int16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm256_set1_epi32(pair);
  }
  // Of each word the four bits from `shift` on, and those 16 further.
  static Pairs pairs_of_nibbles(Words words, int shift) {
    return _mm256_and_si256(_mm256_srli_epi32(words, shift), _mm256_set1_epi32(0x000f000f));
  }
  static Pairs pairs_of_bytes(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  }
  static Pairs add_products(Pairs sum, Pairs a, Pairs b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    asm("" : "+x"(sum));  // else GCC adds products in another order, which takes more registers
    return sum;
  }
  static Vec of_pairs(Pairs sums) { return {_mm256_cvtepi32_ps(sums)}; }
  // Rounded to integers, of eight the pairs (k, k + 4) side by side.
  void store_pairs(int16_t* p) const {
    const __m256i codes = _mm256_cvtps_epi32(v);
    const __m128i second = _mm_slli_epi32(_mm256_extracti128_si256(codes, 1), 16);
    _mm_storeu_si128((__m128i*)p,
                     _mm_blend_epi16(_mm256_castsi256_si128(codes), second, 0b10101010));
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(half_t* p) const {
    _mm_storeu_si128((__m128i*)p,
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store(bfloat16_t* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0),
                                 _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }
  template <typename T>
  void store(T* p, int count) const {
    alignas(32) T padded[kWidth];
    store(padded);
    for (int i = 0; i < kWidth && i < count; ++i) p[i] = padded[i];
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec max_of(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b when either is NaN
inline Vec min_of(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec round_nearest(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// a * 2^n for integral n in -252..256: in two steps, since one factor would overflow at 2^128
inline Vec scale_by_power(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 second = _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, first), second)};
}

// `kept` where `tested` >= bound or is NaN, zero elsewhere
inline Vec keep_from(Vec kept, Vec tested, Vec bound) {
  return {_mm256_and_ps(kept.v, _mm256_cmp_ps(tested.v, bound.v, _CMP_NLT_UQ))};
}

// The lanes in which `tested` is >= bound or NaN, a bit for each
inline uint32_t lanes_from(Vec tested, Vec bound) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(tested.v, bound.v, _CMP_NLT_UQ)));
}

inline float sum_lanes(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Joins the lanes of each of four vectors, in the tree of sum_lanes: `results`, four.
template <typename Join>
inline void join_lanes(const Vec (&a)[4], Join join, float* results) {
  const auto halves = [&](Vec x, Vec y) {
    return join({_mm256_permute2f128_ps(x.v, y.v, 0x20)}, {_mm256_permute2f128_ps(x.v, y.v, 0x31)});
  };
  const Vec left = halves(a[0], a[1]), right = halves(a[2], a[3]);
  const Vec two = join({_mm256_shuffle_ps(left.v, right.v, 0x44)},
                       {_mm256_shuffle_ps(left.v, right.v, 0xee)});
  alignas(32) float lanes[8];
  join(two, {_mm256_movehdup_ps(two.v)}).store(lanes);
  for (int i = 0; i < 4; ++i) results[i] = lanes[i % 2 * 4 + i / 2 * 2];
}

}  // namespace lorikeet::avx2
