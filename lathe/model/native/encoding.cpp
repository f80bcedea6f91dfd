// Rows of numbers become codes of 4 bits with a scale for each 32, as transforms/quantize.py says it: of some scales by
// which the largest number of a group becomes an end, each fitted to its whole numbers, that which errs least.
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

static inline float from_half(uint16_t h) {
  const uint32_t size = h & 0x7fff;
  const float x = size < 0x400    ? size * 5.9604644775390625e-8f
                  : size < 0x7c00 ? __builtin_bit_cast(float, (size << 13) + 0x38000000)
                                  : __builtin_bit_cast(float, size << 13 | 0x7f800000);
  return h & 0x8000 ? -x : x;
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
static void encode(const float* row, i64 some, i64 left, const float* ends, i64 count, uint8_t* codes, uint16_t* scales) {
  float x[GROUP][LANES] = {}, scale[LANES];
  for (i64 l = 0; l < some; l++) {
    const i64 there = left - l * GROUP < GROUP ? left - l * GROUP : GROUP;
    for (i64 i = 0; i < there; i++) x[i][l] = row[l * GROUP + i];
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

}  // namespace lathe

// x: N rows of K numbers. ends: `count` of them. codes: N, and 16 bytes for each group, which a row fills up with zeros;
// the first of two codes is in the upper half of a byte. scales: N, and a float of 16 bits for each group.
LATHE_API void lathe_int4(const float* x, const float* ends, uint8_t* codes, uint16_t* scales, int64_t N, int64_t K,
                          int64_t count, int64_t threads) {
  using namespace lathe;
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
