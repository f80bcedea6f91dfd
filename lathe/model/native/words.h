// Products of bfloat16 numbers where the processor multiplies pairs of them: rows of x are laid four abreast.
//
// A word is 8 neighbours of a row. A vector has the same word of four rows, of x or, where x is one row, of weights; it
// is multiplied with a word of the other side, which is there four times. So a vector of sums is four of them in four
// lanes each, which are added up word after word, and only at the end with each other: a quarter of what gathering 16
// lanes takes, and in the same order for one row and for many. Weights are read as they are stored.
#pragma once
#include "products.h"

namespace lathe {

constexpr i64 WORD = 8;
inline i64 worded(i64 K) { return (K + WORD - 1) / WORD * WORD; }

#if defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define LATHE_WORDS 1

constexpr i64 GROUPS = 6;        // fours of rows of x in a tile
constexpr i64 AHEAD = 24 << 10;  // bytes: how far before their use weights are asked of the memory
using Pairs = __m512bh;

inline Pairs four_times(const bf16* word) {
  return (Pairs)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)word));
}
inline Pairs four_times(const bf16* word, i64 n) {
  return (Pairs)_mm512_broadcast_i32x4(_mm_maskz_loadu_epi16(__mmask8((1u << n) - 1), word));
}

// Of four vectors, the four sums of each: lane 4 i + r of what comes has sum i of vector r.
inline Sum gathered(const Sum s[4]) {
  const Sum a = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
  const Sum b = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

// Rows `first` to `last` of x, K numbers each and `stride` apart, as they are multiplied: fours of rows, one behind the
// other, of each word after word, of each the rows'. `first` is one of a four's; what is missing of a row is zero.
inline void lay(const bf16* x, i64 stride, i64 first, i64 last, i64 K, bf16* laid) {
  for (i64 t = first; t < last; t++) {
    const bf16* from = x + t * stride;
    bf16* to = laid + t / 4 * 4 * worded(K) + t % 4 * WORD;
    i64 k = 0;
    for (; k + WORD <= K; k += WORD) std::memcpy(to + 4 * k, from + k, WORD * sizeof(bf16));
    if (k < K) {
      std::memset((void*)(to + 4 * k), 0, WORD * sizeof(bf16));
      std::memcpy(to + 4 * k, from + k, size_t(K - k) * sizeof(bf16));
    }
  }
}

// Sums of 4 rows of weights with G fours of rows of x, gathered: lane 4 i + r of sums[g] has row i of four g with weights
// r. w: of each row, its first number. x: laid. ask: whether weights AHEAD are asked of the memory, which finds them
// soonest in the order in which they lie.
template <int G>
inline void word_sums(const bf16* const w[4], i64 K, const bf16* x, bool ask, Sum* all) {
  const i64 four = 4 * worded(K);
  const char* ahead = (const char*)w[0] + AHEAD;
  Sum sums[G][4];
  for (int g = 0; g < G; g++)
    for (int r = 0; r < 4; r++) sums[g][r] = zero();
  const auto products = [&](i64 k, auto load) {
    Pairs a[4];
    for (int r = 0; r < 4; r++) a[r] = load(w[r] + k);
    for (int g = 0; g < G; g++) {
      const Pairs v = (Pairs)_mm512_loadu_si512(x + g * four + 4 * k);
      for (int r = 0; r < 4; r++) sums[g][r] = _mm512_dpbf16_ps(sums[g][r], a[r], v);
    }
  };
  i64 k = 0;
  for (; k + WORD <= K; k += WORD) {
    if (ask) __builtin_prefetch(ahead + 4 * k * i64(sizeof(bf16)), 0, 2);
    products(k, [](const bf16* word) { return four_times(word); });
  }
  if (k < K) products(k, [n = K - k](const bf16* word) { return four_times(word, n); });
  for (int g = 0; g < G; g++) all[g] = gathered(sums[g]);
}

template <int G = GROUPS>
inline void word_sums_of(i64 g, const bf16* const w[4], i64 K, const bf16* x, bool ask, Sum* all) {
  if (g == G)
    word_sums<G>(w, K, x, ask, all);
  else if constexpr (G > 1)
    word_sums_of<G - 1>(g, w, K, x, ask, all);
}

// Sums of one row x with 4 rows of weights, each in four lanes.
inline Sum row_tile(const bf16* const w[4], i64 K, const bf16* x) {
  Sum sums = zero();
  const auto products = [&](i64 k, i64 n, auto load, auto word) {
    const __m512i a = load(w[0] + k), b = load(w[1] + k), c = load(w[2] + k), d = load(w[3] + k);
    const __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), cd = _mm512_shuffle_i32x4(c, d, 0x44);
    const __m512i ab_later = _mm512_shuffle_i32x4(a, b, 0xee), cd_later = _mm512_shuffle_i32x4(c, d, 0xee);
    sums = _mm512_dpbf16_ps(sums, (Pairs)_mm512_shuffle_i32x4(ab, cd, 0x88), word(k));
    if (n > WORD) sums = _mm512_dpbf16_ps(sums, (Pairs)_mm512_shuffle_i32x4(ab, cd, 0xdd), word(k + WORD));
    if (n > 2 * WORD)
      sums = _mm512_dpbf16_ps(sums, (Pairs)_mm512_shuffle_i32x4(ab_later, cd_later, 0x88), word(k + 2 * WORD));
    if (n > 3 * WORD)
      sums = _mm512_dpbf16_ps(sums, (Pairs)_mm512_shuffle_i32x4(ab_later, cd_later, 0xdd), word(k + 3 * WORD));
  };
  i64 k = 0;
  for (; k + 32 <= K; k += 32) {
    for (i64 line = 0; line < 256; line += 64)
      __builtin_prefetch((const char*)w[0] + AHEAD + 4 * k * i64(sizeof(bf16)) + line, 0, 2);
    products(k, 32, [](const bf16* from) { return _mm512_loadu_si512(from); }, [&](i64 at) { return four_times(x + at); });
  }
  if (k < K)
    products(
        k, K - k, [n = K - k](const bf16* from) { return _mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), from); },
        [&](i64 at) { return K - at < WORD ? four_times(x + at, K - at) : four_times(x + at); });
  return sums;
}

// As `products` of any numbers, but several rows of x must be laid.
template <int W, class Done>
inline void products(const bf16* const (&w)[W], i64 first, i64 last, i64 K, const Rows<bf16>& x, i64 T, Done done) {
  const auto four = [&](int i, i64 n, const bf16* rows[4]) {
    for (i64 j = 0; j < 4; j++) rows[j] = w[i] + std::min(n + j, last - 1) * K;
  };
  const bf16* rows[4];
  float* sums[W];
  if (!x.laid) {
    constexpr i64 R = 16;
    float out[W][R];
    for (i64 n = first; n < last; n += R) {
      for (int i = 0; i < W; i++) {
        Sum all[4];
        for (i64 r = 0; r < 4; r++) {
          four(i, n + 4 * r, rows);
          all[r] = row_tile(rows, K, x.x);
        }
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_storeu_ps(out[i], _mm512_permutexvar_ps(order, gathered(all)));
        sums[i] = out[i];
      }
      done(i64(0), n, std::min(last - n, R), sums);
    }
    return;
  }
  // Few rows of x pass while each weight is read once; of many, a tile's at a time, past the weights of a panel.
  const i64 fours = (T + 3) / 4, tiles = (fours + GROUPS - 1) / GROUPS, at_once = T <= SOME ? tiles : 1;
  float out[W][SOME][PANEL];
  for (i64 n = first; n < last; n += PANEL) {
    const i64 count = std::min(last - n, PANEL);
    for (i64 tile = 0; tile < tiles; tile += at_once) {
      const auto begin = [&](i64 i) { return fours * i / tiles; };  // alike in size
      const i64 start = begin(tile), end = begin(tile + at_once);
      for (i64 r = 0; r < count; r += 4)
        for (int i = 0; i < W; i++) {
          four(i, n + r, rows);
          for (i64 j = tile; j < tile + at_once; j++) {
            const i64 from = begin(j), many = begin(j + 1) - from;
            Sum all[GROUPS];
            word_sums_of(many, rows, K, x.x + from * 4 * x.stride, j == 0, all);
            for (i64 g = 0; g < many; g++) {
              float* to = out[i][4 * (from + g - start)] + r;
              _mm_storeu_ps(to, _mm512_castps512_ps128(all[g]));
              _mm_storeu_ps(to + PANEL, _mm512_extractf32x4_ps(all[g], 1));
              _mm_storeu_ps(to + 2 * PANEL, _mm512_extractf32x4_ps(all[g], 2));
              _mm_storeu_ps(to + 3 * PANEL, _mm512_extractf32x4_ps(all[g], 3));
            }
          }
        }
      for (i64 t = 4 * start; t < std::min(4 * end, T); t++) {
        for (int i = 0; i < W; i++) sums[i] = out[i][t - 4 * start];
        done(t, n, count, sums);
      }
    }
  }
}

#endif

// Whether several rows of E's are laid to be multiplied.
template <class E> inline constexpr bool WORDS = false;
#ifdef LATHE_WORDS
template <> inline constexpr bool WORDS<bf16> = true;
#endif

}  // namespace lathe
