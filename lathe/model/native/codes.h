// Matrix products whose weights are codes of 8 or 4 bits: rows of x become whole numbers too, in groups (of 128, and of 32
// for 4 bits) with a scale each, and are multiplied as such; sums over a group are scaled and added in float32.
//
// kind 1: int8, one scale (float32) for a row.        code
// kind 2: nf4, a scale (float32) for each 64.         table[code], as a 127th of its largest
// kind 3: int4, a scale (float16) for each 32.        code - 8
// Of two codes in a byte the first is in its upper half; rows of codes are padded to whole groups.
#pragma once
#include <type_traits>

#include "products.h"

namespace lathe {

struct Matrix {  // as the Python side fills it
  const void* weight;  // numbers, or codes
  const void* bias;
  const void* scales;
  i64 rows, kind;  // kind: 0 for numbers
  const void *a, *b;      // beside it, a product of two: rank rows of K numbers, and rank of `rows`
  const uint8_t* others;  // T rank: which of these do not count for a token; null where all do for all
  i64 rank;               // 0 for none
};

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LATHE_CODES 1

// 128 neighbours of a row of x, as two vectors of codes meet them, four in a lane: one half and the other (int8), or those
// with even places and those with odd ones (4 bits).
struct Chunk {
  int8_t one[64], other[64];
  int32_t start[16];  // what makes up for codes that are shifted to be positive
  float scale[16];
};

inline i64 chunks_of(i64, i64 K) { return (K + 127) / 128; }
constexpr int SHIFT[] = {0, 128, 128, 8};
// The values of nf4 in 127ths, shifted (Dettmers et al., arXiv:2305.14314).
constexpr uint8_t NF4[16] = {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255};

// A row of K numbers as codes.
template <class E> inline void coded_row(i64 kind, const E* x, i64 K, Chunk* to) {
  const i64 size = kind == 1 ? 128 : 32, lanes = size / 8;
  for (i64 at = 0; at < K; at += 128, to++) {
    float v[128] = {};
    const i64 n = K - at < 128 ? K - at : 128;
    for (i64 i = 0; i < n; i++) v[i] = wide(x[at + i]);
    int8_t codes[128];
    for (i64 g = 0; g < 128; g += size) {
      float largest = 0;
#pragma omp simd reduction(max : largest)
      for (i64 i = g; i < g + size; i++) largest = std::fabs(v[i]) > largest ? std::fabs(v[i]) : largest;
      const float inverse = largest > 0 ? 127.0f / largest : 0;
      for (i64 i = g; i < g + size; i++) {
        const float shifted = v[i] * inverse + 12582912.0f;  // whose last bits are the nearest whole number
        codes[i] = int8_t(__builtin_bit_cast(int32_t, shifted) - 0x4b400000);
      }
      for (i64 l = g / 8; l < g / 8 + lanes; l++) to->scale[l] = largest / 127.0f;
    }
    for (i64 i = 0; i < 64; i++) {
      to->one[i] = codes[kind == 1 ? i : 2 * i];
      to->other[i] = codes[kind == 1 ? 64 + i : 2 * i + 1];
    }
    for (i64 l = 0; l < 16; l++) {
      int sum = 0;
      for (i64 i = 4 * l; i < 4 * l + 4; i++) sum += to->one[i] + to->other[i];
      to->start[l] = -SHIFT[kind] * sum;
    }
  }
}

// Bytes of a row of codes, and of its scales.
inline i64 code_bytes(i64 kind, i64 K) { return kind == 1 ? K : kind == 2 ? (K + 63) / 64 * 32 : (K + 31) / 32 * 16; }
inline i64 scale_bytes(i64 kind, i64 K) { return kind == 1 ? 4 : kind == 2 ? (K + 63) / 64 * 4 : (K + 31) / 32 * 2; }

// The scales of a chunk's lanes; of the last chunk, `left` groups are there.
template <int kind> inline __m512 scales_at(const void* scales, i64 chunk, i64 left) {
  if constexpr (kind == 2) {
    const __m128 two = _mm_maskz_loadu_ps(__mmask8(left >= 2 ? 3 : 1), (const float*)scales + 2 * chunk);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                 _mm512_castps128_ps512(two));
  } else {
    const __m128i four = _mm_maskz_loadu_epi16(__mmask8((1u << (left < 4 ? left : 4)) - 1), (const uint16_t*)scales + 4 * chunk);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                 _mm512_castps128_ps512(_mm_cvtph_ps(four)));
  }
}

// As `tile`: R sums for each of M rows of chunks.
template <int kind, int R, int M>
inline void code_tile(const uint8_t* const w[R], const char* const s[R], i64 K, const Chunk* x, i64 stride,
                      float out[][R]) {
  __m512 sums[M][R];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) sums[m][r] = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)NF4));
  const i64 bytes = code_bytes(kind, K), step = kind == 1 ? 128 : 64;
  // Rows `r` to `end`. `whole`: all of the chunk's codes are there. Else `left` bytes are.
  const auto chunk = [&](int begin, auto count, i64 c, auto whole, i64 left) {
    const auto load = [&](const uint8_t* at, i64 some) {
      if constexpr (whole) return _mm512_loadu_si512(at);
      return _mm512_maskz_loadu_epi8(some >= 64 ? ~0ull : some > 0 ? (1ull << some) - 1 : 0ull, at);
    };
    __m512i one[count], other[count];
    __m512 scale[count];
    for (int i = 0; i < count; i++) {
      const uint8_t* at = w[begin + i] + c * step;
      if constexpr (M > 1) __builtin_prefetch(at + R * bytes, 0, 3);  // of the next rows
      const __m512i v = load(at, left);
      if constexpr (kind == 1) {
        if constexpr (M > 1) __builtin_prefetch(at + R * bytes + 64, 0, 3);
        const __m512i sign = _mm512_set1_epi8(char(0x80));
        one[i] = _mm512_xor_si512(v, sign);
        other[i] = _mm512_xor_si512(load(at + 64, left - 64), sign);
      } else {
        one[i] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        other[i] = _mm512_and_si512(v, low);
        if constexpr (kind == 2) {
          one[i] = _mm512_shuffle_epi8(table, one[i]);
          other[i] = _mm512_shuffle_epi8(table, other[i]);
        }
        scale[i] = scales_at<kind>(s[begin + i], c, whole ? 4 : left / (kind == 2 ? 32 : 16));
      }
    }
    for (int m = 0; m < M; m++) {
      const Chunk& y = x[m * stride + c];
      const __m512i start = _mm512_loadu_si512(y.start), first = _mm512_loadu_si512(y.one),
                    second = _mm512_loadu_si512(y.other);
      const __m512 scales = _mm512_loadu_ps(y.scale);
      for (int i = 0; i < count; i++) {
        const __m512i d = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(start, one[i], first), other[i], second);
        const __m512 by = kind == 1 ? scales : _mm512_mul_ps(scale[i], scales);
        sums[m][begin + i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), by, sums[m][begin + i]);
      }
    }
  };
  const i64 full = bytes / step, rest = bytes - full * step;
  const auto rows = [&](int begin, auto count) {
    for (i64 c = 0; c < full; c++) chunk(begin, count, c, std::true_type(), 0);
    if (rest) chunk(begin, count, full, std::false_type(), rest);
  };
  if constexpr (M == 1) {  // from one end to the other, as the memory is read soonest
    for (int r = 0; r < R; r++) rows(r, std::integral_constant<int, 1>());
  } else {
    rows(0, std::integral_constant<int, R>());
  }
  for (int m = 0; m < M; m++) {
    for (int r = 0; r < R; r += 4) totals(sums[m] + r, out[m] + r);
    if constexpr (kind == 1)
      for (int r = 0; r < R; r++) out[m][r] *= *(const float*)s[r];
    if constexpr (kind == 2)
      for (int r = 0; r < R; r++) out[m][r] /= 127.0f;
  }
}

template <int kind, int R, int M>
inline void code_tile_of(i64 m, const uint8_t* const w[R], const char* const s[R], i64 K, const Chunk* x, i64 stride,
                         float out[][R]) {
  if (m == M)
    code_tile<kind, R, M>(w, s, K, x, stride, out);
  else if constexpr (M > 1)
    code_tile_of<kind, R, M - 1>(m, w, s, K, x, stride, out);
}

template <int kind, int R, int W, int most, class Done>
inline void code_tiles(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Chunk* x, i64 T, Done done) {
  const i64 blocks = (T + most - 1) / most, each = (T + blocks - 1) / blocks, stride = chunks_of(kind, K);
  float out[W][most][R];
  for (i64 n = first; n < last; n += R) {
    const i64 count = last - n < R ? last - n : R;
    for (i64 t = 0; t < T; t += each) {
      const i64 m = T - t < each ? T - t : each;
      for (int i = 0; i < W; i++) {
        const uint8_t* rows[R];
        const char* scales[R];
        for (i64 r = 0; r < R; r++) {
          const i64 row = r < count ? n + r : last - 1;
          rows[r] = (const uint8_t*)w[i]->weight + row * code_bytes(kind, K);
          scales[r] = (const char*)w[i]->scales + row * scale_bytes(kind, K);
        }
        code_tile_of<kind, R, most>(m, rows, scales, K, x + t * stride, stride, out[i]);
      }
      for (i64 j = 0; j < m; j++) {
        float* sums[W];
        for (int i = 0; i < W; i++) sums[i] = out[i][j];
        done(t + j, n, count, sums);
      }
    }
  }
}

template <int W, class Done>
inline void code_products(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Chunk* x, i64 T, Done done) {
  const auto of = [&](auto kind) {
    if (T == 1)
      code_tiles<kind, 16 / W, W, 1>(w, first, last, K, x, T, done);
    else
      code_tiles<kind, 4, W, 4>(w, first, last, K, x, T, done);
  };
  if (w[0]->kind == 1) of(std::integral_constant<int, 1>());
  if (w[0]->kind == 2) of(std::integral_constant<int, 2>());
  if (w[0]->kind == 3) of(std::integral_constant<int, 3>());
}

#else  // no codes: the Python side asks

struct Chunk {};
inline i64 chunks_of(i64, i64) { return 0; }
template <class E> inline void coded_row(i64, const E*, i64, Chunk*) {}
template <int W, class Done>
inline void code_products(const Matrix* const (&)[W], i64, i64, i64, const Chunk*, i64, Done) {}

#endif

// Rows that a matrix is multiplied with: as they are, and where its weights are codes, as codes.
template <class E> struct Given {
  const E* x;
  i64 stride;
  const Chunk* codes;
};

template <class E, int W, class Done>
inline void multiply(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Given<E>& x, i64 T, Done done) {
  if (w[0]->kind) return code_products(w, first, last, K, x.codes, T, done);
  const E* weights[W];
  for (int i = 0; i < W; i++) weights[i] = (const E*)w[i]->weight;
  products<E, W>(weights, first, last, K, x.x, x.stride, T, done);
}

}  // namespace lathe
