// Sixteen floats with AVX-512 F, BW, DQ, VL and VNNI.
#pragma once
#include <immintrin.h>

#include "../types.h"

namespace lorikeet::avx512 {

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;

  static __mmask16 first(int count) {
    return count >= kWidth ? 0xffff : __mmask16((1u << count) - 1);
  }

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set(float value) { return {_mm512_set1_ps(value)}; }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const half_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
  }
  static Vec load(const int16_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)))};
  }
  static Vec load(const bfloat16_t* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
  static Vec load(const float* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  static Vec load(const half_t* p, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p))};
  }
  static Vec load(const bfloat16_t* p, int count) {
    return widen(_mm256_maskz_loadu_epi16(first(count), p));
  }
  // Of pairs (k, k + 1) per column of a bfloat16 panel, the first or the second.
  template <int kSecond>
  static Vec load_of_pairs(const bfloat16_t* p) {
    const __m512i pairs = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(kSecond
                                    ? _mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000)))
                                    : _mm512_slli_epi32(pairs, 16))};
  }

  using Words = __m512i;
  static Words load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
  // Four bits of each word, as numbers 0 to 15: the permutation reads only the low four bits.
  static Vec nibbles(Words words, int shift) {
    const __m512 numbers = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(words, shift), numbers)};
  }
  template <int kSecond>
  static Vec load_of_pairs(const int8_t* p) {
    const __m512i pairs = pairs_of_bytes(p);
    return {_mm512_cvtepi32_ps(
        _mm512_srai_epi32(kSecond ? pairs : _mm512_slli_epi32(pairs, 16), 16))};
  }

  // Pairs of 16-bit integers; as sums, single ones of 32 bits.
  using Pairs = __m512i;
  static Pairs sum_of_pairs(int32_t value) { return _mm512_set1_epi32(value); }
  static Pairs pair_everywhere(const int16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  // Of each word the four bits from `shift` on, and those 16 further.
  static Pairs pairs_of_nibbles(Words words, int shift) {
    return _mm512_and_si512(_mm512_srli_epi32(words, shift), _mm512_set1_epi32(0x000f000f));
  }
  static Pairs pairs_of_bytes(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
  }
  static Pairs add_products(Pairs sum, Pairs a, Pairs b) {
    sum = _mm512_dpwssd_epi32(sum, a, b);
#ifdef __AVX512VNNI__  // where that is emulated, a sum is no register
    asm("" : "+v"(sum));  // else GCC copies sums, which takes more registers
#endif
    return sum;
  }
  static Vec of_pairs(Pairs sums) { return {_mm512_cvtepi32_ps(sums)}; }
  // Rounded to integers, of every eight the pairs (k, k + 4) side by side.
  void store_pairs(int16_t* p) const {
    store_eight(_mm512_castps512_ps256(v), p);
    store_eight(_mm512_extractf32x8_ps(v, 1), p + 8);
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(half_t* p) const { _mm256_storeu_si256((__m256i*)p, narrow_half()); }
  void store(bfloat16_t* p) const { _mm256_storeu_si256((__m256i*)p, narrow_bfloat16()); }
  void store(float* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }
  void store(half_t* p, int count) const {
    _mm256_mask_storeu_epi16(p, first(count), narrow_half());
  }
  void store(bfloat16_t* p, int count) const {
    _mm256_mask_storeu_epi16(p, first(count), narrow_bfloat16());
  }

 private:
  static void store_eight(__m256 eight, int16_t* p) {
    const __m256i codes = _mm256_cvtps_epi32(eight);
    const __m128i second = _mm_slli_epi32(_mm256_extracti128_si256(codes, 1), 16);
    _mm_storeu_si128((__m128i*)p,
                     _mm_blend_epi16(_mm256_castsi256_si128(codes), second, 0b10101010));
  }
  static Vec widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  __m256i narrow_half() const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  __m256i narrow_bfloat16() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i rounded =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                              _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(rounded);
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec max_of(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b when either is NaN
inline Vec min_of(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec round_nearest(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

// `kept` where `tested` >= bound or is NaN, zero elsewhere
inline Vec keep_from(Vec kept, Vec tested, Vec bound) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(tested.v, bound.v, _CMP_NLT_UQ), kept.v)};
}

// The lanes in which `tested` is >= bound or NaN, a bit for each
inline uint32_t lanes_from(Vec tested, Vec bound) {
  return _mm512_cmp_ps_mask(tested.v, bound.v, _CMP_NLT_UQ);
}

// The same tree as the compiler's reduce, written out so that it never changes.
inline float sum_lanes(Vec a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float max_lanes(Vec a) { return _mm512_reduce_max_ps(a.v); }

// Joins the lanes of each of four vectors, in the tree of sum_lanes: `results`, four.
template <typename Join>
inline void join_lanes(const Vec (&a)[4], Join join, float* results) {
  const auto halves = [&](Vec x, Vec y) {
    return join({_mm512_shuffle_f32x4(x.v, y.v, 0x44)}, {_mm512_shuffle_f32x4(x.v, y.v, 0xee)});
  };
  const Vec left = halves(a[0], a[1]), right = halves(a[2], a[3]);
  const Vec four = join({_mm512_shuffle_f32x4(left.v, right.v, 0x88)},
                        {_mm512_shuffle_f32x4(left.v, right.v, 0xdd)});
  const Vec two = join(four, {_mm512_permute_ps(four.v, 0x4e)});
  alignas(64) float lanes[16];
  join(two, {_mm512_movehdup_ps(two.v)}).store(lanes);
  for (int i = 0; i < 4; ++i) results[i] = lanes[4 * i];
}

}  // namespace lorikeet::avx512
