// Codes, scales and what is beside them as transforms/kinds.py has them become panels as codes.h has them, and come back; rows
// of panels become numbers.
#include "codes.h"

namespace lathe {

// Sixteen rows of codes, which may be fewer, and their panel.
struct Abreast {
  i64 kind, K, some;
  uint8_t *codes, *scales, *others, *panel;  // others: zero points, minima or levels, where the kind has them

  i64 row_bytes() const { return kind == 2 ? blocks_of(K) * 32 : halved(kind) ? (K + 31) / 32 * 16 : K; }
  i64 groups() const { return (K + 31) / 32; }
  i64 count() const {  // of a row's scales
    const i64 tops = (blocks_of(K) + FOUR - 1) / FOUR * (has_minima(kind) ? 2 : 1);
    return kind == 1 ? 1 : kind == 2 ? blocks_of(K) : has_levels(kind) ? tops : groups();
  }
  i64 other_count() const { return kind == 10 ? (K + 15) / 16 : has_levels(kind) ? 2 * groups() : groups(); }
  i64 scale_size() const { return kind <= 2 ? 4 : 2; }
  i64 other_size() const { return kind == 6 || kind == 7 ? 2 : 1; }
  uint32_t* block(i64 b) const { return (uint32_t*)(panel + block_at(kind, b) + head_bytes(kind)); }
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

// Where the scales number i of all rows lie beside each other in a panel, and what else the kind has.
inline const void* scales_at(const void* panel, i64 kind, i64 i) {
  const i64 top = has_minima(kind) ? i / 2 : i, minima = has_minima(kind) ? i % 2 : 0;
  const i64 at = kind == 1          ? 0
                 : kind == 2        ? block_at(kind, i)
                 : has_levels(kind) ? block_at(kind, top * FOUR) - TOP + 32 * minima
                                    : block_at(kind, i / 2) + i % 2 * 32;
  return (const uint8_t*)panel + at;
}
inline const void* others_at(const void* panel, i64 kind, i64 i) {
  const i64 at = has_levels(kind) ? block_at(kind, i / 4) + i % 4 * 16
                                  : block_at(kind, i / 2) + 64 + i % 2 * (kind == 5 ? 16 : 32);
  return (const uint8_t*)panel + at;
}

// Number i of each row's `count`, from or to where they lie beside each other.
static void move_beside(uint8_t* rows, const void* beside, i64 i, i64 count, i64 size, i64 some, bool back) {
  uint8_t* const there = (uint8_t*)beside;
  for (i64 r = 0; r < some; r++) {
    uint8_t* const here = rows + (r * count + i) * size;
    std::memcpy(back ? here : there + r * size, back ? there + r * size : here, size_t(size));
  }
}

static void move_scales(const Abreast& rows, bool back) {
  const i64 count = rows.count(), others = rows.others ? rows.other_count() : 0;
  for (i64 i = 0; i < count; i++)
    move_beside(rows.scales, scales_at(rows.panel, rows.kind, i), i, count, rows.scale_size(), rows.some, back);
  for (i64 i = 0; i < others; i++)
    move_beside(rows.others, others_at(rows.panel, rows.kind, i), i, others, rows.other_size(), rows.some, back);
}

static void move(const Abreast& rows, bool back) {
  for (i64 b = 0; b < blocks_of(rows.K); b++)
    if (halved(rows.kind))
      move_block<true>(rows, b, back);
    else
      move_block<false>(rows, b, back);
  move_scales(rows, back);
}

// A row of codes as numbers, of any kind but nf4.
template <class E>
static void numbers(const uint8_t* panel, i64 lane, i64 K, i64 kind, E* to) {
  const auto half = [&](const void* at) { return from_half(((const uint16_t*)at)[lane]); };
  const auto level = [&](i64 i) { return float(((const int8_t*)others_at(panel, kind, i))[lane]); };
  const i64 group = group_of(kind);
  for (i64 g = 0; g * group < K; g++) {
    const i64 from = g * group, top = from / (FOUR * BLOCK_OF);
    float scale, minimum = 0;
    if (kind == 1) {
      scale = ((const float*)panel)[lane];
    } else if (has_levels(kind) && has_minima(kind)) {
      scale = half(scales_at(panel, kind, 2 * top)) * level(2 * g);
      minimum = half(scales_at(panel, kind, 2 * top + 1)) * level(2 * g + 1);
    } else if (has_levels(kind)) {
      scale = half(scales_at(panel, kind, top)) * level(g);
    } else {
      scale = half(scales_at(panel, kind, g));
      if (has_minima(kind)) minimum = half(others_at(panel, kind, g));
    }
    const int zero = kind == 5 ? ((const uint8_t*)others_at(panel, kind, g))[lane] : kind == 3 ? 8 : halved(kind) ? 0 : 128;
    const uint8_t* const block = panel + block_at(kind, from / BLOCK_OF) + head_bytes(kind) + 4 * lane;
    for (i64 k = from; k < K && k < from + group; k++) {
      const i64 c = k % BLOCK_OF;
      const int code = halved(kind) ? block[c / 8 * 64 + c % 4] >> c / 4 % 2 * 4 & 15 : block[c / 4 * 64 + c % 4];
      to[k] = narrow<E>(scale * float(code - zero) - minimum);
    }
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

// Codes, scales and zero points, minima or levels (null where the kind has none) of N rows become panels; `back`: panels
// become these.
// Rows and columns that are missing have scales of zero.
LATHE_API void lathe_panels(void* codes, void* scales, void* others, void* panels, int64_t N, int64_t K, int64_t kind,
                            int64_t back, int64_t threads) {
  using namespace lathe;
  const i64 bytes = panel_bytes(kind, K);
#pragma omp parallel for num_threads(threads)
  for (i64 p = 0; p < panels_of(N); p++) {
    const i64 n = p * ABREAST, some = N - n < ABREAST ? N - n : ABREAST;
    Abreast rows = {kind, K, some, (uint8_t*)codes, (uint8_t*)scales, (uint8_t*)others, (uint8_t*)panels + p * bytes};
    rows.codes += n * rows.row_bytes();
    rows.scales += n * rows.count() * rows.scale_size();
    if (others) rows.others += n * rows.other_count() * rows.other_size();
    if (!back && (some < ABREAST || K % BLOCK_OF)) std::memset(rows.panel, 0, size_t(bytes));
    move(rows, back);
  }
}

// The rows of these numbers, `count` of them, K numbers each. kind: not 2. type: of y.
LATHE_API void lathe_panel_rows(const void* panels, const void* index, void* y, int64_t count, int64_t K, int64_t kind,
                                int64_t type, int64_t threads) {
  using namespace lathe;
  if (type == 0)
    numbers((const uint8_t*)panels, (const i64*)index, (float*)y, count, K, kind, threads);
  else
    numbers((const uint8_t*)panels, (const i64*)index, (bf16*)y, count, K, kind, threads);
}
