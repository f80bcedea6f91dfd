// Attention of single tokens to their past, straight over the cache: keys and values are read once, as they are stored,
// for all heads that share them. A long past is looked at in spans, whose results are put together afterwards
// (arXiv:2205.14135, and in spans as in its "split" form); which spans depends on the token's own sequence alone.
#pragma once
#include <algorithm>

#include "products.h"

namespace lathe {

constexpr i64 SPAN = 256;   // keys that one task looks at
constexpr i64 TURN = 32;    // keys between two looks at the largest score
constexpr i64 WIDEST = 512;  // channels of a head

struct Pass {  // as the Python side fills it: T tokens of any number of sequences
  i64 tokens, threads;
  const i64* write;   // T: the slot of each token's keys and values
  const i64* starts;  // T: the slot of its sequence's first token, or -1 where they do not lie together
  const i64* tables;  // T: the address of its sequence's slots in order (int64), where `starts` is -1
  const i64* lengths;  // T: how many tokens its sequence has up to it, itself included
};

template <class E> struct Cache {
  E* keys;
  E* values;
  i64 key_slot, key_head, value_slot, value_head;  // numbers between neighbours
};

struct Look {
  i64 heads, kv_heads, channels, window, chunk;  // window, chunk: 0 for none
  double scale, softcap;                         // softcap: 0 for none
};

inline Sum all(float x) {
#ifdef __AVX512F__
  return _mm512_set1_ps(x);
#else
  return Sum{x, x, x, x, x, x, x, x};
#endif
}

#ifdef __AVX512F__
inline Sum widened(const float* p, i64 n) {
  return n >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
inline Sum widened(const bf16* p, i64 n) {
  bf16 some[16] = {};
  if (n < 16) p = (const bf16*)std::memcpy(some, p, size_t(n) * sizeof(bf16));
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
#else
template <class E> inline Sum widened(const E* p, i64 n) {
  return n >= Lanes<E>::width ? Lanes<E>::load(p) : Lanes<E>::part(p, n);
}
#endif

constexpr i64 LANES = Lanes<float>::width;
inline i64 padded(i64 channels) { return (channels + LANES - 1) / LANES * LANES; }

// sums[m] += chances[m] . values, of `count` keys. sums: M rows of padded(C) numbers; chances: M rows of TURN.
template <class E, int M>
inline void gather(const E* const* values, i64 count, i64 C, const float (*chances)[TURN], float* sums) {
  const i64 row = padded(C);
  for (i64 c = 0; c < C; c += LANES) {
    Sum s[M];
    for (int m = 0; m < M; m++) s[m] = widened(sums + m * row + c, LANES);
    for (i64 j = 0; j < count; j++) {
      const Sum v = widened(values[j] + c, C - c);
      for (int m = 0; m < M; m++) s[m] = Lanes<float>::add(s[m], all(chances[m][j]), v);
    }
    for (int m = 0; m < M; m++) std::memcpy(sums + m * row + c, &s[m], sizeof(Sum));
  }
}

template <class E, int M>
inline void gather_of(i64 m, const E* const* values, i64 count, i64 C, const float (*chances)[TURN], float* sums) {
  if (m == M)
    gather<E, M>(values, count, C, chances, sums);
  else if constexpr (M > 1)
    gather_of<E, M - 1>(m, values, count, C, chances, sums);
}

// The first position that a token sees whose sequence has `length` up to it.
inline i64 oldest(const Look& look, i64 length) {
  if (look.window) return length > look.window ? length - look.window : 0;
  if (look.chunk) return (length - 1) / look.chunk * look.chunk;
  return 0;
}

inline i64 spans_of(const Look& look, i64 length) { return (length - oldest(look, length) + SPAN - 1) / SPAN; }

// What is left of one head's look at some keys: the largest score, and sums relative to it.
struct Part {
  float largest, total;
};

// M <= MOST heads of token t look at keys `first` to `last` of their sequence. q: M rows of C numbers.
// sums: M rows of padded(C), parts: M; both written.
template <class E>
inline void look_at(const Look& look, const Pass& pass, const Cache<E>& cache, i64 t, i64 head, i64 M, i64 first,
                    i64 last, const E* q, float* sums, Part* parts) {
  const i64 C = look.channels, row = padded(C), start = pass.starts[t];
  const i64* table = start < 0 ? (const i64*)pass.tables[t] : nullptr;
  float scores[MOST][TURN], out[MOST][4];
  for (i64 m = 0; m < M; m++) parts[m] = {-INFINITY, 0};
  std::fill(sums, sums + M * row, 0.0f);
  for (i64 at = first; at < last; at += TURN) {
    const i64 count = last - at < TURN ? last - at : TURN;
    const E *keys[TURN + 4], *values[TURN];
    for (i64 j = 0; j < count; j++) {
      const i64 slot = table ? table[at + j] : start + at + j;
      keys[j] = cache.keys + slot * cache.key_slot + head * cache.key_head;
      values[j] = cache.values + slot * cache.value_slot + head * cache.value_head;
    }
    for (i64 j = count; j < count + 4; j++) keys[j] = keys[count - 1];
    for (i64 j = 0; j < count; j += 4) {
      tile_of<E, 4, MOST, false>(M, keys + j, C, q, C, out);
      for (i64 m = 0; m < M; m++)
        for (i64 r = 0; r < 4 && j + r < count; r++) scores[m][j + r] = out[m][r] * float(look.scale);
    }
    for (i64 m = 0; m < M; m++) {
      float* s = scores[m];
      if (look.softcap != 0)
        for (i64 j = 0; j < count; j++) s[j] = float(look.softcap) * std::tanh(s[j] / float(look.softcap));
      float largest = parts[m].largest, total = 0;
#pragma omp simd reduction(max : largest)
      for (i64 j = 0; j < count; j++) largest = s[j] > largest ? s[j] : largest;
      const float before = power(parts[m].largest - largest);  // the first time, all sums are zero
      for (i64 j = 0; j < count; j++) s[j] = power(s[j] - largest);
#pragma omp simd reduction(+ : total)
      for (i64 j = 0; j < count; j++) total += s[j];
      if (before != 1.0f)
        for (i64 c = 0; c < row; c++) sums[m * row + c] *= before;
      parts[m] = {largest, parts[m].total * before + total};
    }
    gather_of<E, MOST>(M, values, count, C, scores, sums);
  }
}

// One head's looks at `spans` spans become what it gathers: C numbers. sums: `step` apart; sink: a score that takes its
// share and gives nothing.
template <class E>
inline void together(const Part* parts, const float* sums, i64 spans, i64 part_step, i64 step, i64 C, const float* sink,
                     E* out) {
  float largest = sink ? *sink : -INFINITY;
  for (i64 i = 0; i < spans; i++) largest = std::max(largest, parts[i * part_step].largest);
  float total = sink ? power(*sink - largest) : 0;
  float y[WIDEST] = {};
  for (i64 i = 0; i < spans; i++) {
    const float share = power(parts[i * part_step].largest - largest);
    total += share * parts[i * part_step].total;
    for (i64 c = 0; c < C; c++) y[c] += share * sums[i * step + c];
  }
  for (i64 c = 0; c < C; c++) out[c] = narrow<E>(y[c] / total);
}

}  // namespace lathe
