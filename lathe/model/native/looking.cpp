// Causal attention of whole sequences, and its gradient, in bfloat16 with sums in float32, on processors that multiply
// pairs of bfloat16 numbers (AVX512-BF16). Where there are none, `lathe_looks` says so.
//
// One task is one sequence and one head of keys, with all heads of queries that share them. Queries are taken BLOCK at
// a time, with all keys that one of them sees. Products are of pairs: what is multiplied lies as 32-bit words of two
// numbers that are neighbours along the axis that is summed over.
#include <vector>

#include "lanes.h"

#ifdef __AVX512BF16__
#define LATHE_LOOKS 1
#else
#define LATHE_LOOKS 0
#endif

namespace lathe {
namespace {

#if LATHE_LOOKS

constexpr i64 BLOCK = 48;
using Word = uint32_t __attribute__((may_alias));  // two numbers that are neighbours

// c += a b for a tile of M rows and N vectors of columns; a is broadcast word by word. With `fresh`, c = a b.
template <int M, int N>
void tile(i64 K, const Word* a, i64 row, i64 step, const uint32_t* b, i64 ldb, float* c, i64 ldc, bool fresh) {
  __m512 sum[M][N];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) sum[i][j] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * ldc + j * 16);
  for (i64 k = 0; k < K; k++) {
    __m512bh right[N];
    for (int j = 0; j < N; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + k * ldb + j * 16);
    for (int i = 0; i < M; i++) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(int(a[i * row + k * step]));
      for (int j = 0; j < N; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) _mm512_storeu_ps(c + i * ldc + j * 16, sum[i][j]);
}

template <int N>
void rows(i64 m, i64 K, const Word* a, i64 row, i64 step, const uint32_t* b, i64 ldb, float* c, i64 ldc, bool fresh) {
  for (; m >= 6; m -= 6, a += 6 * row, c += 6 * ldc) tile<6, N>(K, a, row, step, b, ldb, c, ldc, fresh);
  switch (m) {
    case 5: return tile<5, N>(K, a, row, step, b, ldb, c, ldc, fresh);
    case 4: return tile<4, N>(K, a, row, step, b, ldb, c, ldc, fresh);
    case 3: return tile<3, N>(K, a, row, step, b, ldb, c, ldc, fresh);
    case 2: return tile<2, N>(K, a, row, step, b, ldb, c, ldc, fresh);
    case 1: return tile<1, N>(K, a, row, step, b, ldb, c, ldc, fresh);
  }
}

// c (m n) += a (m 2K) b (2K n); n is a multiple of 16. Word (i, k) of a is at a[i * row + k * step], (k, j) of b at
// b[k * ldb + j].
void product(i64 m, i64 n, i64 K, const Word* a, i64 row, i64 step, const uint32_t* b, i64 ldb, float* c, i64 ldc,
             bool fresh) {
  for (; n >= 64; n -= 64, b += 64, c += 64) rows<4>(m, K, a, row, step, b, ldb, c, ldc, fresh);
  if (n == 48) rows<3>(m, K, a, row, step, b, ldb, c, ldc, fresh);
  if (n == 32) rows<2>(m, K, a, row, step, b, ldb, c, ldc, fresh);
  if (n == 16) rows<1>(m, K, a, row, step, b, ldb, c, ldc, fresh);
}

// Words of neighbours in a row, transposed: n rows of 2w numbers, `stride` apart, to w ld. Columns n to ld are zeros.
void across(const bf16* x, i64 n, i64 w, i64 stride, uint32_t* y, i64 ld) {
  for (i64 j = 0; j < n; j++) {
    for (i64 c = 0; c < w; c++) std::memcpy(y + c * ld + j, x + j * stride + 2 * c, 4);
  }
  for (i64 c = 0; c < w; c++)
    for (i64 j = n; j < ld; j++) y[c * ld + j] = 0;
}

// Words of neighbours in a column: n rows of C numbers to ceil(n / 2) C; a last odd row's neighbour is zero.
void down(const bf16* x, i64 n, i64 C, i64 stride, uint32_t* y) {
  for (i64 j = 0; j < n; j += 2) {
    const bf16 *first = x + j * stride, *second = first + stride;
    if (j + 1 < n) {
#pragma omp simd
      for (i64 c = 0; c < C; c++) y[j / 2 * C + c] = first[c].bits | uint32_t(second[c].bits) << 16;
    } else {
      for (i64 c = 0; c < C; c++) y[j / 2 * C + c] = first[c].bits;
    }
  }
}

// e^x; of minus infinity 0.
inline __m512 powers(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x);
  __m512 p = _mm512_set1_ps(8.3334519073e-3f);
  for (const float factor : {4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(p, n);
}

// Which of 16 lanes from j on are at least `low` and less than `high`.
inline __mmask16 lanes(i64 j, i64 low, i64 high) {
  const i64 first = low > j ? low - j : 0, last = high - j;
  if (first >= 16 || last <= 0) return 0;
  return __mmask16((0xffffu << first) & (last >= 16 ? 0xffffu : (1u << last) - 1));
}

inline __m256i halves(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline __m512i words(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// A row of scores becomes weights that are not yet divided by their sum: returns that, and the score that counts as 1.
float weigh(const float* row, i64 low, i64 high, i64 wide, float scale, bf16* weights, float& most) {
  const __m512 nothing = _mm512_set1_ps(-INFINITY);
  __m512 best = nothing, sum = _mm512_setzero_ps();
  for (i64 j = low & ~i64(15); j < high; j += 16)
    best = _mm512_max_ps(best, _mm512_mask_loadu_ps(nothing, lanes(j, low, high), row + j));
  most = _mm512_reduce_max_ps(best);
  for (i64 j = 0; j < wide; j += 16) {
    const __m512 x = _mm512_mask_sub_ps(nothing, lanes(j, low, high), _mm512_loadu_ps(row + j), _mm512_set1_ps(most));
    const __m512 y = powers(_mm512_mul_ps(x, _mm512_set1_ps(scale)));
    sum = _mm512_add_ps(sum, y);
    _mm256_storeu_si256((__m256i*)(weights + j), halves(y));
  }
  return _mm512_reduce_add_ps(sum);
}

// A row of scores becomes weights, and that of the weights' gradients the scores' gradients.
void pull(float* row, float* slope, i64 low, i64 high, i64 wide, float scale, float size) {
  const __m512 nothing = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (i64 j = 0; j < wide; j += 16) {
    const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(row + j), by, _mm512_set1_ps(size));
    const __m512 y = powers(_mm512_mask_mov_ps(nothing, lanes(j, low, high), x));
    sum = _mm512_fmadd_ps(y, _mm512_loadu_ps(slope + j), sum);
    _mm512_storeu_ps(row + j, y);
  }
  const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
  for (i64 j = 0; j < wide; j += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_sub_ps(_mm512_loadu_ps(slope + j), along));
    _mm512_storeu_ps(slope + j, _mm512_mul_ps(y, by));
  }
}

void write(const float* x, i64 m, i64 C, const float* scale, bf16* y, i64 stride) {
  for (i64 i = 0; i < m; i++) {
    const float by = scale ? scale[i] : 1.0f;
#pragma omp simd
    for (i64 c = 0; c < C; c++) y[i * stride + c] = narrow<bf16>(x[i * C + c] * by);
  }
}

i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// Where a tensor T heads C lies: its first number, and how many numbers apart tokens and heads are.
template <class E> struct Place {
  E* at;
  i64 token, head;
  E* operator()(i64 t, i64 h) const { return at + t * token + h * head; }
};

struct Shape {
  i64 T, H, K, C, Cv;
  float scale;
};

// A block of queries of one sequence that begins at `start`: `first` to `end`, and the keys `from` to `end`, counted from
// the sequence's first; `from` is even, and there is room for `wide` keys.
struct Span {
  i64 start, first, end, from, m, n, wide;
  Span(i64 start, i64 first, i64 length, const int32_t* oldest) : start(start), first(first) {
    end = first + BLOCK < length ? first + BLOCK : length;
    from = oldest[start + first] - start;
    for (i64 i = first; i < end; i++) from = oldest[start + i] - start < from ? oldest[start + i] - start : from;
    from &= ~i64(15);
    m = end - first, n = end - from, wide = up(n, 16);
  }
};

void look(const Shape& s, Place<const bf16> q, Place<const bf16> k, Place<const bf16> v, bf16* out, float* sizes,
          const int32_t* oldest, i64 start, i64 length, i64 head) {
  const i64 ld = up(length, 16) + 16, G = s.H / s.K;
  std::vector<uint32_t> keys(s.C / 2 * ld), values(up(length, 16) / 2 * s.Cv);
  std::vector<float> scores(BLOCK * ld), sums(BLOCK * s.Cv);
  std::vector<bf16> weights(BLOCK * ld);
  across(k(start, head), length, s.C / 2, k.token, keys.data(), ld);
  down(v(start, head), length, s.Cv, v.token, values.data());
  float inverse[BLOCK];
  for (i64 h = head * G; h < (head + 1) * G; h++) {
    for (i64 first = 0; first < length; first += BLOCK) {
      const Span b(start, first, length, oldest);
      product(b.m, b.wide, s.C / 2, (const Word*)q(start + first, h), q.token / 2, 1, keys.data() + b.from, ld,
              scores.data(), b.wide, true);
      for (i64 i = 0; i < b.m; i++) {
        const i64 t = start + first + i, low = oldest[t] - start - b.from, high = first + i + 1 - b.from;
        float most;
        const float sum =
            weigh(scores.data() + i * b.wide, low, high, b.wide, s.scale, weights.data() + i * b.wide, most);
        inverse[i] = 1.0f / sum;
        sizes[h * s.T + t] = most * s.scale + std::log(sum);
      }
      product(b.m, s.Cv, up(b.n, 2) / 2, (const Word*)weights.data(), b.wide / 2, 1,
              values.data() + b.from / 2 * s.Cv, s.Cv, sums.data(), s.Cv, true);
      write(sums.data(), b.m, s.Cv, inverse, out + ((start + first) * s.H + h) * s.Cv, s.H * s.Cv);
    }
  }
}

// With P the weights, dO the gradient by what was gathered, dP = dO V': dS = P (dP - rows' sums of P dP), and the
// gradients are dS K, dS' Q, both times scale, and P' dO.
void look_back(const Shape& s, Place<const bf16> q, Place<const bf16> k, Place<const bf16> v, Place<const bf16> g,
               const float* sizes, bf16* by_q, bf16* by_k, bf16* by_v, const int32_t* oldest, i64 start, i64 length,
               i64 head) {
  const i64 ld = up(length, 16) + 16, G = s.H / s.K, half = BLOCK / 2;
  std::vector<uint32_t> keys(s.C / 2 * ld), values(s.Cv / 2 * ld), down_keys(up(length, 16) / 2 * s.C);
  std::vector<uint32_t> pairs(half * ld), slope_pairs(half * ld), queries(half * s.C), outs(half * s.Cv);
  std::vector<float> slopes(BLOCK * ld), scores(BLOCK * ld), sums(BLOCK * s.C);
  std::vector<float> sum_k(up(length, 16) * s.C), sum_v(up(length, 16) * s.Cv);
  std::vector<bf16> pulls(BLOCK * ld);
  across(k(start, head), length, s.C / 2, k.token, keys.data(), ld);
  across(v(start, head), length, s.Cv / 2, v.token, values.data(), ld);
  down(k(start, head), length, s.C, k.token, down_keys.data());
  for (i64 h = head * G; h < (head + 1) * G; h++) {
    for (i64 first = 0; first < length; first += BLOCK) {
      const Span b(start, first, length, oldest);
      const i64 m2 = up(b.m, 2) / 2;
      product(b.m, b.wide, s.C / 2, (const Word*)q(start + first, h), q.token / 2, 1, keys.data() + b.from, ld,
              scores.data(), b.wide, true);
      product(b.m, b.wide, s.Cv / 2, (const Word*)g(start + first, h), g.token / 2, 1, values.data() + b.from, ld,
              slopes.data(), b.wide, true);
      for (i64 i = 0; i < b.m; i++) {
        const i64 t = start + first + i, low = oldest[t] - start - b.from, high = first + i + 1 - b.from;
        pull(scores.data() + i * b.wide, slopes.data() + i * b.wide, low, high, b.wide, s.scale, sizes[h * s.T + t]);
      }
      for (i64 i = 0; i < b.m; i += 2) {  // words of neighbouring queries; where there is no second, of one and zero
        const i64 at = i * b.wide, next = i + 1 < b.m ? at + b.wide : at;
        const __mmask16 both = i + 1 < b.m ? 0xffff : 0;
        for (i64 j = 0; j < b.wide; j += 16) {
          const __m256i weight = halves(_mm512_loadu_ps(scores.data() + at + j));
          const __m256i slope = halves(_mm512_loadu_ps(slopes.data() + at + j));
          const __m256i after = halves(_mm512_maskz_loadu_ps(both, scores.data() + next + j));
          const __m256i slope_after = halves(_mm512_maskz_loadu_ps(both, slopes.data() + next + j));
          _mm512_storeu_si512(pairs.data() + at / 2 + j, words(weight, after));
          _mm512_storeu_si512(slope_pairs.data() + at / 2 + j, words(slope, slope_after));
          _mm256_storeu_si256((__m256i*)(pulls.data() + next + j), slope_after);
          _mm256_storeu_si256((__m256i*)(pulls.data() + at + j), slope);
        }
      }
      down(q(start + first, h), b.m, s.C, q.token, queries.data());
      down(g(start + first, h), b.m, s.Cv, g.token, outs.data());
      product(b.m, s.C, up(b.n, 2) / 2, (const Word*)pulls.data(), b.wide / 2, 1, down_keys.data() + b.from / 2 * s.C,
              s.C, sums.data(), s.C, true);
      write(sums.data(), b.m, s.C, nullptr, by_q + ((start + first) * s.H + h) * s.C, s.H * s.C);
      product(b.n, s.C, m2, slope_pairs.data(), 1, b.wide, queries.data(), s.C, sum_k.data() + b.from * s.C, s.C, false);
      product(b.n, s.Cv, m2, pairs.data(), 1, b.wide, outs.data(), s.Cv, sum_v.data() + b.from * s.Cv, s.Cv, false);
    }
  }
  write(sum_k.data(), length, s.C, nullptr, by_k + (start * s.K + head) * s.C, s.K * s.C);
  write(sum_v.data(), length, s.Cv, nullptr, by_v + (start * s.K + head) * s.Cv, s.K * s.Cv);
}

// f(start, length, head) for every sequence and head of keys.
template <class F> void tasks(const i64* seams, i64 S, i64 K, i64 threads, F f) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (i64 task = 0; task < S * K; task++) {
    const i64 s = task / K;
    f(seams[s], seams[s + 1] - seams[s], task % K);
  }
}

#endif

}  // namespace
}  // namespace lathe

// What follows is there: 1, or 0.
LATHE_API void lathe_looks(void* answer) { *(int64_t*)answer = LATHE_LOOKS; }

// q: T H C, k: T K C, v: T K Cv, bfloat16, with gaps of `token` and `head` numbers as `strides` says, two for each; C and
// Cv are multiples of 16, `token` even. out: T H Cv. sizes: H T, float32, the logarithm of each softmax's denominator.
// oldest: T, int32, the first key that each query sees. seams: S + 1, int64.
LATHE_API void lathe_look(const void* q, const void* k, const void* v, void* out, void* sizes, const void* oldest,
                          const void* seams, const void* strides, int64_t T, int64_t H, int64_t K, int64_t C, int64_t Cv,
                          int64_t S, float scale, int64_t threads) {
#if LATHE_LOOKS
  using namespace lathe;
  const auto* gaps = (const i64*)strides;
  const Place<const bf16> qs{(const bf16*)q, gaps[0], gaps[1]}, ks{(const bf16*)k, gaps[2], gaps[3]},
      vs{(const bf16*)v, gaps[4], gaps[5]};
  tasks((const i64*)seams, S, K, threads, [&](i64 start, i64 length, i64 head) {
    look({T, H, K, C, Cv, scale}, qs, ks, vs, (bf16*)out, (float*)sizes, (const int32_t*)oldest, start, length, head);
  });
#endif
}

// g: the gradient by out, in gaps as the others. by_q, by_k, by_v: as q, k and v, without gaps.
LATHE_API void lathe_look_back(const void* q, const void* k, const void* v, const void* g, const void* sizes, void* by_q,
                               void* by_k, void* by_v, const void* oldest, const void* seams, const void* strides,
                               int64_t T, int64_t H, int64_t K, int64_t C, int64_t Cv, int64_t S, float scale,
                               int64_t threads) {
#if LATHE_LOOKS
  using namespace lathe;
  const auto* gaps = (const i64*)strides;
  const Place<const bf16> qs{(const bf16*)q, gaps[0], gaps[1]}, ks{(const bf16*)k, gaps[2], gaps[3]},
      vs{(const bf16*)v, gaps[4], gaps[5]}, gs{(const bf16*)g, gaps[6], gaps[7]};
  tasks((const i64*)seams, S, K, threads, [&](i64 start, i64 length, i64 head) {
    look_back({T, H, K, C, Cv, scale}, qs, ks, vs, gs, (const float*)sizes, (bf16*)by_q, (bf16*)by_k, (bf16*)by_v,
              (const int32_t*)oldest, start, length, head);
  });
#endif
}
