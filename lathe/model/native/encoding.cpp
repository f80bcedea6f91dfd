// Rows of numbers become codes as transforms/grids.py says it: of 8 bits, with a scale for a row or for each 32; of 4
// bits, with a scale for each 32, that of some by which the largest number of a group becomes an end, each fitted to its
// whole numbers, which errs least.
#include "lanes.h"

namespace lathe {

constexpr i64 GROUP = 32, LANES = 16;

// The float of 16 bits that is nearest, of two as near the even one.
static inline uint16_t to_half(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), size = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (size >= 0x38800000) return uint16_t(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
  const float steps = __builtin_bit_cast(float, size) * 16777216.0f + 12582912.0f;  // of 2^-24: a small one
  return uint16_t(sign | (__builtin_bit_cast(uint32_t, steps) & 0x7ff));
}

// The whole number from -8 to 7 that is nearest to a quotient.
LATHE_INLINE float whole(float x, float scale) {
  const float q = x / scale;
  const float near = q < -8.0f ? -8.0f : q > 7.0f ? 7.0f : q;
  return (near + 12582912.0f) - 12582912.0f;
}

// For each of as many groups as there are lanes, the scale that errs least. x: the i-th numbers of all groups together.
static void fit(const float (*x)[LANES], const float* ends, i64 count, float* found) {
  float low[LANES], high[LANES], best[LANES], codes[GROUP][LANES];
  for (i64 l = 0; l < LANES; l++) low[l] = high[l] = x[0][l], best[l] = INFINITY, found[l] = 0;
  for (i64 i = 1; i < GROUP; i++)
    for (i64 l = 0; l < LANES; l++) {
      low[l] = x[i][l] < low[l] ? x[i][l] : low[l];
      high[l] = x[i][l] > high[l] ? x[i][l] : high[l];
    }
  for (i64 n = 0; n < count; n++) {
    float scale[LANES], along[LANES] = {}, length[LANES] = {}, error[LANES] = {};
    for (i64 l = 0; l < LANES; l++) {
      scale[l] = (-low[l] > high[l] ? low[l] : high[l]) / ends[n];
      scale[l] = scale[l] == 0 ? 1.0f : scale[l];
    }
    for (i64 i = 0; i < GROUP; i++)
      for (i64 l = 0; l < LANES; l++) {
        const float code = codes[i][l] = whole(x[i][l], scale[l]);
        along[l] += x[i][l] * code;
        length[l] += code * code;
      }
    for (i64 l = 0; l < LANES; l++) scale[l] = along[l] / (length[l] == 0 ? 1.0f : length[l]);
    for (i64 i = 0; i < GROUP; i++)
      for (i64 l = 0; l < LANES; l++) {
        const float apart = x[i][l] - scale[l] * codes[i][l];
        error[l] += apart * apart;
      }
    for (i64 l = 0; l < LANES; l++) {
      found[l] = error[l] < best[l] ? scale[l] : found[l];
      best[l] = error[l] < best[l] ? error[l] : best[l];
    }
  }
}

// Codes and scales of `some` groups of a row, LANES at most, of which the last may lack numbers: there are `left`.
template <class E>
static void encode(const E* row, i64 some, i64 left, const float* ends, i64 count, uint8_t* codes, uint16_t* scales) {
  float x[GROUP][LANES] = {}, scale[LANES];
  for (i64 l = 0; l < some; l++) {
    const i64 there = left - l * GROUP < GROUP ? left - l * GROUP : GROUP;
    for (i64 i = 0; i < there; i++) x[i][l] = wide(row[l * GROUP + i]);
  }
  fit(x, ends, count, scale);
  for (i64 l = 0; l < some; l++) {
    scales[l] = to_half(scale[l]);
    scale[l] = from_half(scales[l]);
    scale[l] = scale[l] == 0 ? 1.0f : scale[l];
  }
  for (i64 i = 0; i < GROUP; i++)
    for (i64 l = 0; l < LANES; l++) x[i][l] = whole(x[i][l], scale[l]) + 8.0f;
  for (i64 l = 0; l < some; l++)
    for (i64 i = 0; i < GROUP / 2; i++) codes[l * GROUP / 2 + i] = uint8_t(int(x[2 * i][l]) << 4 | int(x[2 * i + 1][l]));
}

template <class E>
static void encode(const E* x, const float* ends, uint8_t* codes, uint16_t* scales, i64 N, i64 K, i64 count,
                   i64 threads) {
  const i64 groups = (K + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
  {
    const Share rows(N);
    for (i64 n = rows.first; n < rows.last; n++)
      for (i64 g = 0; g < groups; g += LANES) {
        const i64 some = groups - g < LANES ? groups - g : LANES, at = n * groups + g;
        encode(x + n * K + g * GROUP, some, K - g * GROUP, ends, count, codes + at * GROUP / 2, scales + at);
      }
  }
}

// The largest size of some numbers. As whole numbers, which compare as sizes do, so that a loop of it becomes vectors.
template <class E>
LATHE_INLINE float largest(const E* x, i64 count) {
  int32_t most = 0;
  for (i64 i = 0; i < count; i++) {
    const int32_t size = __builtin_bit_cast(int32_t, wide(x[i])) & 0x7fffffff;
    most = size > most ? size : most;
  }
  return __builtin_bit_cast(float, most);
}

template <class E>
LATHE_INLINE void round8(const E* x, i64 count, float scale, int8_t* codes) {
  scale = scale == 0 ? 1.0f : scale;
  for (i64 i = 0; i < count; i++) {
    const int32_t code = nearest(wide(x[i]) / scale);
    codes[i] = int8_t(code < -127 ? -127 : code > 127 ? 127 : code);
  }
}

template <class E>
static void eights(const E* x, int8_t* codes, void* scales, i64 N, i64 K, bool grouped, i64 threads) {
  const i64 groups = (K + GROUP - 1) / GROUP;
#pragma omp parallel num_threads(threads)
  {
    const Share rows(N);
    for (i64 n = rows.first; n < rows.last; n++) {
      const E* const row = x + n * K;
      if (!grouped) {
        const float scale = ((float*)scales)[n] = largest(row, K) / 127.0f;
        round8(row, K, scale, codes + n * K);
        continue;
      }
      for (i64 g = 0; g < groups; g++) {
        const i64 there = K - g * GROUP < GROUP ? K - g * GROUP : GROUP;
        uint16_t& scale = ((uint16_t*)scales)[n * groups + g];
        scale = to_half(largest(row + g * GROUP, there) / 127.0f);
        round8(row + g * GROUP, there, from_half(scale), codes + n * K + g * GROUP);
      }
    }
  }
}

}  // namespace lathe

// x: N rows of K numbers of a type. ends: `count` of them. codes: N, and 16 bytes for each group, which a row fills up
// with zeros; the first of two codes is in the upper half of a byte. scales: N, and a float of 16 bits for each group.
LATHE_API void lathe_int4(const void* x, const float* ends, uint8_t* codes, uint16_t* scales, int64_t N, int64_t K,
                          int64_t count, int64_t type, int64_t threads) {
  using namespace lathe;
  if (type == 0)
    encode((const float*)x, ends, codes, scales, N, K, count, threads);
  else
    encode((const bf16*)x, ends, codes, scales, N, K, count, threads);
}

// x: as before. codes: N K. scales: N, float32; or where they are `grouped` N, and a float of 16 bits for each group.
LATHE_API void lathe_int8(const void* x, int8_t* codes, void* scales, int64_t N, int64_t K, int64_t grouped,
                          int64_t type, int64_t threads) {
  using namespace lathe;
  if (type == 0)
    eights((const float*)x, codes, scales, N, K, grouped != 0, threads);
  else
    eights((const bf16*)x, codes, scales, N, K, grouped != 0, threads);
}
