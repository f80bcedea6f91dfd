// Sixteen rows in two vectors of 256 bits: AVX2.
//
// Where there are instructions for it, codes are multiplied as they are; else a code's size by x with its sign, in pairs
// that 16 bits hold: 128 * 127 twice.
#pragma once
#include <immintrin.h>

#include "lanes.h"

namespace lathe::sixteen {

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define LATHE_DOTS 1
#endif
#ifdef LATHE_DOTS
constexpr int LEVEL = 0;
#else
constexpr int LEVEL = 128;
#endif
constexpr int ROWS = 2;
struct Ints {
  __m256i v[2];
};
struct Floats {
  __m256 v[2];
};
using Bytes = Ints;

LATHE_INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
LATHE_INLINE Ints ints(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
LATHE_INLINE Floats floats(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
LATHE_INLINE Floats floats(Ints x) { return {{_mm256_cvtepi32_ps(x.v[0]), _mm256_cvtepi32_ps(x.v[1])}}; }
LATHE_INLINE Floats singles(const uint8_t* p) {
  return {{_mm256_loadu_ps((const float*)p), _mm256_loadu_ps((const float*)p + 8)}};
}
LATHE_INLINE Floats halves(const uint8_t* p) {
  const __m128i* at = (const __m128i*)p;
  return {{_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))}};
}
LATHE_INLINE Floats levels(const uint8_t* p) {
  const auto half = [](const uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
  };
  return {{half(p), half(p + 8)}};
}
LATHE_INLINE Floats times(Floats x, Floats y) {
  return {{_mm256_mul_ps(x.v[0], y.v[0]), _mm256_mul_ps(x.v[1], y.v[1])}};
}
LATHE_INLINE Floats plus(Floats sum, Floats x, Floats y) {
  return {{_mm256_fmadd_ps(x.v[0], y.v[0], sum.v[0]), _mm256_fmadd_ps(x.v[1], y.v[1], sum.v[1])}};
}
LATHE_INLINE void store(Floats x, float* p) {
  _mm256_storeu_ps(p, x.v[0]);
  _mm256_storeu_ps(p + 8, x.v[1]);
}

LATHE_INLINE __m256i leveled(__m256i x) { return LEVEL ? _mm256_xor_si256(x, _mm256_set1_epi8(-128)) : x; }
LATHE_INLINE __m256i low(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
LATHE_INLINE Bytes eights(const uint8_t* p) { return {{leveled(load(p)), leveled(load(p + 32))}}; }
LATHE_INLINE Bytes lower(const uint8_t* p) { return {{low(load(p)), low(load(p + 32))}}; }
LATHE_INLINE Bytes upper(const uint8_t* p) {
  return {{low(_mm256_srli_epi16(load(p), 4)), low(_mm256_srli_epi16(load(p + 32), 4))}};
}
LATHE_INLINE Bytes valued(Bytes x) {
  const __m256i table = leveled(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)NF4)));
  return {{_mm256_shuffle_epi8(table, x.v[0]), _mm256_shuffle_epi8(table, x.v[1])}};
}
#ifdef LATHE_DOTS
LATHE_INLINE __m256i summed(__m256i sum, __m256i w, __m256i x) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
  return _mm256_dpbusd_epi32(sum, w, x);
#endif
}
LATHE_INLINE Ints dot(Ints sum, Bytes w, int32_t four) {
  const __m256i x = _mm256_set1_epi32(four);
  return {{summed(sum.v[0], w.v[0], x), summed(sum.v[1], w.v[1], x)}};
}
#else
#define LATHE_PAIRS 1
LATHE_INLINE __m256i summed(__m256i sum, __m256i pairs) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
LATHE_INLINE Ints dot(Ints sum, Bytes w, int32_t four) {
  const __m256i x = _mm256_set1_epi32(four);
  for (int i = 0; i < 2; i++)
    sum.v[i] = summed(sum.v[i], _mm256_maddubs_epi16(_mm256_abs_epi8(w.v[i]), _mm256_sign_epi8(x, w.v[i])));
  return sum;
}
// Codes of 4 bits, of which 16 bits hold the products of four.
LATHE_INLINE Ints dots(Ints sum, Bytes low, Bytes high, int32_t four, int32_t next) {
  const __m256i x = _mm256_set1_epi32(four), y = _mm256_set1_epi32(next);
  for (int i = 0; i < 2; i++)
    sum.v[i] = summed(sum.v[i], _mm256_add_epi16(_mm256_maddubs_epi16(low.v[i], x), _mm256_maddubs_epi16(high.v[i], y)));
  return sum;
}
#endif
LATHE_INLINE Ints multiples(const uint8_t* p, int32_t by) {  // of two numbers of 16 bits, of which the upper is 0
  const auto half = [by](const uint8_t* from) {
    return _mm256_madd_epi16(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)), _mm256_set1_epi32(by));
  };
  return {{half(p), half(p + 8)}};
}

}  // namespace lathe::sixteen
