// Norms of rows: RMSNorm and LayerNorm, with weights or without, computed in float32 and rounded once.
#pragma once
#include "lanes.h"

namespace lathe {

struct Norm {  // as the Python side fills it
  i64 kind;    // 0 none, 1 RMSNorm, 2 LayerNorm
  const void* weight;
  const void* bias;
  double eps, offset;  // offset: added to the weight
};

// What a row is shifted and multiplied by before its weights.
struct Scale {
  float mean, inverse;
};

template <class E> inline Scale scale_of(const Norm& norm, const E* x, i64 n) {
  float sum = 0, squares = 0;
  if (norm.kind == 2) {
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < n; i++) sum += wide(x[i]);
  }
  const float mean = sum / float(n);
#pragma omp simd reduction(+ : squares)
  for (i64 i = 0; i < n; i++) {
    const float d = wide(x[i]) - mean;
    squares += d * d;
  }
  return {mean, 1.0f / std::sqrt(squares / float(n) + float(norm.eps))};
}

// `from`: where the row's weights begin among all. E: of x; W: of the weights; y may be x.
template <class W, class E, class Y>
inline void apply(const Norm& norm, Scale s, const E* x, i64 n, i64 from, Y* y) {
  const W* weight = norm.weight ? (const W*)norm.weight + from : nullptr;
  const W* bias = norm.bias ? (const W*)norm.bias + from : nullptr;
  const float offset = float(norm.offset);
  if (weight && bias) {
    for (i64 i = 0; i < n; i++)
      y[i] = narrow<Y>((wide(x[i]) - s.mean) * s.inverse * (offset + wide(weight[i])) + wide(bias[i]));
  } else if (weight) {
    for (i64 i = 0; i < n; i++) y[i] = narrow<Y>((wide(x[i]) - s.mean) * s.inverse * (offset + wide(weight[i])));
  } else {
    for (i64 i = 0; i < n; i++) y[i] = narrow<Y>((wide(x[i]) - s.mean) * s.inverse);
  }
}

template <class E> inline void norm_row(const Norm& norm, const E* x, i64 n, E* y) {
  apply<E>(norm, scale_of(norm, x, n), x, n, 0, y);
}

}  // namespace lathe
