// A linear map of rows: y = x w^T + bias.
#include "products.h"

namespace lathe {

template <class E>
static void linear(const E* x, const E* w, const E* bias, E* y, i64 T, i64 N, i64 K, i64 stride, i64 threads) {
#pragma omp parallel num_threads(threads)
  {
    const Share rows(N, 16);
    const E* const matrix[] = {w};
    products(matrix, rows.first, rows.last, K, x, stride, T, [&](i64 t, i64 n, i64 count, float* const* sums) {
      rounded(sums[0], bias ? bias + n : nullptr, count, y + t * N + n);
    });
  }
}

}  // namespace lathe

// x: T rows of K numbers, `stride` apart. w: N K. bias: N, or null. y: T N. All of one type.
LATHE_API void lathe_product(const void* x, const void* w, const void* bias, void* y, int64_t T, int64_t N, int64_t K,
                             int64_t stride, int64_t type, int64_t threads) {
  using namespace lathe;
  if (type == 0)
    linear((const float*)x, (const float*)w, (const float*)bias, (float*)y, T, N, K, stride, threads);
  else
    linear((const bf16*)x, (const bf16*)w, (const bf16*)bias, (bf16*)y, T, N, K, stride, threads);
}
