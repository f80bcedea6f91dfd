// A residual layer of a decoder for any number of tokens: all its parts one after the other, in one flight of threads.
//
//     y = x + r after(mixer(before(x)))        then        y += r after(mlp(before(y)))
//
// where norms may be missing, and parallel layers give the MLP x and not y. Either half may be left out.
#include <vector>

#include "codes.h"
#include "meeting.h"
#include "norms.h"
#include "seeing.h"

namespace lathe {

// As the Python side fills them, all below.
struct Rope {
  i64 channels, interleaved;
};

struct Mixer {
  i64 there;
  Look look;
  Rope rope;  // channels: 0 for none
  Matrix q, k, v, o;
  Norm q_norm, k_norm;
  i64 normed;  // 0 not at all, 1 whole rows, 2 heads, 3 heads that have turned
  i64 own;     // whether each head has weights of its own
  double clip;  // 0 for none
  const void* sinks;
};

struct Mlp {
  i64 there, act, width;  // gated where `gate` has a weight
  Matrix gate, up, down;
};

struct Block {
  i64 width, parallel;
  double residual;
  Norm before_mixer, after_mixer, before_mlp, after_mlp;
  Mixer mixer;
  Mlp mlp;
};

struct Turn {  // what the tokens' positions say, as the Python side fills it
  const float *cos, *sin;  // T channels
  const float* warm;       // T, or null
};

// The activations of spec.Activation, in its order.
inline void activate(i64 act, float* x, i64 n) {
  switch (act) {
    case 0:
      for (i64 i = 0; i < n; i++) x[i] = x[i] / (1.0f + power(-x[i]));
      break;
    case 1:
      for (i64 i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
      break;
    case 2:
      for (i64 i = 0; i < n; i++)
        x[i] = x[i] / (1.0f + power(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
      break;
    case 3:
      for (i64 i = 0; i < n; i++) x[i] = x[i] > 0 ? x[i] : 0;
      break;
    default:
      for (i64 i = 0; i < n; i++) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
  }
}

// The first half of the product beside a matrix, for the tokens of this thread: low[t], `rank` numbers.
template <class E>
inline void lowered(const Matrix& m, const Rows<E>& x, i64 K, i64 T, float* low) {
  const Share own(T, 4);
  const E* const matrix[] = {(const E*)m.a};
  if (own.first == own.last) return;
  const Rows<E> rows = {x.x + own.first * x.stride, x.stride, x.laid};
  products(matrix, 0, m.rank, K, rows, own.last - own.first,
           [&](i64 t, i64 n, i64 count, float* const* sums) {
             const i64 at = (own.first + t) * m.rank + n;
             for (i64 r = 0; r < count; r++) low[at + r] = m.others && m.others[at + r] ? 0 : sums[0][r];
           });
}

// The second half, added to the sums of token t and rows from n on.
template <class E>
inline void beside(const Matrix& m, const float* low, i64 t, i64 n, i64 count, float* sums) {
  for (i64 j = 0; j < m.rank; j++) {
    const float by = low[t * m.rank + j];
    if (by == 0) continue;  // not multiplied: what another's weights make of it may be infinite
    const E* row = (const E*)m.b + j * m.rows + n;
#pragma omp simd
    for (i64 r = 0; r < count; r++) sums[r] += by * wide(row[r]);
  }
}

// What a matrix makes of rows: y[t] from row `first` to `last` of it.
template <class E>
inline void map_rows(const Matrix& m, i64 first, i64 last, i64 K, const Given<E>& x, i64 T, const float* low, E* y,
                     i64 to) {
  const Matrix* const matrix[] = {&m};
  const E* bias = (const E*)m.bias;
  multiply(matrix, first, last, K, x, T, [&](i64 t, i64 n, i64 count, float* const* sums) {
    if (m.rank) beside<E>(m, low, t, n, count, sums[0]);
    rounded(sums[0], bias ? bias + n : nullptr, count, y + t * to + n);
  });
}

// The same, with what is added to `in` and written to `out`.
template <class E>
inline void add_rows(const Matrix& m, i64 first, i64 last, i64 K, const Given<E>& x, i64 T, const float* low,
                     float residual, const E* in, E* out, i64 D) {
  const Matrix* const matrix[] = {&m};
  const E* bias = (const E*)m.bias;
  multiply(matrix, first, last, K, x, T, [&](i64 t, i64 n, i64 count, float* const* sums) {
    if (m.rank) beside<E>(m, low, t, n, count, sums[0]);
    const E *from = in + t * D + n, *more = bias ? bias + n : nullptr;
    E* to = out + t * D + n;
    if (more) {
#pragma omp simd
      for (i64 r = 0; r < count; r++) to[r] = narrow<E>(wide(from[r]) + residual * (sums[0][r] + wide(more[r])));
    } else {
#pragma omp simd
      for (i64 r = 0; r < count; r++) to[r] = narrow<E>(wide(from[r]) + residual * sums[0][r]);
    }
  });
}

// low: of `up`, and behind it of the gate.
template <class E>
inline void activated(const Mlp& mlp, i64 first, i64 last, i64 K, const Given<E>& x, i64 T, const float* low, E* y) {
  const E *gates = (const E*)mlp.gate.bias, *ups = (const E*)mlp.up.bias;
  const bool gated = mlp.gate.weight;
  const auto done = [&](i64 t, i64 n, i64 count, float* const* sums) {
    float gate[PANEL];  // of a plain MLP, what is activated itself
    if (mlp.up.rank) beside<E>(mlp.up, low, t, n, count, sums[gated]);
    if (mlp.gate.rank) beside<E>(mlp.gate, low + T * mlp.up.rank, t, n, count, sums[0]);
    const E* bias = gated ? gates : ups;
    for (i64 r = 0; r < count; r++) gate[r] = bias ? sums[0][r] + wide(bias[n + r]) : sums[0][r];
    activate(mlp.act, gate, count);
    if (gated)
      for (i64 r = 0; r < count; r++) gate[r] *= ups ? sums[1][r] + wide(ups[n + r]) : sums[1][r];
    rounded<E>(gate, nullptr, count, y + t * mlp.width + n);
  };
  if (mlp.gate.weight) {
    const Matrix* const both[] = {&mlp.gate, &mlp.up};
    multiply(both, first, last, K, x, T, done);
  } else {
    const Matrix* const one[] = {&mlp.up};
    multiply(one, first, last, K, x, T, done);
  }
}

// Heads of one token, normed, turned and warmed, where they lie or to `out`, `step` apart. x: count heads.
template <class E>
inline void turn_heads(const Mixer& m, const Norm& norm, const E* x, i64 count, const float* cos, const float* sin,
                       float warm, E* out, i64 step) {
  const i64 C = m.look.channels, n = m.rope.channels, half = n / 2;
  const Scale row = m.normed == 1 ? scale_of(norm, x, count * C) : Scale{0, 1};
  float v[WIDEST], turned[WIDEST];
  for (i64 h = 0; h < count; h++) {
    const E* head = x + h * C;
    const i64 from = m.own ? h * C : 0;
    if (m.normed == 1)
      apply<E>(norm, row, head, C, h * C, v);
    else
      for (i64 c = 0; c < C; c++) v[c] = wide(head[c]);
    if (m.clip != 0)
      for (i64 c = 0; c < C; c++) v[c] = std::min(std::max(v[c], -float(m.clip)), float(m.clip));
    if (m.normed == 2) apply<E>(norm, scale_of(norm, v, C), v, C, from, v);
    if (n && m.rope.interleaved) {
      for (i64 c = 0; c < n; c++) turned[c] = v[c] * cos[c] + v[c ^ 1] * sin[c];
      std::memcpy(v, turned, size_t(n) * sizeof(float));
    } else if (n) {
      for (i64 c = 0; c < half; c++) turned[c] = v[c] * cos[c] + v[c + half] * sin[c];
      for (i64 c = half; c < n; c++) turned[c] = v[c] * cos[c] + v[c - half] * sin[c];
      std::memcpy(v, turned, size_t(n) * sizeof(float));
    }
    if (m.normed == 3) apply<E>(norm, scale_of(norm, v, C), v, C, from, v);
    for (i64 c = 0; c < C; c++) out[h * step + c] = narrow<E>(v[c] * warm);
  }
}

// The rows of a matrix that a thread takes, of whose panels the first is number `from` among those of several matrices.
inline Share part(const Share& panels, i64 from, i64 rows) {
  Share own = panels;
  own.first = std::min(std::max(panels.first - from, i64(0)) * ABREAST, rows);
  own.last = std::min(std::max(panels.last - from, i64(0)) * ABREAST, rows);
  return own;
}

// What a layer needs of a pass, beside what it is told: who looks together, and where what it makes lies in the room.
template <class E> struct Need {
  std::vector<Group> groups;
  i64 rows, most_chunks;  // rows: of a task of looking
  bool split;             // few look span by span, so that there is work for all threads; many, at all they see
  size_t words, normed, heads, seen, after, inner, codes, queries, sums, parts, low, bytes = 0;

  Need(const Block& b, const Pass& p) {
    const Mixer& m = b.mixer;
    const i64 T = p.tokens, D = b.width, C = m.look.channels, H = m.look.heads, K = m.look.kv_heads, F = b.mlp.width;
    const auto chunks = [](const Matrix& matrix, i64 width) { return matrix.kind ? blocks_of(width) : 0; };
    most_chunks = std::max({chunks(m.q, D), chunks(m.o, H * C), chunks(b.mlp.up, D), chunks(b.mlp.down, F)});
    if (m.there) grouped(m.look, p, groups);
    const i64 G = i64(groups.size());
    split = G * K < 8 * p.threads;
    rows = std::max(TOGETHER, m.there ? H / K : 1);
    const i64 spans = G ? (groups.back().rows_before + groups.back().spans() * groups.back().count) * H : 0;
    const i64 looked = split ? spans : 2 * p.threads * rows;
    const i64 ranks =
        std::max({m.q.rank + m.k.rank + m.v.rank, m.o.rank, b.mlp.gate.rank + b.mlp.up.rank, b.mlp.down.rank});
    const i64 widest = std::max({m.there ? worded(std::max(D, H * C)) : 0, b.mlp.there ? worded(std::max(D, F)) : 0});
    words = place<E>(WORDS<E> && T > 1 ? (T + 3) / 4 * 4 * widest : 0);
    normed = place<E>(T == 1 ? D * p.threads : T * D);
    heads = place<E>(T * (H + 2 * K) * C);
    seen = place<E>(T * H * C);
    after = place<E>(T * D);
    inner = place<E>(T * F);
    codes = place<Chunk>((T == 1 ? p.threads : T) * most_chunks);
    queries = place<E>(p.threads * rows * C);
    sums = place<float>(looked * padded(C));
    parts = place<Part>(looked);
    low = place<float>(T * ranks);
  }

  template <class X> size_t place(i64 count) {
    const size_t at = bytes;
    bytes = (bytes + size_t(count) * sizeof(X) + 63) / 64 * 64;
    return at;
  }
};

// What each thread of a flight does. S: what the cache's rows are of. base: the room.
template <class E, class S>
static void block(const Block& b, const Pass& p, const Need<E>& need, char* base, const E* x, E* y,
                  const Cache<S>& cache, const Turn& turn, Meeting& meeting) {
  const Mixer& m = b.mixer;
  const i64 T = p.tokens, D = b.width, C = m.look.channels, H = m.look.heads, K = m.look.kv_heads, F = b.mlp.width;
  const i64 across = (H + 2 * K) * C, most_chunks = need.most_chunks;
  const float r = float(b.residual);
  E *const words = (E*)(base + need.words), *const normed = (E*)(base + need.normed),
           *const heads = (E*)(base + need.heads), *const seen = (E*)(base + need.seen),
           *const after = (E*)(base + need.after), *const inner = (E*)(base + need.inner),
           *const queries = (E*)(base + need.queries);
  Chunk* const codes = (Chunk*)(base + need.codes);
  float *const sums = (float*)(base + need.sums), *const low = (float*)(base + need.low);
  Part* const parts = (Part*)(base + need.parts);

  // Rows of `width` numbers as some matrices take them: normed, if they are to be, and as words or codes; and the first
  // halves of the products beside these. One row is made ready by every thread for itself: sooner than waiting for another.
  const auto given = [&](const Norm& norm, std::initializer_list<const Matrix*> all, const E* from, i64 width) {
    const i64 kind = (*all.begin())->kind, alone = T == 1 ? omp_get_thread_num() : 0;
    const Share share(T, 4);
    const i64 first = T == 1 ? 0 : share.first, last = T == 1 ? 1 : share.last;
    i64 rank = 0;
    for (const Matrix* matrix : all) rank += matrix->rank;
    const bool laid = WORDS<E> && T > 1 && (!kind || rank);
    if (norm.kind) {
      E* to = normed + alone * D;
      for (i64 t = first; t < last; t++) norm_row(norm, from + t * D, D, to + t * D);
      from = to;
    }
    Given<E> rows = {{from, width, false}, nullptr};
    if (kind) {
      Chunk* to = codes + alone * most_chunks;
      for (i64 t = first; t < last; t++) coded_row(from + t * width, width, to + t * blocks_of(width));
      rows.codes = to;
    }
    if constexpr (WORDS<E>)
      if (laid) {
        lay(from, width, first, last, width, words);
        rows.rows = {words, worded(width), true};
      }
    if (T > 1 && (norm.kind || kind || laid)) meeting.wait();
    float* to = low;
    for (const Matrix* matrix : all) {
      if (matrix->rank) lowered(*matrix, rows.rows, width, T, to);
      to += T * matrix->rank;
    }
    if (rank) meeting.wait();
    return rows;
  };
  // What a matrix makes of `rows` of `width` numbers, added to `in`.
  const auto added = [&](const Matrix& matrix, const Norm& norm, const E* from, i64 width, const E* in) {
    const Share share(D, 16);
    const Given<E> rows = given({}, {&matrix}, from, width);
    if (!norm.kind) {
      add_rows(matrix, share.first, share.last, width, rows, T, low, r, in, y, D);
    } else {
      map_rows(matrix, share.first, share.last, width, rows, T, low, after, D);
      meeting.wait();
      const Share own(T);
      for (i64 t = own.first; t < own.last; t++) {
        norm_row(norm, after + t * D, D, after + t * D);
        for (i64 c = t * D; c < (t + 1) * D; c++) y[c] = narrow<E>(wide(in[c]) + r * wide(after[c]));
      }
    }
    meeting.wait();
  };

  if (m.there) {
    const Given<E> rows = given(b.before_mixer, {&m.q, &m.k, &m.v}, x, D);
    const i64 wide_q = panels_of(H * C), wide_k = panels_of(K * C);
    const Share share(wide_q + 2 * wide_k);
    const Share q = part(share, 0, H * C), k = part(share, wide_q, K * C), v = part(share, wide_q + wide_k, K * C);
    map_rows(m.q, q.first, q.last, D, rows, T, low, heads, across);
    map_rows(m.k, k.first, k.last, D, rows, T, low + T * m.q.rank, heads + H * C, across);
    map_rows(m.v, v.first, v.last, D, rows, T, low + T * (m.q.rank + m.k.rank), heads + (H + K) * C, across);
    meeting.wait();
    const Share tokens(T);
    for (i64 t = tokens.first; t < tokens.last; t++) {
      E *own = heads + t * across, *keys = own + H * C, *values = keys + K * C;
      S *key = cache.keys + p.write[t] * cache.key_slot, *value = cache.values + p.write[t] * cache.value_slot;
      const float *cos = turn.cos + t * m.rope.channels, *sin = turn.sin + t * m.rope.channels;
      turn_heads(m, m.q_norm, own, H, cos, sin, turn.warm ? turn.warm[t] : 1.0f, own, C);
      turn_heads(m, m.k_norm, keys, K, cos, sin, 1.0f, keys, C);
      if (m.clip != 0)
        for (i64 c = 0; c < K * C; c++)
          values[c] = narrow<E>(std::min(std::max(wide(values[c]), -float(m.clip)), float(m.clip)));
      for (i64 h = 0; h < K; h++) {
        keep(keys + h * C, C, key + h * cache.key_head);
        keep(values + h * C, C, value + h * cache.value_head);
      }
    }
    meeting.wait();
    if (need.split)
      look_in_spans(m.look, m.sinks, p, cache, need.groups, heads, queries, sums, parts, seen, meeting);
    else
      look_whole(m.look, m.sinks, p, cache, need.groups, heads, queries, sums, parts, seen);
    meeting.wait();
    added(m.o, b.after_mixer, seen, H * C, x);
  }
  if (b.mlp.there) {
    const Given<E> rows = given(b.before_mlp, {&b.mlp.up, &b.mlp.gate}, m.there && !b.parallel ? y : x, D);
    const Share share(F, 16);
    activated(b.mlp, share.first, share.last, D, rows, T, low, inner);
    meeting.wait();
    added(b.mlp.down, b.after_mlp, inner, F, m.there ? y : x);
  }
}

// A layer, and where its keys and values are. steps: of both, how many numbers lie between slots and between heads.
struct Layer {  // as the Python side fills it
  const Block* block;
  void *keys, *values;
  const i64* steps;
  i64 turn;  // number among those of the pass
};

template <class E, class S>
static void run(const Layer* layers, i64 count, const Norm* last, const Turn* turns, const Pass& p, const E* x, E* y) {
  thread_local std::vector<E> kept;  // every second layer's, so that none overwrites what it reads
  thread_local std::vector<char> room;
  const i64 D = layers[0].block->width;
  if (count > 1) kept.resize(size_t(p.tokens * D));
  std::vector<Need<E>> needs;
  needs.reserve(size_t(count));
  size_t bytes = 64;
  for (i64 i = 0; i < count; i++) bytes = std::max(bytes, needs.emplace_back(*layers[i].block, p).bytes + 64);
  if (room.size() < bytes) room.resize(bytes);
  char* const base = room.data() + (64 - uintptr_t(room.data()) % 64) % 64;  // vectors in lines of a cache
  E* const between = kept.data();  // the caller's, in all threads
  Meeting meeting;
#pragma omp parallel num_threads(p.threads)
  {
    const E* from = x;
    for (i64 i = 0; i < count; i++) {
      E* to = (count - i) % 2 ? y : between;
      const i64* steps = layers[i].steps;
      const Cache<S> cache = {(S*)layers[i].keys, (S*)layers[i].values, steps[0], steps[1], steps[2], steps[3]};
      block<E, S>(*layers[i].block, p, needs[size_t(i)], base, from, to, cache, turns[layers[i].turn], meeting);
      from = to;
    }
    const Share own(last ? p.tokens : 0);
    for (i64 t = own.first; t < own.last; t++) norm_row(*last, y + t * D, D, y + t * D);
  }
}

}  // namespace lathe

// Layers, one after the other, and a norm behind the last, or null. x, y: T D, of one type with all weights, and with all
// caches, unless these are `coded`.
LATHE_API void lathe_layers(const void* layers, int64_t count, const void* norm, const void* turns, const void* pass,
                            const void* x, void* y, int64_t type, int64_t coded) {
  using namespace lathe;
  if (type == 0) {
    const auto of = coded ? run<float, Code> : run<float, float>;
    of((const Layer*)layers, count, (const Norm*)norm, (const Turn*)turns, *(const Pass*)pass, (const float*)x, (float*)y);
  } else {
    const auto of = coded ? run<bf16, Code> : run<bf16, bf16>;
    of((const Layer*)layers, count, (const Norm*)norm, (const Turn*)turns, *(const Pass*)pass, (const bf16*)x, (bf16*)y);
  }
}
