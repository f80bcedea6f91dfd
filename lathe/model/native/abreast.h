// Queries four abreast, as rows of words.h, look at keys and values in bfloat16: scores of four queries with four keys
// are one vector, so that the largest and the sum of a query's are found for four at once. What scores become is rounded
// to bfloat16 where it is multiplied with values, two keys at a time; sums are float32.
#pragma once
#include "words.h"

namespace lathe {

constexpr i64 TURN = 32;     // keys between two looks at the largest score
constexpr i64 WIDEST = 512;  // channels of a head
constexpr i64 LOOKERS = 48;  // queries that look at the same keys at once
constexpr float LOWEST = -1e30f;  // of all scores; such that the difference of two is a number

#ifdef LATHE_WORDS

// e to the power of x <= 88, by Taylor's polynomial for 2 to the power of what the nearest whole number leaves; within
// 3e-6. Below -87 it is as there.
inline Sum powers(Sum x) {
  const Sum t = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-87), x), _mm512_set1_ps(1.44269504f));
  const Sum n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(t, n);
  Sum y = _mm512_set1_ps(1.3333558e-3f);
  for (const float factor : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(y, n);
}

// All lanes of each four get what `both` makes of the four.
template <class F> inline Sum in_fours(Sum x, F both) {
  x = both(x, _mm512_permute_ps(x, 0xb1));
  return both(x, _mm512_permute_ps(x, 0x4e));
}

inline float lane(Sum x, i64 i) {
  float lanes[16];
  _mm512_storeu_ps(lanes, x);
  return lanes[i];
}

// At most LOOKERS queries, and what they have found so far.
class Abreast {
 public:
  // q: count rows of C numbers. sums: count rows of `row` numbers, which become what is gathered.
  Abreast(const bf16* q, i64 count, i64 C, float* sums, i64 row) : count(count), C(C), sums(sums), row(row) {
    lay(q, C, 0, count, C, laid);
    std::fill(sums, sums + count * row, 0.0f);
    for (i64 g = 0; g < fours(); g++) largest[g] = _mm512_set1_ps(LOWEST), total[g] = zero();
  }

  // They look at `there` <= TURN keys. factors: of the keys and of the values, TURN each, or null. visible: of each query,
  // a bit for each key that it sees; null where all see all.
  void look(const bf16* const* keys, const bf16* const* values, i64 there, const float* key_factors,
            const float* value_factors, float scale, float cap, const uint32_t* visible) {
    const i64 quads = (there + 3) / 4;
    for (i64 k = 0; k < quads; k++) {
      const bf16* four[4];
      for (i64 r = 0; r < 4; r++) four[r] = keys[std::min(4 * k + r, there - 1)];
      for (i64 g = 0; g < fours(); g += GROUPS) {
        Sum all[GROUPS];
        const i64 some = std::min(fours() - g, i64(GROUPS));
        word_sums_of(some, four, C, laid + g * 4 * worded(C), false, all);
        for (i64 i = 0; i < some; i++) scores[g + i][k] = all[i];
      }
    }
    pair(values, there);
    for (i64 g = 0; g < fours(); g++) {
      Sum* const s = scores[g];
      Sum most = largest[g];
      __mmask16 seen[TURN / 4];
      for (i64 k = 0; k < quads; k++) {
        seen[k] = visible ? of_four(visible + 4 * g, 4 * k) : there - 4 * k >= 4 ? 0xffff : 0x1111 * ((1 << (there - 4 * k)) - 1);
        s[k] = _mm512_mul_ps(s[k], _mm512_set1_ps(scale));
        if (key_factors) s[k] = _mm512_mul_ps(s[k], _mm512_broadcast_f32x4(_mm_loadu_ps(key_factors + 4 * k)));
        if (cap != 0) s[k] = capped(s[k], cap);
        most = _mm512_mask_max_ps(most, seen[k], most, s[k]);
      }
      most = in_fours(most, [](Sum x, Sum y) { return _mm512_max_ps(x, y); });
      const Sum before = powers(_mm512_sub_ps(largest[g], most));
      largest[g] = most;
      total[g] = _mm512_mul_ps(total[g], before);
      for (i64 k = 0; k < quads; k++) {
        s[k] = _mm512_maskz_mov_ps(seen[k], powers(_mm512_sub_ps(s[k], most)));
        total[g] = _mm512_add_ps(total[g], s[k]);
        if (value_factors) s[k] = _mm512_mul_ps(s[k], _mm512_broadcast_f32x4(_mm_loadu_ps(value_factors + 4 * k)));
      }
      if (quads % 2) s[quads] = zero();
      for (i64 k = 0; k < quads; k += 2) _mm512_store_si512(chances[k / 2], (__m512i)_mm512_cvtne2ps_pbh(s[k + 1], s[k]));
      gather(g, there, before);
    }
  }

  // The largest score of a query, and its sum relative to that.
  float largest_of(i64 query) const { return lane(largest[query / 4], query % 4 * 4); }
  float total_of(i64 query) const {
    return lane(in_fours(total[query / 4], [](Sum x, Sum y) { return _mm512_add_ps(x, y); }), query % 4 * 4);
  }

 private:
  i64 count, C;
  float* sums;
  i64 row;
  alignas(64) bf16 laid[LOOKERS * WIDEST];
  alignas(64) uint32_t pairs[TURN / 2][WIDEST];  // numbers of two values, side by side
  alignas(64) uint32_t chances[TURN / 8][16];    // pairs of keys of four queries: [k / 8][(k / 4 % 2) 8 + 2 query + k / 2 % 2]
  Sum scores[LOOKERS / 4][TURN / 4], largest[LOOKERS / 4], total[LOOKERS / 4];

  i64 fours() const { return (count + 3) / 4; }

  // Which of keys k to k + 3 four queries see.
  static __mmask16 of_four(const uint32_t* visible, i64 k) {
    uint32_t bits = 0;
    for (i64 i = 0; i < 4; i++) bits |= (visible[i] >> k & 15) << 4 * i;
    return __mmask16(bits);
  }

  static Sum capped(Sum x, float cap) {  // cap times tanh(x / cap)
    const Sum e = powers(_mm512_mul_ps(x, _mm512_set1_ps(2 / cap)));
    const Sum part = _mm512_div_ps(_mm512_set1_ps(2 * cap), _mm512_add_ps(e, _mm512_set1_ps(1)));
    return _mm512_sub_ps(_mm512_set1_ps(cap), part);
  }

  void pair(const bf16* const* values, i64 there) {
    alignas(64) uint16_t order[2][32];
    for (int i = 0; i < 32; i++) order[0][i] = uint16_t(i / 2 + i % 2 * 32), order[1][i] = uint16_t(order[0][i] + 16);
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (i64 j = 0; j < there; j += 2) {
      const bf16 *one = values[j], *other = values[std::min(j + 1, there - 1)];
      const auto both = [&](i64 c, __m512i x, __m512i y) {
        _mm512_store_si512(pairs[j / 2] + c, _mm512_permutex2var_epi16(x, low, y));
        _mm512_store_si512(pairs[j / 2] + c + 16, _mm512_permutex2var_epi16(x, high, y));
      };
      i64 c = 0;
      for (; c + 32 <= C; c += 32) both(c, _mm512_loadu_si512(one + c), _mm512_loadu_si512(other + c));
      if (c < C) {
        const __mmask32 rest = __mmask32((1ull << (C - c)) - 1);
        both(c, _mm512_maskz_loadu_epi16(rest, one + c), _mm512_maskz_loadu_epi16(rest, other + c));
      }
    }
  }

  // What four queries have gathered, times `before`, and what they gather of these values.
  void gather(i64 g, i64 there, Sum before) {
    float by[16];
    _mm512_storeu_ps(by, before);
    i64 c = 0;
    for (; c + 64 <= row; c += 64) gather_of<4>(g, there, by, c);
    for (; c < row; c += 16) gather_of<1>(g, there, by, c);
  }

  template <int V> void gather_of(i64 g, i64 there, const float* by, i64 c) {
    const i64 some = std::min(count - 4 * g, i64(4));
    float* const from = sums + 4 * g * row + c;
    Sum s[4][V];
    for (int i = 0; i < 4; i++)
      for (int v = 0; v < V; v++)
        s[i][v] = i < some ? _mm512_mul_ps(_mm512_loadu_ps(from + i * row + 16 * v), _mm512_set1_ps(by[4 * i])) : zero();
    for (i64 j = 0; j < (there + 1) / 2; j++) {
      Pairs value[V];
      for (int v = 0; v < V; v++) value[v] = (Pairs)_mm512_load_si512(pairs[j] + c + 16 * v);
      const uint32_t* chance = chances[j / 4] + j / 2 % 2 * 8 + j % 2;
      for (int i = 0; i < 4; i++) {
        const Pairs p = (Pairs)_mm512_set1_epi32(int(chance[2 * i]));
        for (int v = 0; v < V; v++) s[i][v] = _mm512_dpbf16_ps(s[i][v], p, value[v]);
      }
    }
    for (int i = 0; i < some; i++)
      for (int v = 0; v < V; v++) _mm512_storeu_ps(from + i * row + 16 * v, s[i][v]);
  }
};

#endif

}  // namespace lathe
