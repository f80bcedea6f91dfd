// Matrix products whose weights are codes of 8 or 4 bits: rows of x become whole numbers too, in groups of 32 with a
// scale each, and are multiplied as such; sums over a group are scaled and added in float32.
//
// Weights lie in panels of 16 rows, each of which has a lane of every vector: a thread reads its panels from one end to
// the other, and has nothing to add up across lanes. A panel is blocks of 64 columns; columns and rows that are missing
// are there, without effect. Of each row, 64 bytes have 4 neighbours (8 bits) or 8 (4 bits: the first four in lower
// halves).
//
// kind 1: int8, one scale (float32) for a row, before the first block.   code - 128
// kind 2: nf4, a scale (float32) for each 64, before each block.         table[code], as a 127th of its largest
// kind 3: int4, a scale (float16) for each 32, before each block.        code - 8
// kind 4: int8, a scale (float16) for each 32, before each block.        code - 128
// kind 5: int4, a scale (float16) and a zero point (8 bits) for each 32. code - zero
//
// Those of ggml's types. A minimum is what is taken away after a code was multiplied by its scale.
// kind 6: Q4_1, as 3, and a minimum (float16) for each 32, behind the scales.    code
// kind 7: Q5_1, as 4, and the same.                                            code - 128
// kind 8: Q4_K, a level (8 bits) of scale and of minimum for each 32, before each block; what levels are multiplied by
//         (float16, both) for each 256, before each four blocks.               code
// kind 9: Q5_K, the same in 8 bits.                                            code - 128
// kind 10: Q6_K, in 8 bits, a level of scale for each 16; the same.            code - 128
#pragma once
#include <type_traits>

#include "sixteen.h"
#include "words.h"

namespace lathe {

struct Matrix {  // as the Python side fills it
  const void* weight;  // numbers, or panels
  const void* bias;
  i64 rows, kind;  // kind: 0 for numbers
  const void *a, *b;      // beside it, a product of two: rank rows of K numbers, and rank of `rows`
  const uint8_t* others;  // T rank: which of these do not count for a token; null where all do for all
  i64 rank;               // 0 for none
};

constexpr i64 ABREAST = 16, BLOCK_OF = 64;  // rows; columns
inline i64 blocks_of(i64 K) { return (K + BLOCK_OF - 1) / BLOCK_OF; }
inline i64 panels_of(i64 rows) { return (rows + ABREAST - 1) / ABREAST; }

// Whether codes have 4 bits, whether there are minima, and levels; how many neighbours have a scale, of which at most 32
// are multiplied at once.
constexpr bool halved(i64 kind) { return kind == 2 || kind == 3 || kind == 5 || kind == 6 || kind == 8; }
constexpr bool has_minima(i64 kind) { return kind >= 6 && kind <= 9; }
constexpr bool has_levels(i64 kind) { return kind >= 8; }
constexpr i64 group_of(i64 kind) { return kind == 10 ? 16 : 32; }

// Bytes of a block's scales and what is beside them, and of all; and before which of a panel's bytes a block is not.
constexpr i64 FOUR = 4, TOP = 64;  // blocks with the same scales of levels; bytes of these
constexpr i64 head_bytes(i64 kind) { return kind == 1 ? 0 : kind == 5 ? 96 : kind == 6 || kind == 7 ? 128 : 64; }
constexpr i64 block_bytes(i64 kind) { return head_bytes(kind) + (halved(kind) ? 512 : 1024); }
constexpr i64 block_at(i64 kind, i64 b) {
  return (kind == 1 ? 64 : has_levels(kind) ? (b / FOUR + 1) * TOP : 0) + b * block_bytes(kind);
}
inline i64 panel_bytes(i64 kind, i64 K) { return block_at(kind, blocks_of(K) - 1) + block_bytes(kind); }

// 64 neighbours of a row of x.
struct Chunk {
  int8_t codes[64];
  float scale[2];
  int32_t sum[2], first[2];  // of a group's codes, and of its first 16

  // The sum of the codes of group g of so many.
  template <i64 group> int32_t sum_of(int g) const {
    return group == 32 ? sum[g] : g % 2 ? sum[g / 2] - first[g / 2] : first[g / 2];
  }
};

constexpr i64 SLICE = 64;  // rows of x whose codes stay near a core while all weights pass by

// A row of K numbers as codes.
template <class E> inline void coded_row(const E* x, i64 K, Chunk* to) {
  for (i64 at = 0; at < K; at += BLOCK_OF, to++)
    for (int h = 0; h < 2; h++) {
      const i64 from = at + 32 * h;
      to->scale[h] = sixteen::coded(x + from, K - from, to->codes + 32 * h, to->sum[h], to->first[h]);
    }
}

// How much larger a code is than what it stands for, when it is multiplied.
constexpr int shift(int kind) { return kind == 3 ? 8 : kind != 2 && halved(kind) ? 0 : 128 - sixteen::LEVEL; }

// Sums of P panels with each of M rows of x: out[m][p], 16 numbers. x: rows are `stride` chunks apart. Nothing is asked
// of the memory ahead: processors find one stream sooner than they are told (by a quarter, of pages of 2 MiB).
template <int kind, int P, int M>
__attribute__((noinline))  // else a compiler copies it to everywhere
void panel_tile(const uint8_t* const w[P], i64 blocks, const Chunk* x, i64 stride, float out[][2][ABREAST]) {
  using namespace sixteen;
  constexpr bool half = halved(kind);
  constexpr int group = group_of(kind), steps = group / (half ? 8 : 4);  // times 64 bytes of a group's codes
  Floats sums[M][P], top[P][2];
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++) sums[m][p] = floats(0.0f);
  const uint8_t* at[P];
  for (int p = 0; p < P; p++) at[p] = w[p] + (kind == 1 ? 64 : 0);
  for (i64 b = 0; b < blocks; b++) {
    if (has_levels(kind) && b % FOUR == 0)
      for (int p = 0; p < P; p++) {
        top[p][0] = halves(at[p]), top[p][1] = halves(at[p] + 32);
        at[p] += TOP;
      }
    for (int g = 0; g < 64 / group; g++) {
      const int h = g * group / 32;
      Ints d[M][P];
      for (int m = 0; m < M; m++) {
        const int32_t sum = x[m * stride + b].template sum_of<group>(g);
        for (int p = 0; p < P; p++)
          d[m][p] = kind == 5 ? multiples(at[p] + 64 + 16 * g, -sum) : ints(-shift(kind) * sum);
      }
      for (int s = 0; s < steps; s++) {
        Bytes v[P], next[P];
        for (int p = 0; p < P; p++) {
          const uint8_t* from = at[p] + head_bytes(kind) + 64 * (g * steps + s);
          if constexpr (half) {
            v[p] = lower(from), next[p] = upper(from);
            if constexpr (kind == 2) v[p] = valued(v[p]), next[p] = valued(next[p]);
          } else {
            v[p] = eights(from);
          }
        }
        for (int m = 0; m < M; m++) {
          const int8_t* codes = x[m * stride + b].codes + group * g + (half ? 8 : 4) * s;
          int32_t four, beyond;  // each by itself: so it goes from memory to all lanes
          std::memcpy(&four, codes, 4);
          if constexpr (half) std::memcpy(&beyond, codes + 4, 4);
#ifdef LATHE_PAIRS
          if constexpr (half && kind != 2) {
            for (int p = 0; p < P; p++) d[m][p] = dots(d[m][p], v[p], next[p], four, beyond);
            continue;
          }
#endif
          for (int p = 0; p < P; p++) d[m][p] = dot(d[m][p], v[p], four);
          if constexpr (half)
            for (int p = 0; p < P; p++) d[m][p] = dot(d[m][p], next[p], beyond);
        }
      }
      Floats scale[P], minimum[P];
      for (int p = 0; p < P; p++) {
        if constexpr (kind == 2) scale[p] = singles(at[p]);
        if constexpr (kind >= 3 && !has_levels(kind)) scale[p] = halves(at[p] + 32 * g);
        if constexpr (kind == 6 || kind == 7) minimum[p] = halves(at[p] + 64 + 32 * g);
        if constexpr (has_levels(kind)) scale[p] = times(top[p][0], levels(at[p] + group * g));
        if constexpr (has_levels(kind) && has_minima(kind)) minimum[p] = times(top[p][1], levels(at[p] + group * g + 16));
      }
      for (int m = 0; m < M; m++) {
        const Chunk& chunk = x[m * stride + b];
        const Floats by = floats(chunk.scale[h]);
        for (int p = 0; p < P; p++) sums[m][p] = plus(sums[m][p], floats(d[m][p]), kind == 1 ? by : times(scale[p], by));
        if constexpr (has_minima(kind)) {
          const Floats less = floats(-chunk.scale[h] * float(chunk.sum[h]));
          for (int p = 0; p < P; p++) sums[m][p] = plus(sums[m][p], minimum[p], less);
        }
      }
    }
    for (int p = 0; p < P; p++) at[p] += block_bytes(kind);
  }
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++) {
      if constexpr (kind == 1) sums[m][p] = times(sums[m][p], singles(w[p]));
      if constexpr (kind == 2) sums[m][p] = times(sums[m][p], floats(1.0f / 127.0f));
      store(sums[m][p], out[m][p]);
    }
}

constexpr int MOST_CODED = sixteen::ROWS;  // rows of x in a tile

template <int kind, int P, int M>
inline void panel_tile_of(i64 m, const uint8_t* const w[P], i64 blocks, const Chunk* x, i64 stride,
                          float out[][2][ABREAST]) {
  if (m == M)
    panel_tile<kind, P, M>(w, blocks, x, stride, out);
  else if constexpr (M > 1)
    panel_tile_of<kind, P, M - 1>(m, w, blocks, x, stride, out);
}

template <int kind, int W, class Done>
inline void panels(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Chunk* x, i64 T, Done done) {
  const i64 rounds = (T + MOST_CODED - 1) / MOST_CODED, each = (T + rounds - 1) / rounds;
  const i64 blocks = blocks_of(K), bytes = panel_bytes(kind, K);
  float out[MOST_CODED][2][ABREAST];
  const auto at = [&](int i, i64 n) { return (const uint8_t*)w[i]->weight + n / ABREAST * bytes; };
  const auto told = [&](i64 t, i64 n, int p, i64 m) {
    const i64 count = last - n < ABREAST ? last - n : ABREAST;
    for (i64 j = 0; j < m; j++) {
      float* sums[W];
      for (int i = 0; i < W; i++) sums[i] = out[j][W == 2 ? i : p];
      done(t + j, n, count, sums);
    }
  };
  i64 n = first;
  for (; T > 1 && n + (W == 1 ? ABREAST : 0) < last; n += (W == 1 ? 2 : 1) * ABREAST) {
    const uint8_t* const two[2] = {at(0, n), W == 2 ? at(W - 1, n) : at(0, n + ABREAST)};
    for (i64 t = 0; t < T; t += each) {
      const i64 m = T - t < each ? T - t : each;
      panel_tile_of<kind, 2, MOST_CODED>(m, two, blocks, x + t * blocks, blocks, out);
      for (int p = 0; p < (W == 1 ? 2 : 1); p++) told(t, n + p * ABREAST, p, m);
    }
  }
  for (; n < last; n += ABREAST)
    for (i64 t = 0; t < T; t++) {
      for (int i = 0; i < W; i++) {
        const uint8_t* const one[1] = {at(i, n)};
        float row[1][2][ABREAST];
        panel_tile<kind, 1, 1>(one, blocks, x + t * blocks, blocks, row);
        std::memcpy(out[0][i], row[0][0], sizeof out[0][i]);
      }
      told(t, n, 0, 1);
    }
}

// As `products`: of rows `first` to `last`, `first` being the first of a panel. x: T rows of chunks.
template <int W, class Done>
inline void code_products(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Chunk* x, i64 T, Done done) {
  for (i64 start = 0; start < T; start += SLICE, x += SLICE * blocks_of(K)) {
    const i64 some = T - start < SLICE ? T - start : SLICE;
    const auto told = [&](i64 t, i64 n, i64 count, float* const* sums) { done(start + t, n, count, sums); };
    if (w[0]->kind == 1) panels<1>(w, first, last, K, x, some, told);
    if (w[0]->kind == 2) panels<2>(w, first, last, K, x, some, told);
    if (w[0]->kind == 3) panels<3>(w, first, last, K, x, some, told);
    if (w[0]->kind == 4) panels<4>(w, first, last, K, x, some, told);
    if (w[0]->kind == 5) panels<5>(w, first, last, K, x, some, told);
    if (w[0]->kind == 6) panels<6>(w, first, last, K, x, some, told);
    if (w[0]->kind == 7) panels<7>(w, first, last, K, x, some, told);
    if (w[0]->kind == 8) panels<8>(w, first, last, K, x, some, told);
    if (w[0]->kind == 9) panels<9>(w, first, last, K, x, some, told);
    if (w[0]->kind == 10) panels<10>(w, first, last, K, x, some, told);
  }
}

// Rows that a matrix is multiplied with: as they are, and where its weights are codes, as codes.
template <class E> struct Given {
  Rows<E> rows;
  const Chunk* codes;
};

template <class E, int W, class Done>
inline void multiply(const Matrix* const (&w)[W], i64 first, i64 last, i64 K, const Given<E>& x, i64 T, Done done) {
  if (w[0]->kind) return code_products(w, first, last, K, x.codes, T, done);
  const E* weights[W];
  for (int i = 0; i < W; i++) weights[i] = (const E*)w[i]->weight;
  products(weights, first, last, K, x.rows, T, done);
}

}  // namespace lathe
