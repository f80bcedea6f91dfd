// Linear maps whose weights are codes, and codes as numbers again.
#include "codes.h"

#include <vector>

namespace lathe {

constexpr i64 SLICE = 64;  // rows of x whose codes stay near a core while all weights pass by

template <class E>
static void linear(const Matrix& m, const E* x, E* y, i64 T, i64 K, i64 threads) {
  const i64 step = chunks_of(m.kind, K);
  thread_local std::vector<Chunk> room;
  if (i64(room.size()) < SLICE * step) room.resize(size_t(SLICE * step));
  Chunk* const codes = room.data();
#pragma omp parallel num_threads(threads)
  for (i64 start = 0; start < T; start += SLICE) {
    const i64 some = T - start < SLICE ? T - start : SLICE;
    const Share tokens(some);
    for (i64 t = tokens.first; t < tokens.last; t++) coded_row(m.kind, x + (start + t) * K, K, codes + t * step);
#pragma omp barrier
    const Share rows(m.rows, 16);
    const Matrix* const matrix[] = {&m};
    code_products(matrix, rows.first, rows.last, K, codes, some, [&](i64 t, i64 n, i64 count, float* const* sums) {
      const E* bias = (const E*)m.bias;
      E* to = y + (start + t) * m.rows + n;
      for (i64 r = 0; r < count; r++) to[r] = narrow<E>(bias ? sums[0][r] + wide(bias[n + r]) : sums[0][r]);
    });
#pragma omp barrier
  }
}

}  // namespace lathe

// Whether this processor multiplies codes.
LATHE_API int64_t lathe_codes() {
#ifdef LATHE_CODES
  return 1;
#else
  return 0;
#endif
}

// y = x w^T + bias. x: T rows of K numbers. codes, scales: of N rows, as codes.h says of each kind. bias: N, or null.
LATHE_API void lathe_coded_product(const void* x, const void* codes, const void* scales, const void* bias, void* y,
                                   int64_t T, int64_t N, int64_t K, int64_t kind, int64_t type, int64_t threads) {
  using namespace lathe;
  const Matrix m = {codes, bias, scales, N, kind};
  if (type == 0)
    linear(m, (const float*)x, (float*)y, T, K, threads);
  else
    linear(m, (const bf16*)x, (bf16*)y, T, K, threads);
}
