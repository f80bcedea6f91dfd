// Matrix products: every weight is read in the order in which it is stored, row after row, and with few rows once.
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

constexpr int MOST = sizeof(Sum) == 64 ? 6 : 2;  // rows of x in a tile, before registers run out
constexpr i64 PANEL = 64;  // rows of weights between two looks at what came of them
constexpr i64 SOME = 48;   // rows of x meanwhile, at most
constexpr i64 NEAR = 16384;  // bytes of x that stay next to a core while weights pass by

// Rows of x, `stride` numbers apart; or four abreast, as words.h lays them, and padded to `stride`.
template <class E> struct Rows {
  const E* x;
  i64 stride;
  bool laid;
};

// Rows of weights that come next, and are asked of the memory now.
template <class E> struct Ahead {
  const E* at;
  i64 rows;
};

// R sums for each of M rows of x: out[m * step + r]. w: the first of K numbers of each row; rows of x are `stride` apart.
template <class E, int R, int M>
inline void tile(const E* const* w, i64 K, const E* x, i64 stride, Ahead<E> ahead, float* out, i64 step) {
  using L = Lanes<E>;
  Sum sums[M][R];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) sums[m][r] = zero();
  if constexpr (M == 1) {  // a matter of memory, which is read soonest from one end to the other
    for (int r = 0; r < R; r++) {
      i64 k = 0;
      for (; k + L::width <= K; k += L::width) sums[0][r] = L::add(sums[0][r], L::load(w[r] + k), L::load(x + k));
      if (k < K) sums[0][r] = L::add(sums[0][r], L::part(w[r] + k, K - k), L::part(x + k, K - k));
    }
  } else {
    const auto products = [&](auto load) {
      typename L::V a[R];
      for (int r = 0; r < R; r++) a[r] = load(w[r]);
      for (int m = 0; m < M; m++) {
        const typename L::V v = load(x + m * stride);
        for (int r = 0; r < R; r++) sums[m][r] = L::add(sums[m][r], a[r], v);
      }
    };
    i64 k = 0;
    for (; k + L::width <= K; k += L::width) {
      for (i64 r = 0; r < ahead.rows; r++) __builtin_prefetch(ahead.at + r * K + k, 0, 3);
      products([k](const E* row) { return L::load(row + k); });
    }
    if (k < K) products([k, K](const E* row) { return L::part(row + k, K - k); });
  }
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r += 4) totals(sums[m] + r, out + m * step + r);
}

template <class E, int R, int M>
inline void tile_of(i64 m, const E* const* w, i64 K, const E* x, i64 stride, Ahead<E> ahead, float* out, i64 step) {
  if (m == M)
    tile<E, R, M>(w, K, x, stride, ahead, out, step);
  else if constexpr (M > 1)
    tile_of<E, R, M - 1>(m, w, K, x, stride, ahead, out, step);
}

// done(t, n, count, sums): of x[t], for `count` <= PANEL rows of each of `W` matrices from row n on; sums[i][r].
template <class E, int W, class Done>
inline void products(const E* const (&w)[W], i64 first, i64 last, i64 K, const Rows<E>& rows_of_x, i64 T, Done done) {
  const E* const x = rows_of_x.x;
  const i64 stride = rows_of_x.stride;
  if (T == 1) {
    constexpr int R = 16 / W;
    float out[W][R];
    float* sums[W];
    for (i64 n = first; n < last; n += R) {
      const i64 count = last - n < R ? last - n : R;
      for (int i = 0; i < W; i++) {
        const E* rows[R];
        for (i64 r = 0; r < R; r++) rows[r] = w[i] + (r < count ? n + r : last - 1) * K;
        tile<E, R, 1>(rows, K, x, stride, {nullptr, 0}, out[i], R);
        sums[i] = out[i];
      }
      done(i64(0), n, count, sums);
    }
    return;
  }
  // Few rows of x stay all near while each weight passes once; of many, some at a time, past the weights of a panel.
  const i64 near = NEAR / i64(sizeof(E)) / K / MOST * MOST;
  const i64 some = T <= SOME ? T : near < MOST ? MOST : near > SOME ? SOME : near;
  float out[W][SOME][PANEL];
  for (i64 n = first; n < last; n += PANEL) {
    const i64 count = last - n < PANEL ? last - n : PANEL;
    for (i64 t = 0; t < T; t += some) {
      const i64 here = T - t < some ? T - t : some;
      const i64 blocks = (here + MOST - 1) / MOST, each = (here + blocks - 1) / blocks;  // alike in size
      for (i64 r = 0; r < count; r += 4) {
        for (int i = 0; i < W; i++) {
          const E* rows[4];
          for (i64 j = 0; j < 4; j++) rows[j] = w[i] + (r + j < count ? n + r + j : last - 1) * K;
          for (i64 j = 0, b = 0; j < here; j += each, b++) {
            const i64 asked = 4 * b / blocks, to = t ? asked : 4 * (b + 1) / blocks;  // shared out among the tiles
            tile_of<E, 4, MOST>(here - j < each ? here - j : each, rows, K, x + (t + j) * stride, stride,
                                {w[i] + (n + r + 4 + asked) * K, to - asked}, out[i][j] + r, PANEL);
          }
        }
      }
      for (i64 j = 0; j < here; j++) {
        float* sums[W];
        for (int i = 0; i < W; i++) sums[i] = out[i][j];
        done(t + j, n, count, sums);
      }
    }
  }
}

// A row of sums, and a bias where there is one, as numbers of type E.
template <class E>
inline void rounded(const float* sums, const E* bias, i64 count, E* y) {
  if (bias) {
#pragma omp simd
    for (i64 r = 0; r < count; r++) y[r] = narrow<E>(sums[r] + wide(bias[r]));
  } else {
#pragma omp simd
    for (i64 r = 0; r < count; r++) y[r] = narrow<E>(sums[r]);
  }
}

}  // namespace lathe
