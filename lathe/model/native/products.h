// Matrix products with a few rows: every weight is read once, in the order in which it is stored, row after row.
//
// A tile is R rows of weights and M of what they are multiplied with: R x M sums, each over k in the same order whatever
// R and M are, so that a row's result does not depend on what else is in the call.
#pragma once
#include "lanes.h"

namespace lathe {

#ifdef __AVX512F__
using Sum = __m512;
inline Sum zero() { return _mm512_setzero_ps(); }

// The sums of four accumulators' lanes.
inline void totals(const Sum s[4], float out[4]) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  const __m512 all =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

template <class E> struct Lanes;
template <> struct Lanes<float> {
  static constexpr i64 width = 16;
  using V = __m512;
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V part(const float* p, i64 n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
  static Sum add(Sum s, V a, V b) { return _mm512_fmadd_ps(a, b, s); }
};
#ifdef __AVX512BF16__
template <> struct Lanes<bf16> {
  static constexpr i64 width = 32;
  using V = __m512bh;
  static V load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static V part(const bf16* p, i64 n) { return (__m512bh)_mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), p); }
  static Sum add(Sum s, V a, V b) { return _mm512_dpbf16_ps(s, a, b); }
};
#else
template <> struct Lanes<bf16> {
  static constexpr i64 width = 16;
  using V = __m512;
  static V load(const bf16* p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  static V part(const bf16* p, i64 n) {
    bf16 some[16] = {};
    std::memcpy(some, p, size_t(n) * sizeof(bf16));
    return load(some);
  }
  static Sum add(Sum s, V a, V b) { return _mm512_fmadd_ps(a, b, s); }
};
#endif

#else  // any processor: eight lanes, which the compiler makes of what there is
typedef float Sum __attribute__((vector_size(32)));
inline Sum zero() { return Sum{}; }
inline void totals(const Sum s[4], float out[4]) {
  for (int r = 0; r < 4; r++)
    out[r] = ((s[r][0] + s[r][4]) + (s[r][1] + s[r][5])) + ((s[r][2] + s[r][6]) + (s[r][3] + s[r][7]));
}
template <class E> struct Lanes {
  static constexpr i64 width = 8;
  using V = Sum;
  static V load(const E* p) {
    V v;
    for (int i = 0; i < 8; i++) v[i] = wide(p[i]);
    return v;
  }
  static V part(const E* p, i64 n) {
    V v = {};
    for (i64 i = 0; i < n; i++) v[i] = wide(p[i]);
    return v;
  }
  static Sum add(Sum s, V a, V b) { return s + a * b; }
};
#endif

// R sums for each of M rows of x: out[m][r]. w: the first of K numbers of each row; rows of x are `stride` apart.
// `Far`: rows that come next lie `next` numbers behind, and are asked of the memory now.
template <class E, int R, int M, bool Far>
inline void tile(const E* const w[R], i64 K, i64 next, const E* x, i64 stride, float out[][R]) {
  using L = Lanes<E>;
  Sum sums[M][R];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) sums[m][r] = zero();
  const auto step = [&](int r, int rows, auto load) {
    typename L::V v[M];
    for (int m = 0; m < M; m++) v[m] = load(x + m * stride);
    for (; rows--; r++) {
      const typename L::V a = load(w[r]);
      for (int m = 0; m < M; m++) sums[m][r] = L::add(sums[m][r], a, v[m]);
    }
  };
  const auto whole = [](i64 k) { return [k](const E* row) { return L::load(row + k); }; };
  const auto some = [K](i64 k) { return [k, K](const E* row) { return L::part(row + k, K - k); }; };
  if constexpr (M == 1) {  // a matter of memory, which is read soonest from one end to the other
    for (int r = 0; r < R; r++) {
      i64 k = 0;
      for (; k + L::width <= K; k += L::width) step(r, 1, whole(k));
      if (k < K) step(r, 1, some(k));
    }
  } else {
    i64 k = 0;
    for (; k + L::width <= K; k += L::width) {
      if constexpr (Far)
        for (int r = 0; r < R; r++) __builtin_prefetch(w[r] + next + k, 0, 3);
      step(0, R, whole(k));
    }
    if (k < K) step(0, R, some(k));
  }
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r += 4) totals(sums[m] + r, out[m] + r);
}

constexpr int MOST = 6;  // rows of x in a tile

template <class E, int R, int M, bool Far>
inline void tile_of(i64 m, const E* const w[R], i64 K, const E* x, i64 stride, float out[][R]) {
  if (m == M)
    tile<E, R, M, Far>(w, K, R * K, x, stride, out);
  else if constexpr (M > 1)
    tile_of<E, R, M - 1, Far>(m, w, K, x, stride, out);
}

// done(t, n, count, sums): of x[t], for `count` <= R rows of each of `W` matrices from row n on; sums[i][r].
template <class E, int R, int W, class Done>
inline void tiles(const E* const (&w)[W], i64 first, i64 last, i64 K, const E* x, i64 stride, i64 T, Done done) {
  const i64 blocks = (T + MOST - 1) / MOST, each = (T + blocks - 1) / blocks;  // alike in size
  float out[W][MOST][R];
  for (i64 n = first; n < last; n += R) {
    const i64 count = last - n < R ? last - n : R;
    const E* rows[W][R];
    for (int i = 0; i < W; i++)
      for (i64 r = 0; r < R; r++) rows[i][r] = w[i] + (r < count ? n + r : last - 1) * K;
    for (i64 t = 0; t < T; t += each) {
      const i64 m = T - t < each ? T - t : each;
      for (int i = 0; i < W; i++) {
        if (t == 0 && T > 1)
          tile_of<E, R, MOST, true>(m, rows[i], K, x, stride, out[i]);
        else if (T > 1)
          tile_of<E, R, MOST, false>(m, rows[i], K, x + t * stride, stride, out[i]);
        else
          tile<E, R, 1, false>(rows[i], K, 0, x, stride, out[i]);
      }
      for (i64 j = 0; j < m; j++) {
        const float* sums[W];
        for (int i = 0; i < W; i++) sums[i] = out[i][j];
        done(t + j, n, count, sums);
      }
    }
  }
}

template <class E, int W, class Done>
inline void products(const E* const (&w)[W], i64 first, i64 last, i64 K, const E* x, i64 stride, i64 T, Done done) {
  if (T == 1)
    tiles<E, 16 / W, W>(w, first, last, K, x, stride, T, done);
  else
    tiles<E, 4, W>(w, first, last, K, x, stride, T, done);
}

}  // namespace lathe
