// The parts of a training step between its matrix products, and their gradients: each reads and writes memory once.
//
// Tensors are float32 or bfloat16, as `type` numbers say; sums are float32, and results are rounded once. Where rows of
// one tensor are not next to each other, a stride says how many numbers apart they are.
#include <vector>

#include "lanes.h"

namespace lathe {

// ---- norm -------------------------------------------------------------------------------------------------------------
template <class X, class W, class Y>
static void norm(const X* x, const W* w, Y* y, float* inverse, i64 rows, i64 n, float eps, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 row = 0; row < rows; row++) {
    const X* from = x + row * n;
    Y* to = y + row * n;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (i64 i = 0; i < n; i++) squares += wide(from[i]) * wide(from[i]);
    const float scale = 1.0f / std::sqrt(squares / n + eps);
    inverse[row] = scale;
    if (w) {
#pragma omp simd
      for (i64 i = 0; i < n; i++) to[i] = narrow<Y>(wide(from[i]) * scale * wide(w[i]));
    } else {
#pragma omp simd
      for (i64 i = 0; i < n; i++) to[i] = narrow<Y>(wide(from[i]) * scale);
    }
  }
}

// With h = g w, g being the gradient by y: by x it is h / rms - x mean(h x) / rms^3, by w the sum over rows of g x / rms,
// of which every part of the rows has its own, so that it does not depend on the number of threads.
template <class X, class W, class Y>
static void norm_back(const X* x, const W* w, const float* inverse, const Y* g, X* by_x, float* by_w, i64 rows, i64 n,
                      i64 parts, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 part = 0; part < parts; part++) {
    float* sum = by_w ? by_w + part * n : nullptr;
    if (sum) std::memset(sum, 0, n * sizeof(float));
    for (i64 row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
      const X* xs = x + row * n;
      const Y* gs = g + row * n;
      X* to = by_x + row * n;
      const float scale = inverse[row];
      float along = 0;
      if (sum) {
#pragma omp simd
        for (i64 i = 0; i < n; i++) sum[i] += wide(gs[i]) * wide(xs[i]) * scale;
      }
      if (w) {
#pragma omp simd reduction(+ : along)
        for (i64 i = 0; i < n; i++) along += wide(gs[i]) * wide(w[i]) * wide(xs[i]);
        const float pull = along / n * scale * scale * scale;
#pragma omp simd
        for (i64 i = 0; i < n; i++) to[i] = narrow<X>(wide(gs[i]) * wide(w[i]) * scale - wide(xs[i]) * pull);
      } else {
#pragma omp simd reduction(+ : along)
        for (i64 i = 0; i < n; i++) along += wide(gs[i]) * wide(xs[i]);
        const float pull = along / n * scale * scale * scale;
#pragma omp simd
        for (i64 i = 0; i < n; i++) to[i] = narrow<X>(wide(gs[i]) * scale - wide(xs[i]) * pull);
      }
    }
  }
}

// ---- turn -------------------------------------------------------------------------------------------------------------
template <class X>
static void turn(const X* x, const float* cos, const float* sin, X* y, i64 T, i64 H, i64 C, i64 row, i64 head,
                 float sign, i64 interleaved, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 t = 0; t < T; t++) {
    const float *c = cos + t * C, *s = sin + t * C;
    for (i64 h = 0; h < H; h++) {
      const X* from = x + t * row + h * head;
      X* to = y + (t * H + h) * C;
      if (interleaved) {
#pragma omp simd
        for (i64 i = 0; i < C; i += 2) {
          const float a = wide(from[i]), b = wide(from[i + 1]);
          to[i] = narrow<X>(a * c[i] + b * (sign * s[i]));
          to[i + 1] = narrow<X>(b * c[i + 1] + a * (sign * s[i + 1]));
        }
      } else {
        const i64 half = C / 2;
#pragma omp simd
        for (i64 i = 0; i < half; i++) {
          const float a = wide(from[i]), b = wide(from[half + i]);
          to[i] = narrow<X>(a * c[i] + b * (sign * s[i]));
          to[half + i] = narrow<X>(b * c[half + i] + a * (sign * s[half + i]));
        }
      }
    }
  }
}

// ---- gate -------------------------------------------------------------------------------------------------------------
constexpr i64 PIECE = 4096;  // numbers that a thread takes at once

template <class X> static void gate(const X* x, const X* up, X* y, i64 n, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 first = 0; first < n; first += PIECE) {
    const i64 last = first + PIECE < n ? first + PIECE : n;
#pragma omp simd
    for (i64 i = first; i < last; i++) {
      const float a = wide(x[i]);
      y[i] = narrow<X>(a / (1.0f + power(-a)) * wide(up[i]));
    }
  }
}

template <class X> static void gate_back(const X* x, const X* up, const X* g, X* by_x, X* by_up, i64 n, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 first = 0; first < n; first += PIECE) {
    const i64 last = first + PIECE < n ? first + PIECE : n;
#pragma omp simd
    for (i64 i = first; i < last; i++) {
      const float a = wide(x[i]), pull = wide(g[i]), sigmoid = 1.0f / (1.0f + power(-a));
      by_up[i] = narrow<X>(pull * a * sigmoid);
      by_x[i] = narrow<X>(pull * wide(up[i]) * sigmoid * (1.0f + a * (1.0f - sigmoid)));
    }
  }
}

// ---- judgement ----------------------------------------------------------------------------------------------------------
// Each row's cross entropy, and z times the square of the logarithm of its denominator; scores become their gradients.
template <class X>
static void judge(X* scores, const i64* targets, float* losses, i64 rows, i64 V, float z, i64 threads) {
  std::vector<float> room(threads * V);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 row = 0; row < rows; row++) {
    float* powers = room.data() + omp_get_thread_num() * V;
    X* s = scores + row * V;
    float most = wide(s[0]), sum = 0;
#pragma omp simd reduction(max : most)
    for (i64 i = 0; i < V; i++) most = wide(s[i]) > most ? wide(s[i]) : most;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < V; i++) {
      const float share = power(wide(s[i]) - most);
      powers[i] = share;
      sum += share;
    }
    const float size = most + std::log(sum), chosen = wide(s[targets[row]]);
    losses[row] = size - chosen + z * size * size;
    const float slope = 1.0f + 2.0f * z * size, scale = slope / sum;
    const float of_target = powers[targets[row]] * scale - 1.0f;
#pragma omp simd
    for (i64 i = 0; i < V; i++) s[i] = narrow<X>(powers[i] * scale);
    s[targets[row]] = narrow<X>(of_target);
  }
}

static void add(float* sum, const bf16* part, i64 n, i64 threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (i64 i = 0; i < n; i++) sum[i] += wide(part[i]);
}

// ---- AdamW -------------------------------------------------------------------------------------------------------------
// Weights are the upper halves of float32 numbers, to the nearest, and `lower` is what is missing.
template <class G>
static void adamw(uint16_t* upper, int16_t* lower, bf16* mean, float* square, const G* slope, i64 n, float keep,
                  float rate, float new1, float new2, float root, float eps, i64 threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 first = 0; first < n; first += PIECE) {
    const i64 last = first + PIECE < n ? first + PIECE : n;
#pragma omp simd
    for (i64 i = first; i < last; i++) {
      const float g = wide(slope[i]);
      const float m = wide(mean[i]) + new1 * (g - wide(mean[i])), v = square[i] + new2 * (g * g - square[i]);
      const uint32_t whole = (uint32_t(upper[i]) << 16) + uint32_t(int32_t(lower[i]));
      float weight;
      std::memcpy(&weight, &whole, 4);
      weight = weight * keep - rate * m / (std::sqrt(v) * root + eps);
      int32_t bits;
      std::memcpy(&bits, &weight, 4);
      const int32_t near = (bits + 0x8000) >> 16;
      upper[i] = uint16_t(near);
      lower[i] = int16_t(bits - near * 65536);
      mean[i] = narrow<bf16>(m);
      square[i] = v;
    }
  }
}

}  // namespace lathe

// f, given a number of the type that is called `type`.
template <class F> static void by_type(int64_t type, F f) {
  if (type == 0)
    f(float{});
  else
    f(lathe::bf16{});
}

// x, y: rows n, of types X and Y; w: n, of type W, or null. inverse: rows, float32: one over each row's root mean square.
LATHE_API void lathe_norm(const void* x, const void* w, void* y, void* inverse, int64_t rows, int64_t n, float eps,
                          int64_t X, int64_t W, int64_t Y, int64_t threads) {
  by_type(X, [&](auto a) {
    by_type(W, [&](auto b) {
      by_type(Y, [&](auto c) {
        lathe::norm((const decltype(a)*)x, (const decltype(b)*)w, (decltype(c)*)y, (float*)inverse, rows, n, eps, threads);
      });
    });
  });
}

// g: the gradient by y. by_x: of type X. by_w: parts n, float32, whose sum is the gradient by w, or null.
LATHE_API void lathe_norm_back(const void* x, const void* w, const void* inverse, const void* g, void* by_x, void* by_w,
                               int64_t rows, int64_t n, int64_t parts, int64_t X, int64_t W, int64_t Y, int64_t threads) {
  by_type(X, [&](auto a) {
    by_type(W, [&](auto b) {
      by_type(Y, [&](auto c) {
        lathe::norm_back((const decltype(a)*)x, (const decltype(b)*)w, (const float*)inverse, (const decltype(c)*)g,
                         (decltype(a)*)by_x, (float*)by_w, rows, n, parts, threads);
      });
    });
  });
}

// x: T H C, whose tokens are `row` and heads `head` numbers apart; y: T H C without gaps. cos, sin: T C, float32. sign: 1,
// or -1 to turn back.
LATHE_API void lathe_turn(const void* x, const void* cos, const void* sin, void* y, int64_t T, int64_t H, int64_t C,
                          int64_t row, int64_t head, float sign, int64_t interleaved, int64_t type, int64_t threads) {
  by_type(type, [&](auto a) {
    using X = decltype(a);
    lathe::turn((const X*)x, (const float*)cos, (const float*)sin, (X*)y, T, H, C, row, head, sign, interleaved, threads);
  });
}

// y = silu(x) up, n numbers each.
LATHE_API void lathe_gate(const void* x, const void* up, void* y, int64_t n, int64_t type, int64_t threads) {
  by_type(type, [&](auto a) {
    using X = decltype(a);
    lathe::gate((const X*)x, (const X*)up, (X*)y, n, threads);
  });
}

LATHE_API void lathe_gate_back(const void* x, const void* up, const void* g, void* by_x, void* by_up, int64_t n,
                               int64_t type, int64_t threads) {
  by_type(type, [&](auto a) {
    using X = decltype(a);
    lathe::gate_back((const X*)x, (const X*)up, (const X*)g, (X*)by_x, (X*)by_up, n, threads);
  });
}

// scores: rows V, which become the gradient of the losses by them. targets: rows, int64. losses: rows, float32.
LATHE_API void lathe_judge(void* scores, const void* targets, void* losses, int64_t rows, int64_t V, float z,
                           int64_t type, int64_t threads) {
  by_type(type, [&](auto a) {
    lathe::judge((decltype(a)*)scores, (const int64_t*)targets, (float*)losses, rows, V, z, threads);
  });
}

// sum += part: n numbers, float32 and bfloat16.
LATHE_API void lathe_add(void* sum, const void* part, int64_t n, int64_t threads) {
  lathe::add((float*)sum, (const lathe::bf16*)part, n, threads);
}

// A step of n weights by the gradient `slope`: kept times `keep`, minus rate * mean / (sqrt(square) * root + eps). new1,
// new2: how much of the means is new.
LATHE_API void lathe_adamw(void* upper, void* lower, void* mean, void* square, const void* slope, int64_t n, float keep,
                           float rate, float new1, float new2, float root, float eps, int64_t type, int64_t threads) {
  by_type(type, [&](auto a) {
    lathe::adamw((uint16_t*)upper, (int16_t*)lower, (lathe::bf16*)mean, (float*)square, (const decltype(a)*)slope, n,
                 keep, rate, new1, new2, root, eps, threads);
  });
}
