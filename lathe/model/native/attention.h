// Attention of single tokens to their past, straight over the cache: keys and values are read once, as they are stored,
// for all heads that share them. A long past is looked at in spans, whose results are put together afterwards
// (arXiv:2205.14135, and in spans as in its "split" form); which spans depends on the token's own sequence alone.
#pragma once
#include <algorithm>
#include <type_traits>

#include "abreast.h"

namespace lathe {

constexpr i64 SPAN = 256;   // keys that one task looks at

struct Pass {  // as the Python side fills it: T tokens of any number of sequences
  i64 tokens, threads;
  const i64* write;   // T: the slot of each token's keys and values
  const i64* starts;  // T: the slot of its sequence's first token, or -1 where they do not lie together
  const i64* tables;  // T: the address of its sequence's slots in order (int64), where `starts` is -1
  const i64* lengths;  // T: how many tokens its sequence has up to it, itself included
};

// A row of a cache in 8 bits: first SCALE bytes that are a bfloat16 number, then the codes that it multiplies.
struct Code {
  int8_t number;
};
constexpr i64 SCALE = sizeof(bf16);

inline float factor_of(const Code* row) {
  bf16 factor;
  std::memcpy(&factor, row, sizeof factor);
  return wide(factor);
}

// S: what rows are of: numbers, or Code.
template <class S> struct Cache {
  S* keys;
  S* values;
  i64 key_slot, key_head, value_slot, value_head;  // numbers between neighbours
};

// A row of a cache comes to be.
template <class E> inline void keep(const E* x, i64 C, E* row) { std::memcpy(row, x, size_t(C) * sizeof(E)); }
template <class E> inline void keep(const E* x, i64 C, Code* row) {
  float largest = 0;
#pragma omp simd reduction(max : largest)
  for (i64 c = 0; c < C; c++) largest = std::max(largest, std::fabs(wide(x[c])));
  const bf16 factor = narrow<bf16>(largest / 127.0f);
  std::memcpy(row, &factor, sizeof factor);
  const float by = wide(factor) == 0 ? 1.0f : wide(factor);
#pragma omp simd
  for (i64 c = 0; c < C; c++) row[SCALE + c].number = int8_t(nearest(wide(x[c]) / by));
}

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
  if (n >= 16) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  bf16 some[16] = {};
  std::memcpy(some, p, size_t(n) * sizeof(bf16));
  return widened(some, 16);
}
inline Sum widened(const Code* p, i64 n) {
  if (n >= 16) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  Code some[16] = {};
  std::memcpy(some, p, size_t(n));
  return widened(some, 16);
}
#else
template <class E> inline Sum widened(const E* p, i64 n) {
  return n >= Lanes<E>::width ? Lanes<E>::load(p) : Lanes<E>::part(p, n);
}
inline Sum widened(const Code* p, i64 n) {
  Sum v = {};
  for (i64 i = 0; i < std::min(n, i64(8)); i++) v[i] = p[i].number;
  return v;
}
#endif

constexpr i64 LANES = Lanes<float>::width;
inline i64 padded(i64 channels) { return (channels + LANES - 1) / LANES * LANES; }

// sums[m] += chances[m] . values, of `count` keys. sums: M rows of padded(C) numbers; chances: M rows of TURN.
template <class E, int M>
inline void gather(const E* const* values, i64 count, i64 C, const float (*chances)[TURN], float* sums) {
  const i64 row = padded(C);
  const auto lanes = [&](i64 c, auto load) {
    Sum s[M];
    for (int m = 0; m < M; m++) s[m] = widened(sums + m * row + c, LANES);
    for (i64 j = 0; j < count; j++) {
      const Sum v = load(values[j] + c);
      for (int m = 0; m < M; m++) s[m] = Lanes<float>::add(s[m], all(chances[m][j]), v);
    }
    for (int m = 0; m < M; m++) std::memcpy(sums + m * row + c, &s[m], sizeof(Sum));
  };
  i64 c = 0;
  for (; c + LANES <= C; c += LANES) lanes(c, [](const E* from) { return widened(from, LANES); });
  if (c < C) lanes(c, [c, C](const E* from) { return widened(from, C - c); });
}

template <class E, int M>
inline void gather_of(i64 m, const E* const* values, i64 count, i64 C, const float (*chances)[TURN], float* sums) {
  if (m == M)
    gather<E, M>(values, count, C, chances, sums);
  else if constexpr (M > 1)
    gather_of<E, M - 1>(m, values, count, C, chances, sums);
}

// Keys of a turn as they are multiplied: TURN of them, those that are not there being anything.
template <class E> struct Turned {
  const E* keys[TURN];
  void take(const E* const* from, i64 count, i64) {
    for (i64 j = 0; j < TURN; j++) keys[j] = from[j < count ? j : count - 1];
  }
  // scores[m][j]: of M <= MOST rows q, C numbers each, with every key.
  void scores(const E* q, i64 M, i64 C, i64 count, float (*scores)[TURN]) const {
    for (i64 j = 0; j < count; j += 4) tile_of<E, 4, MOST>(M, keys + j, C, q, C, {nullptr, 0}, scores[0] + j, TURN);
  }
};

// The first position that a token sees whose sequence has `length` up to it.
inline i64 oldest(const Look& look, i64 length) {
  if (look.window) return length > look.window ? length - look.window : 0;
  if (look.chunk) return (length - 1) / look.chunk * look.chunk;
  return 0;
}

// What is left of one head's look at some keys: the largest score, and sums relative to it.
struct Part {
  float largest, total;
};

// N numbers become one, each half with the other.
template <int N, class F> LATHE_INLINE float fold(float* x, F both) {
  if constexpr (N > 1) {
#pragma omp simd
    for (int j = 0; j < N / 2; j++) x[j] = both(x[j], x[j + N / 2]);
    return fold<N / 2>(x, both);
  }
  return x[0];
}

// Scores of TURN keys, of which those from `low` to before `high` count, become what each of them adds; what came before
// (sums: `row` numbers) is made relative to the same largest score.
LATHE_INLINE void weigh(const Look& look, float* s, i64 low, i64 high, float* sums, i64 row, Part& part) {
  low = std::max(low, i64(0));
  if (low >= high) {
    std::fill(s, s + TURN, 0.0f);
    return;
  }
  const float scale = float(look.scale), cap = float(look.softcap);
#pragma omp simd
  for (i64 j = 0; j < TURN; j++) s[j] *= scale;
  if (cap != 0) {
#pragma omp simd
    for (i64 j = 0; j < TURN; j++) s[j] = cap - 2 * cap / (power(2 * s[j] / cap) + 1);  // cap times tanh(s / cap)
  }
  float folded[TURN];
#pragma omp simd
  for (i64 j = 0; j < TURN; j++) folded[j] = j >= low && j < high ? s[j] : -INFINITY;
  const float largest = std::max(part.largest, fold<TURN>(folded, [](float x, float y) { return x > y ? x : y; }));
#pragma omp simd
  for (i64 j = 0; j < TURN; j++) {
    const float x = power(s[j] - largest);
    folded[j] = s[j] = j >= low && j < high ? x : 0.0f;
  }
  const float total = fold<TURN>(folded, [](float x, float y) { return x + y; });
  const float before = power(part.largest - largest);  // the first time, all sums are zero
  if (before != 1.0f) {
#pragma omp simd
    for (i64 c = 0; c < row; c++) sums[c] *= before;
  }
  part = {largest, part.total * before + total};
}

// Neighbouring tokens of one sequence, from `first` on, which look together.
struct Group {
  i64 first, count, oldest, length;  // the first position that one of them sees, and the end of the last's
  i64 spans_before, rows_before;     // of the groups before it: spans, and spans times tokens
  i64 spans() const { return (length - 1) / SPAN - oldest / SPAN + 1; }
};

// Where the keys and values of a sequence's positions are; of one head.
template <class S> struct Past {
  const Cache<S>& cache;
  i64 start, head;
  const i64* table;  // null where they lie together, from slot `start` on

  Past(const Pass& pass, const Cache<S>& cache, i64 token, i64 head)
      : cache(cache), start(pass.starts[token]), head(head),
        table(start < 0 ? (const i64*)pass.tables[token] : nullptr) {}

  void find(i64 position, const S** key, const S** value) const {
    const i64 slot = table ? table[position] : start + position;
    *key = cache.keys + slot * cache.key_slot + head * cache.key_head;
    *value = cache.values + slot * cache.value_slot + head * cache.value_head;
  }

  void ask(i64 from, i64 to, i64 C) const {  // of the memory, now
    for (i64 next = from; next < to; next++) {
      const S *key, *value;
      find(next, &key, &value);
      for (i64 c = 0; c < C; c += 64 / i64(sizeof(S))) {
        __builtin_prefetch(key + c);
        __builtin_prefetch(value + c);
      }
    }
  }
};

// Keys and values of a turn as numbers of E's: as they are stored, or what their codes stand for.
template <class E, class S> struct Seen {
  static constexpr bool coded = std::is_same_v<S, Code>;
  const E *keys[TURN], *values[TURN];
  float key_factors[TURN] = {}, value_factors[TURN] = {};
  E numbers[coded ? 2 * TURN * WIDEST : 1];

  void take(const Past<S>& past, i64 at, i64 count, i64 C) {
    for (i64 j = 0; j < count; j++) {
      const S *key, *value;
      past.find(at + j, &key, &value);
      if constexpr (coded) {
        key_factors[j] = factor_of(key), value_factors[j] = factor_of(value);
        E *k = numbers + 2 * j * C, *v = k + C;
        for (i64 c = 0; c < C; c++) k[c] = narrow<E>(float(key[SCALE + c].number));
        for (i64 c = 0; c < C; c++) v[c] = narrow<E>(float(value[SCALE + c].number));
        keys[j] = k, values[j] = v;
      } else {
        keys[j] = key, values[j] = value;
      }
    }
  }
};

// `heads` heads of each of a group's tokens look at span `span` of the keys of one head. q: count heads C, side by side.
// sums: count heads padded(C), parts: count heads; both written. S: what the cache's rows are of.
template <class E, class S>
inline void look_at(const Look& look, const Pass& pass, const Cache<S>& cache, const Group& group, i64 head, i64 heads,
                    i64 span, const E* q, float* sums, Part* parts) {
  constexpr bool coded = Seen<E, S>::coded;
  const i64 C = look.channels, row = padded(C), M = group.count * heads;
  const i64 from = (group.oldest / SPAN + span) * SPAN, to = std::min(from + SPAN, group.length);
  const Past<S> past(pass, cache, group.first, head);
  Seen<E, S> seen;
  const auto length_of = [&](i64 m) { return pass.lengths[group.first + m / heads]; };
#ifdef LATHE_WORDS
  if constexpr (WORDS<E>) {
    const float *key_factors = coded ? seen.key_factors : nullptr, *value_factors = coded ? seen.value_factors : nullptr;
    for (i64 m = 0; m < M; m += LOOKERS, q += LOOKERS * C, sums += LOOKERS * row, parts += LOOKERS) {
      const i64 some = std::min(M - m, LOOKERS);
      Abreast lookers(q, some, C, sums, row);
      for (i64 at = from; at < to; at += TURN) {
        const i64 count = std::min(to - at, TURN);
        if (at + count <= group.oldest) continue;
        seen.take(past, at, count, C);
        past.ask(at + TURN, std::min(at + 2 * TURN, to), C);
        const bool all = at + count <= length_of(m) && oldest(look, length_of(m + some - 1)) <= at;
        uint32_t visible[LOOKERS] = {};
        for (i64 i = 0; i < some && !all; i++) {
          const i64 low = std::max(oldest(look, length_of(m + i)) - at, i64(0)), high = std::min(length_of(m + i) - at, count);
          if (low < high) visible[i] = uint32_t((1ull << high) - (1ull << low));
        }
        lookers.look(seen.keys, seen.values, count, key_factors, value_factors, float(look.scale), float(look.softcap),
                     all ? nullptr : visible);
      }
      for (i64 i = 0; i < some; i++) parts[i] = {lookers.largest_of(i), lookers.total_of(i)};
    }
    return;
  }
#endif
  Turned<E> turned;
  float scores[MOST][TURN] = {};
  for (i64 m = 0; m < M; m++) parts[m] = {-INFINITY, 0};
  std::fill(sums, sums + M * row, 0.0f);
  for (i64 at = from; at < to; at += TURN) {
    const i64 count = std::min(to - at, TURN);
    if (at + count <= group.oldest) continue;
    seen.take(past, at, count, C);
    past.ask(at + TURN, std::min(at + 2 * TURN, to), C);
    turned.take(seen.keys, count, C);
    for (i64 m = 0; m < M; m += MOST) {
      const i64 some = std::min(M - m, i64(MOST));
      turned.scores(q + m * C, some, C, count, scores);
      for (i64 i = 0; i < some; i++) {
        const i64 length = length_of(m + i);
        if constexpr (coded)
          for (i64 j = 0; j < TURN; j++) scores[i][j] *= seen.key_factors[j];
        weigh(look, scores[i], oldest(look, length) - at, std::min(length - at, count), sums + (m + i) * row, row,
              parts[m + i]);
        if constexpr (coded)
          for (i64 j = 0; j < TURN; j++) scores[i][j] *= seen.value_factors[j];
      }
      gather_of<E, MOST>(some, seen.values, count, C, scores, sums + m * row);
    }
  }
}

// What a head has gathered so far (C numbers), and a further span's.
inline void together(Part& so_far, float* y, const Part& part, const float* sums, i64 C) {
  if (part.total == 0) return;  // none of its keys is seen
  const float largest = std::max(so_far.largest, part.largest);
  const float before = power(so_far.largest - largest), share = power(part.largest - largest);
  so_far = {largest, so_far.total * before + part.total * share};
#pragma omp simd
  for (i64 c = 0; c < C; c++) y[c] = y[c] * before + sums[c] * share;
}

// What was gathered, as the softmax has it.
template <class E> inline void divided(const float* y, float total, i64 C, E* out) {
#pragma omp simd
  for (i64 c = 0; c < C; c++) out[c] = narrow<E>(y[c] / total);
}

}  // namespace lathe
