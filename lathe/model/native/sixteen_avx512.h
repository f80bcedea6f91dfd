// Sixteen rows where a vector has 512 bits: AVX512-VNNI.
#pragma once
#include <immintrin.h>

#include "lanes.h"

namespace lathe::sixteen {

constexpr int LEVEL = 0, ROWS = 6;
using Ints = __m512i;
using Floats = __m512;
using Bytes = __m512i;

LATHE_INLINE Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
LATHE_INLINE Floats floats(float x) { return _mm512_set1_ps(x); }
LATHE_INLINE Floats floats(Ints x) { return _mm512_cvtepi32_ps(x); }
LATHE_INLINE Floats singles(const uint8_t* p) { return _mm512_loadu_ps(p); }
LATHE_INLINE Floats halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
LATHE_INLINE Floats levels(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
LATHE_INLINE Floats times(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
LATHE_INLINE Floats plus(Floats sum, Floats x, Floats y) { return _mm512_fmadd_ps(x, y, sum); }
LATHE_INLINE void store(Floats x, float* p) { _mm512_storeu_ps(p, x); }

LATHE_INLINE Bytes eights(const uint8_t* p) { return _mm512_loadu_si512(p); }
LATHE_INLINE Bytes lower(const uint8_t* p) { return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15)); }
LATHE_INLINE Bytes upper(const uint8_t* p) {
  return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15));
}
LATHE_INLINE Bytes valued(Bytes x) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)NF4)), x);
}
LATHE_INLINE Ints dot(Ints sum, Bytes w, int32_t four) { return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four)); }
LATHE_INLINE Ints multiples(const uint8_t* p, int32_t by) {  // of two numbers of 16 bits, of which the upper is 0
  return _mm512_madd_epi16(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), _mm512_set1_epi32(by));
}

inline __m512 numbers(const float* x, i64 n) {
  return n >= 16 ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(__mmask16(n > 0 ? (1u << n) - 1 : 0), x);
}
inline __m512 numbers(const bf16* x, i64 n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16(n >= 16 ? 0xffffu : n > 0 ? (1u << n) - 1 : 0), x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// 32 numbers, of which the first n are there, as codes, the sum of these and of the first 16; returns what they are
// multiplied by.
template <class E> inline float coded(const E* x, i64 n, int8_t* codes, int32_t& sum, int32_t& half) {
  const __m512 a = numbers(x, n), b = numbers(x + 16, n - 16);
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0);
  const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));  // the nearest whole numbers
  const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128((__m128i*)codes, _mm512_cvtepi32_epi8(first));
  _mm_storeu_si128((__m128i*)(codes + 16), _mm512_cvtepi32_epi8(second));
  half = _mm512_reduce_add_epi32(first);
  sum = half + _mm512_reduce_add_epi32(second);
  return largest / 127.0f;
}

}  // namespace lathe::sixteen
