// The tokens of a pass, which have their queries and whose keys are in the cache, gather what they see: neighbours of one
// sequence together, by all threads of a flight.
#pragma once
#include <vector>

#include "attention.h"
#include "meeting.h"

namespace lathe {

constexpr i64 TOGETHER = 48;  // heads that look at the same keys at once: of several tokens, where each has fewer

// Tokens that are neighbours in one sequence, as many together as have TOGETHER heads, or else one.
inline void grouped(const Look& look, const Pass& p, std::vector<Group>& groups) {
  const i64 most = std::max(TOGETHER / (look.heads / look.kv_heads), i64(1));
  groups.clear();
  for (i64 t = 0; t < p.tokens; t++) {
    const bool next = t && p.starts[t] == p.starts[t - 1] && p.tables[t] == p.tables[t - 1] &&
                      p.lengths[t] == p.lengths[t - 1] + 1;
    if (next && groups.back().count < most) {
      groups.back().count++;
      groups.back().length++;
    } else {
      groups.push_back({t, 1, oldest(look, p.lengths[t]), p.lengths[t], 0, 0});
    }
  }
  for (size_t g = 1; g < groups.size(); g++) {
    const Group& before = groups[g - 1];
    groups[g].spans_before = before.spans_before + before.spans();
    groups[g].rows_before = before.rows_before + before.spans() * before.count;
  }
}

// The queries of a group for one head of keys, side by side. heads: T rows of all heads.
template <class E>
inline const E* queries_of(const Look& look, const Group& group, i64 kv, const E* heads, E* room) {
  const i64 C = look.channels, K = look.kv_heads, each = look.heads / K, across = (look.heads + 2 * K) * C;
  const E* from = heads + group.first * across + kv * each * C;
  if (group.count == 1) return from;
  for (i64 i = 0; i < group.count; i++) std::memcpy(room + i * each * C, from + i * across, size_t(each * C) * sizeof(E));
  return room;
}

// What a head looks back on before it has seen anything: a score that takes its share and gives nothing, or none.
template <class E> inline Part nothing(const void* sinks, i64 head) {
  return sinks ? Part{wide(((const E*)sinks)[head]), 1} : Part{-INFINITY, 0};
}

// seen: T H C, what all heads gather. A task is a group of tokens and a head of keys.
template <class E, class S>
inline void look_whole(const Look& look, const void* sinks, const Pass& p, const Cache<S>& cache,
                       const std::vector<Group>& groups, const E* heads, E* queries, float* sums, Part* parts, E* seen) {
  const i64 C = look.channels, H = look.heads, K = look.kv_heads, each = H / K, row = padded(C);
  const i64 rows = std::max(TOGETHER, each), own = omp_get_thread_num() * rows, tasks = i64(groups.size()) * K;
  float *const y = sums + 2 * own * row, *const further = y + rows * row;
  Part *const so_far = parts + 2 * own, *const part = so_far + rows;
#pragma omp for schedule(dynamic) nowait
  for (i64 task = tasks - 1; task >= 0; task--) {  // those with the longest past first, of a prompt
    const Group& group = groups[size_t(task / K)];
    const i64 kv = task % K, M = group.count * each;
    const E* q = queries_of(look, group, kv, heads, queries + own * C);
    for (i64 i = 0; i < M; i++) so_far[i] = nothing<E>(sinks, kv * each + i % each);
    std::fill(y, y + M * row, 0.0f);
    for (i64 span = 0; span < group.spans(); span++) {
      look_at(look, p, cache, group, kv, each, span, q, further, part);
      for (i64 i = 0; i < M; i++) together(so_far[i], y + i * row, part[i], further + i * row, C);
    }
    for (i64 i = 0; i < M; i++)
      divided(y + i * row, so_far[i].total, C, seen + ((group.first + i / each) * H + kv * each + i % each) * C);
  }
}

// The same, where a task is one span of what the group sees.
template <class E, class S>
inline void look_in_spans(const Look& look, const void* sinks, const Pass& p, const Cache<S>& cache,
                          const std::vector<Group>& groups, const E* heads, E* queries, float* sums, Part* parts,
                          E* seen, Meeting& meeting) {
  const i64 C = look.channels, H = look.heads, K = look.kv_heads, each = H / K, row = padded(C);
  const i64 rows = std::max(TOGETHER, each), own = omp_get_thread_num() * rows;
  const Group& last = groups.back();
  const i64 spans = last.spans_before + last.spans();
#pragma omp for schedule(dynamic) nowait
  for (i64 task = 0; task < spans * K; task++) {
    size_t g = 0;
    while (groups[g].spans_before + groups[g].spans() <= task / K) g++;
    const Group& group = groups[g];
    const i64 kv = task % K, span = task / K - group.spans_before;
    const i64 at = group.rows_before * H + (span * K + kv) * group.count * each;
    look_at(look, p, cache, group, kv, each, span, queries_of(look, group, kv, heads, queries + own * C),
            sums + at * row, parts + at);
  }
  meeting.wait();
#pragma omp for nowait
  for (i64 i = 0; i < p.tokens * H; i++) {
    size_t g = 0;
    while (groups[g].first + groups[g].count <= i / H) g++;
    const Group& group = groups[g];
    const i64 head = i % H, kv = head / each;
    Part so_far = nothing<E>(sinks, head);
    float y[WIDEST] = {};
    for (i64 span = 0; span < group.spans(); span++) {
      const i64 at = group.rows_before * H + ((span * K + kv) * group.count + i / H - group.first) * each + head % each;
      together(so_far, y, parts[at], sums + at * row, C);
    }
    divided(y, so_far.total, C, seen + i * C);
  }
}

}  // namespace lathe
