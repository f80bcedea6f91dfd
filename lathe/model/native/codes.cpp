// Linear maps whose weights are codes, and how these come into panels and out of them.
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

// A row of codes and scales as quantize.py has them, and its lane of a panel: one becomes the other. Of two codes in a
// byte of such a row, the first is in its upper half.
struct Lane {
  i64 kind, K;
  uint8_t *codes, *scales, *panel;  // panel: where the lane's first four bytes are

  i64 width() const { return kind == 2 ? blocks_of(K) * 64 : kind == 3 ? (K + 31) / 32 * 32 : K; }
  i64 row_bytes() const { return kind == 2 || kind == 3 ? width() / 2 : K; }
  i64 count() const { return kind == 1 ? 1 : kind == 2 ? blocks_of(K) : (K + 31) / 32; }  // of scales
  i64 size() const { return kind <= 2 ? 4 : 2; }                                          // of one

  void move(bool back) const {
    const bool half = kind == 2 || kind == 3;
    uint8_t* const blocks = panel + (kind == 1 ? 64 : 0) + head_bytes(kind);
    for (i64 k = 0; k < width(); k++) {
      const i64 in = k % BLOCK_OF, each = half ? 8 : 4;
      uint8_t& cell = blocks[k / BLOCK_OF * block_bytes(kind) + in / each * 64 + in % 4];
      if (!half) {
        if (back)
          codes[k] = cell ^ 0x80;
        else
          cell = codes[k] ^ 0x80;
        continue;
      }
      const int there = in % 8 < 4 ? 0 : 4, here = k % 2 ? 0 : 4;
      if (back)
        codes[k / 2] = uint8_t((codes[k / 2] & (15 << (4 - here))) | ((cell >> there) & 15) << here);
      else
        cell = uint8_t((cell & (15 << (4 - there))) | ((codes[k / 2] >> here) & 15) << there);
    }
  }

  // lane: which of a panel's this one is.
  void move_scales(bool back, i64 lane) const {
    uint8_t* const first = panel - 4 * lane + size() * lane;
    for (i64 i = 0; i < count(); i++) {
      uint8_t* cell = first + (kind <= 2 ? i * block_bytes(kind) : i / 2 * block_bytes(kind) + i % 2 * 32);
      std::memcpy(back ? scales + i * size() : cell, back ? cell : scales + i * size(), size_t(size()));
    }
  }
};

}  // namespace lathe

// Whether this processor multiplies codes.
LATHE_API int64_t lathe_codes() {
#ifdef LATHE_CODES
  return 1;
#else
  return 0;
#endif
}

// Ask for large pages for memory that nothing has been written to: a thread reads it up to half as fast again. Where the
// system has none, nothing is lost.
LATHE_API void lathe_large_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  const uintptr_t page = 1 << 21, first = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t last = ((uintptr_t)memory + uintptr_t(bytes)) / page * page;
  if (first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);
#endif
}

// Bytes of a panel of K columns.
LATHE_API void lathe_panel_bytes(void* answer, int64_t K, int64_t kind) {
  *(int64_t*)answer = lathe::panel_bytes(kind, K);
}

// Codes and scales of N rows become panels; `back`: panels become codes and scales.
LATHE_API void lathe_panels(void* codes, void* scales, void* panels, int64_t N, int64_t K, int64_t kind, int64_t back,
                            int64_t threads) {
  using namespace lathe;
  const i64 bytes = panel_bytes(kind, K);
#pragma omp parallel for num_threads(threads)
  for (i64 p = 0; p < panels_of(N); p++) {
    uint8_t* const panel = (uint8_t*)panels + p * bytes;
    if (!back) std::memset(panel, 0, size_t(bytes));
    for (i64 n = p * ABREAST; n < (p + 1) * ABREAST && n < N; n++) {
      Lane lane = {kind, K, nullptr, nullptr, panel + 4 * (n % ABREAST)};
      lane.codes = (uint8_t*)codes + n * lane.row_bytes();
      lane.scales = (uint8_t*)scales + n * lane.count() * lane.size();
      lane.move(back);
      lane.move_scales(back, n % ABREAST);
    }
  }
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
