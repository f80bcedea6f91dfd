// A linear map of rows: y = x w^T + bias.
#include <vector>

#include "words.h"

namespace lathe {

template <class E>
static void linear(const E* x, const E* w, const E* bias, E* y, i64 T, i64 N, i64 K, i64 stride, i64 threads) {
  thread_local std::vector<E> room;
  const bool laid = WORDS<E> && T > 1;
  if (laid) room.resize(size_t((T + 3) / 4 * 4 * worded(K)));
  const Rows<E> given = laid ? Rows<E>{room.data(), worded(K), true} : Rows<E>{x, stride, false};
#pragma omp parallel num_threads(threads)
  {
    if constexpr (WORDS<E>)
      if (laid) {
        const Share own(T, 4);
        lay(x, stride, own.first, own.last, K, (E*)given.x);
#pragma omp barrier
      }
    const Share rows(N, 16);
    const E* const matrix[] = {w};
    products(matrix, rows.first, rows.last, K, given, T, [&](i64 t, i64 n, i64 count, float* const* sums) {
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
