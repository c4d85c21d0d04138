// What simd/avx512.h takes from <immintrin.h>, each as a pair of AVX2 registers. Included ahead of it: in its namespace
// these hide the compiler's own, so that one which is missing does not compile. They give the bits of the instructions
// (Intel Intrinsics Guide) for the arguments that occur, and touch no memory behind a masked lane.
#pragma once
#include <immintrin.h>

#include <cmath>

// Macros or functions, as the compiler likes.
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_permute_ps
#undef _mm512_roundscale_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_slli_epi32
#undef _mm512_srai_epi32
#undef _mm512_srli_epi32

namespace lorikeet::avx512 {

struct __m512 {
  __m256 low, high;
};
struct __m512i {
  __m256i low, high;
};

#define PAIR(type, name, half)    \
  template <typename... Argument> \
  type name(Argument... a) { return {half(a.low...), half(a.high...)}; }
PAIR(__m512, _mm512_add_ps, _mm256_add_ps)
PAIR(__m512, _mm512_sub_ps, _mm256_sub_ps)
PAIR(__m512, _mm512_mul_ps, _mm256_mul_ps)
PAIR(__m512, _mm512_div_ps, _mm256_div_ps)
PAIR(__m512, _mm512_max_ps, _mm256_max_ps)
PAIR(__m512, _mm512_min_ps, _mm256_min_ps)
PAIR(__m512, _mm512_fmadd_ps, _mm256_fmadd_ps)
PAIR(__m512, _mm512_movehdup_ps, _mm256_movehdup_ps)
PAIR(__m512, _mm512_cvtepi32_ps, _mm256_cvtepi32_ps)
PAIR(__m512, _mm512_castsi512_ps, _mm256_castsi256_ps)
PAIR(__m512i, _mm512_castps_si512, _mm256_castps_si256)
PAIR(__m512i, _mm512_and_si512, _mm256_and_si256)
PAIR(__m512i, _mm512_add_epi32, _mm256_add_epi32)
#undef PAIR
inline __m512i _mm512_slli_epi32(__m512i a, int by) {
  return {_mm256_slli_epi32(a.low, by), _mm256_slli_epi32(a.high, by)};
}
inline __m512i _mm512_srai_epi32(__m512i a, int by) {
  return {_mm256_srai_epi32(a.low, by), _mm256_srai_epi32(a.high, by)};
}
inline __m512i _mm512_srli_epi32(__m512i a, int by) {
  return {_mm256_srli_epi32(a.low, by), _mm256_srli_epi32(a.high, by)};
}
inline __m512 _mm512_roundscale_ps(__m512 a, int) {  // to the nearest
  return {_mm256_round_ps(a.low, _MM_FROUND_TO_NEAREST_INT), _mm256_round_ps(a.high, _MM_FROUND_TO_NEAREST_INT)};
}

inline __m512 _mm512_set1_ps(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline __m512 _mm512_setzero_ps() { return _mm512_set1_ps(0.0f); }
inline __m512i _mm512_set1_epi32(int a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
template <typename... Lower>
__m512 _mm512_set_ps(float p, float o, float n, float m, float l, float k, float j, float i, Lower... lower) {
  return {_mm256_set_ps(lower...), _mm256_set_ps(p, o, n, m, l, k, j, i)};
}
inline __m256 _mm512_castps512_ps256(__m512 a) { return a.low; }
inline __m256 _mm512_extractf32x8_ps(__m512 a, int half) { return half ? a.high : a.low; }
inline __m512 _mm512_loadu_ps(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m512i _mm512_loadu_si512(const void* p) {
  const auto* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void _mm512_storeu_ps(float* p, __m512 a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }

inline __m512i lanes_of(__mmask16 mask) {  // all ones where its bit is set
  const auto half = [](unsigned bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), each), each);
  };
  return {half(mask), half(mask >> 8u)};
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
  return _mm512_castsi512_ps(_mm512_and_si512(lanes_of(mask), _mm512_castps_si512(a)));
}
inline __m512i _mm512_mask_mov_epi32(__m512i a, __mmask16 mask, __m512i b) {
  const __m512i taken = lanes_of(mask);
  return {_mm256_blendv_epi8(a.low, b.low, taken.low), _mm256_blendv_epi8(a.high, b.high, taken.high)};
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const float* p) {
  const __m512i taken = lanes_of(mask);
  return {_mm256_maskload_ps(p, taken.low), _mm256_maskload_ps(p + 8, taken.high)};
}
inline void _mm512_mask_storeu_ps(float* p, __mmask16 mask, __m512 a) {
  const __m512i taken = lanes_of(mask);
  _mm256_maskstore_ps(p, taken.low, a.low), _mm256_maskstore_ps(p + 8, taken.high, a.high);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  short lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = mask >> i & 1 ? static_cast<const short*>(p)[i] : short{};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
}
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i a) {
  short lanes[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), a);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) static_cast<short*>(p)[i] = lanes[i];
  }
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int kind) {
  const auto half = [kind](__m256 x, __m256 y) {
    const __m256 unordered = _mm256_cmp_ps(x, y, _CMP_UNORD_Q), not_less = _mm256_cmp_ps(x, y, _CMP_NLT_UQ);
    return _mm256_movemask_ps(kind == _CMP_UNORD_Q ? unordered : not_less);
  };
  return __mmask16(half(a.high, b.high) << 8 | half(a.low, b.low));
}

inline __m512 _mm512_permutexvar_ps(__m512i index, __m512 a) {
  const auto half = [a](__m256i i) {  // bit 3 says in which half to look
    const __m256 low = _mm256_permutevar8x32_ps(a.low, i), high = _mm256_permutevar8x32_ps(a.high, i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  };
  return {half(index.low), half(index.high)};
}
inline __m512 _mm512_permute_ps(__m512 a, int) {  // halves of each four change places
  return {_mm256_permute_ps(a.low, 0x4e), _mm256_permute_ps(a.high, 0x4e)};
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int places) {
  float fours[2][4][4];
  _mm512_storeu_ps(fours[0][0], a), _mm512_storeu_ps(fours[1][0], b);
  const auto half = [&](int from, int two) {
    const auto four = [&](int place) { return _mm_loadu_ps(fours[from][place & 3]); };
    return _mm256_set_m128(four(two >> 2), four(two));
  };
  return {half(0, places), half(1, places >> 4)};
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 n) {
  float value[16], power[16];
  _mm512_storeu_ps(value, a), _mm512_storeu_ps(power, n);
  for (int i = 0; i < 16; ++i) value[i] = std::isnan(power[i]) ? power[i] : std::scalbn(value[i], int(power[i]));
  return _mm512_loadu_ps(value);
}
inline float _mm512_reduce_max_ps(__m512 a) {
  const __m256 eight = _mm256_max_ps(a.high, a.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline __m128i low_of(__m256i a) { return _mm256_castsi256_si128(a); }
inline __m128i high_of(__m256i a) { return _mm256_extracti128_si256(a, 1); }
inline __m512i _mm512_cvtepi16_epi32(__m256i a) {
  return {_mm256_cvtepi16_epi32(low_of(a)), _mm256_cvtepi16_epi32(high_of(a))};
}
inline __m512 _mm512_cvtph_ps(__m256i a) { return {_mm256_cvtph_ps(low_of(a)), _mm256_cvtph_ps(high_of(a))}; }
inline __m256i _mm512_cvtps_ph(__m512 a, int) {
  const auto half = [](__m256 each) { return _mm256_cvtps_ph(each, _MM_FROUND_TO_NEAREST_INT); };
  return _mm256_set_m128i(half(a.high), half(a.low));
}
inline __m512i _mm512_cvtepi8_epi16(__m256i a) { return {_mm256_cvtepi8_epi16(low_of(a)), _mm256_cvtepi8_epi16(high_of(a))}; }
inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
  const __m512i products = {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)};
  return _mm512_add_epi32(sum, products);
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return {_mm256_cvtepu16_epi32(low_of(a)), _mm256_cvtepu16_epi32(high_of(a))};
}
inline __m256i _mm512_cvtepi32_epi16(__m512i a) {
  const __m512i low = _mm512_and_si512(a, _mm512_set1_epi32(0xffff));
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low.low, low.high), 0xd8);
}

}  // namespace lorikeet::avx512
