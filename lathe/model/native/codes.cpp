// Linear maps whose weights are codes, in panels.
#include "codes.h"

#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace lathe {

template <class E>
static void linear(const Matrix& m, const E* x, E* y, i64 T, i64 K, i64 threads) {
  const i64 step = blocks_of(K);
  thread_local std::vector<Chunk> room;
  if (i64(room.size()) < SLICE * step) room.resize(size_t(SLICE * step));
  Chunk* const codes = room.data();
#pragma omp parallel num_threads(threads)
  for (i64 start = 0; start < T; start += SLICE) {
    const i64 some = T - start < SLICE ? T - start : SLICE;
    const Share tokens(some);
    for (i64 t = tokens.first; t < tokens.last; t++) coded_row(x + (start + t) * K, K, codes + t * step);
#pragma omp barrier
    const Share rows(m.rows, ABREAST);
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

// Ask for large pages for memory that nothing has been written to: a thread reads it up to half as fast again. Where the
// system has none, nothing is lost.
LATHE_API void lathe_large_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  const uintptr_t page = 1 << 21, first = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t last = ((uintptr_t)memory + uintptr_t(bytes)) / page * page;
  if (first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// y = x w^T + bias. x: T rows of K numbers. panels: of N rows. bias: N, or null.
LATHE_API void lathe_coded_product(const void* x, const void* panels, const void* bias, void* y, int64_t T, int64_t N,
                                   int64_t K, int64_t kind, int64_t type, int64_t threads) {
  using namespace lathe;
  const Matrix m = {panels, bias, N, kind, nullptr, nullptr, nullptr, 0};
  if (type == 0)
    linear(m, (const float*)x, (float*)y, T, K, threads);
  else
    linear(m, (const bf16*)x, (bf16*)y, T, K, threads);
}
