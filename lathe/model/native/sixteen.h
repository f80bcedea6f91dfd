// Sixteen rows side by side, of which a processor takes a number each at once, and 4 neighbouring codes each in 64 bytes:
// the way that is chosen when this is compiled. All compute the same, but that numbers in the middle between two codes may
// become either, and that sums are rounded in another order.
//
// LEVEL: what a code of 8 bits has lost when it is multiplied, so that it is what the processor multiplies best. ROWS: how
// many rows of x a tile has before registers run out.
#pragma once
#include "lanes.h"

namespace lathe {
// The values of nf4 in 127ths, 128 more (Dettmers et al., arXiv:2305.14314).
constexpr uint8_t NF4[16] = {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255};
}  // namespace lathe

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "sixteen_avx512.h"
#else

namespace lathe::sixteen {
// 32 numbers, of which the first n are there, as codes, the sum of these and of the first 16; returns what they are
// multiplied by.
template <class E> inline float coded(const E* x, i64 n, int8_t* codes, int32_t& sum, int32_t& first) {
  float v[32] = {}, largest = 0;
  for (i64 i = 0; i < 32 && i < n; i++) v[i] = wide(x[i]);
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < 32; i++) largest = largest > std::fabs(v[i]) ? largest : std::fabs(v[i]);
  const float inverse = largest > 0 ? 127.0f / largest : 0;
  int32_t total[2] = {};
  for (int half = 0; half < 2; half++) {
    int32_t some = 0;
#pragma omp simd reduction(+ : some)
    for (int i = 16 * half; i < 16 * half + 16; i++) {
      codes[i] = int8_t(nearest(v[i] * inverse));
      some += codes[i];
    }
    total[half] = some;
  }
  sum = total[0] + total[1], first = total[0];
  return largest / 127.0f;
}
}  // namespace lathe::sixteen

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "sixteen_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "sixteen_neon.h"
#else
#include "sixteen_any.h"
#endif
#endif
