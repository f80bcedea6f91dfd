// Codes, scales and zero points as transforms/kinds.py has them become panels as codes.h has them, and come back; rows
// of panels become numbers.
#include "codes.h"

namespace lathe {

// Sixteen rows of codes, which may be fewer, and their panel.
struct Abreast {
  i64 kind, K, some;
  uint8_t *codes, *scales, *zeros, *panel;  // zeros: where the kind has zero points

  i64 row_bytes() const { return kind == 2 ? blocks_of(K) * 32 : halved(kind) ? (K + 31) / 32 * 16 : K; }
  i64 count() const { return kind == 1 ? 1 : kind == 2 ? blocks_of(K) : (K + 31) / 32; }  // of a row's scales
  uint32_t* block(i64 b) const {
    return (uint32_t*)(panel + (kind == 1 ? 64 : 0) + b * block_bytes(kind) + head_bytes(kind));
  }
};

// Eight codes of 4 bits in a word: as rows have them, two neighbours in a byte, the first in its upper half; and as
// panels do, the first four in lower halves and the others in upper ones.
LATHE_INLINE uint32_t parted(uint32_t w) {
  const uint32_t first = w >> 4 & 0x0f0f0f0f, second = w & 0x0f0f0f0f;
  const uint32_t low = (first & 0xff) | (second & 0xff) << 8 | (first & 0xff00) << 8 | (second & 0xff00) << 16;
  const uint32_t high = (first >> 16 & 0xff) | (second >> 8 & 0xff00) | (first >> 8 & 0xff0000) | (second & 0xff000000);
  return low | high << 4;
}
LATHE_INLINE uint32_t paired(uint32_t w) {
  const uint32_t low = w & 0x0f0f0f0f, high = w >> 4 & 0x0f0f0f0f;
  const uint32_t a = (low & 0x00ff00ff) << 4 | (low >> 8 & 0x00ff00ff);
  const uint32_t b = (high & 0x00ff00ff) << 4 | (high >> 8 & 0x00ff00ff);
  return (a & 0xff) | (a >> 8 & 0xff00) | (b & 0xff) << 16 | (b << 8 & 0xff000000);
}

// The codes of one block: 4 bytes of a row after those of the row before it, and back. half: two codes in a byte.
template <bool half>
static void move_block(const Abreast& rows, i64 b, bool back) {
  constexpr i64 words = half ? 8 : 16;
  const i64 from = b * words * 4, left = rows.row_bytes() - from;
  const size_t bytes = size_t(left < words * 4 ? left : words * 4);
  uint32_t row[ABREAST * words] = {}, *const panel = rows.block(b);
  if (back)
    for (i64 j = 0; j < words; j++)
      for (i64 r = 0; r < ABREAST; r++) row[r * words + j] = panel[j * ABREAST + r];
  else
    for (i64 r = 0; r < rows.some; r++) std::memcpy(row + r * words, rows.codes + r * rows.row_bytes() + from, bytes);
  for (i64 i = 0; i < ABREAST * words; i++)
    row[i] = !half ? row[i] ^ 0x80808080 : back ? paired(row[i]) : parted(row[i]);
  if (back)
    for (i64 r = 0; r < rows.some; r++) std::memcpy(rows.codes + r * rows.row_bytes() + from, row + r * words, bytes);
  else
    for (i64 j = 0; j < words; j++)
      for (i64 r = 0; r < ABREAST; r++) panel[j * ABREAST + r] = row[r * words + j];
}

// Where the scales number i of all rows lie beside each other in a panel.
inline void* scales_at(void* panel, i64 kind, i64 i) {
  const i64 at = kind == 1 ? 0 : kind == 2 ? i * block_bytes(2) : i / 2 * block_bytes(kind) + i % 2 * 32;
  return (uint8_t*)panel + at;
}

template <class S>
static void move_beside(S* here, S* there, i64 count, i64 some, bool back) {
  for (i64 r = 0; r < some; r++) (back ? here[r * count] : there[r]) = back ? there[r] : here[r * count];
}

static void move_scales(const Abreast& rows, bool back) {
  const i64 count = rows.count();
  for (i64 i = 0; i < count; i++) {
    void* const there = scales_at(rows.panel, rows.kind, i);
    if (rows.kind <= 2)
      move_beside((uint32_t*)rows.scales + i, (uint32_t*)there, count, rows.some, back);
    else
      move_beside((uint16_t*)rows.scales + i, (uint16_t*)there, count, rows.some, back);
    if (rows.zeros)  // behind the scales of a block
      move_beside(rows.zeros + i, (uint8_t*)there + 64 - i % 2 * 16, count, rows.some, back);
  }
}

static void move(const Abreast& rows, bool back) {
  for (i64 b = 0; b < blocks_of(rows.K); b++)
    if (halved(rows.kind))
      move_block<true>(rows, b, back);
    else
      move_block<false>(rows, b, back);
  move_scales(rows, back);
}

// A row of codes of 8 bits as numbers.
template <class E>
static void numbers(const uint8_t* panel, i64 lane, i64 K, i64 kind, E* to) {
  for (i64 k = 0; k < K; k += 32) {
    const void* const scales = scales_at((void*)panel, kind, kind == 1 ? 0 : k / 32);
    const float scale = kind == 1 ? ((const float*)scales)[lane] : from_half(((const uint16_t*)scales)[lane]);
    const uint8_t* const block = panel + (kind == 1 ? 64 : 0) + k / BLOCK_OF * block_bytes(kind) + head_bytes(kind);
    const uint8_t* const codes = block + k % BLOCK_OF / 4 * 64 + 4 * lane;
    for (i64 i = 0; i < 32 && k + i < K; i++) to[k + i] = narrow<E>(scale * float(codes[i / 4 * 64 + i % 4] - 128));
  }
}

template <class E>
static void numbers(const uint8_t* panels, const i64* index, E* to, i64 count, i64 K, i64 kind, i64 threads) {
#pragma omp parallel for num_threads(count < 8 ? 1 : threads)
  for (i64 i = 0; i < count; i++)
    numbers(panels + index[i] / ABREAST * panel_bytes(kind, K), index[i] % ABREAST, K, kind, to + i * K);
}

}  // namespace lathe

// Bytes of a panel of K columns.
LATHE_API void lathe_panel_bytes(void* answer, int64_t K, int64_t kind) {
  *(int64_t*)answer = lathe::panel_bytes(kind, K);
}

// Codes, scales and zero points (null where the kind has none) of N rows become panels; `back`: panels become these.
// Rows and columns that are missing have scales of zero.
LATHE_API void lathe_panels(void* codes, void* scales, void* zeros, void* panels, int64_t N, int64_t K, int64_t kind,
                            int64_t back, int64_t threads) {
  using namespace lathe;
  const i64 bytes = panel_bytes(kind, K);
#pragma omp parallel for num_threads(threads)
  for (i64 p = 0; p < panels_of(N); p++) {
    const i64 n = p * ABREAST, some = N - n < ABREAST ? N - n : ABREAST;
    Abreast rows = {kind, K, some, (uint8_t*)codes, (uint8_t*)scales, (uint8_t*)zeros, (uint8_t*)panels + p * bytes};
    rows.codes += n * rows.row_bytes();
    if (zeros) rows.zeros += n * rows.count();
    rows.scales += n * rows.count() * (kind <= 2 ? 4 : 2);
    if (!back && (some < ABREAST || K % BLOCK_OF)) std::memset(rows.panel, 0, size_t(bytes));
    move(rows, back);
  }
}

// The rows of these numbers, `count` of them, K numbers each. kind: 1 or 4. type: of y.
LATHE_API void lathe_panel_rows(const void* panels, const void* index, void* y, int64_t count, int64_t K, int64_t kind,
                                int64_t type, int64_t threads) {
  using namespace lathe;
  if (type == 0)
    numbers((const uint8_t*)panels, (const i64*)index, (float*)y, count, K, kind, threads);
  else
    numbers((const uint8_t*)panels, (const i64*)index, (bf16*)y, count, K, kind, threads);
}
