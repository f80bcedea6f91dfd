// What all kernels share: kinds of numbers, and how many of them a vector takes at once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LATHE_API extern "C" __attribute__((visibility("default")))

#define LATHE_INLINE inline __attribute__((always_inline))

#ifdef _OPENMP
extern "C" int omp_get_thread_num(void);  // declared here, as Apple's compiler comes without the header
extern "C" int omp_get_num_threads(void);
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

namespace lathe {

using i64 = int64_t;

struct bf16 {
  uint16_t bits;
};

LATHE_INLINE float wide(float x) { return x; }
LATHE_INLINE float wide(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

// To the nearest, of two as near to the even one; what is no number stays none.
template <class E> inline E narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return {uint16_t((x != x ? 0x7fc00000u : rounded) >> 16)};
}

// What the bits of a float of 16 bits stand for.
inline float from_half(uint16_t h) {
  const uint32_t size = h & 0x7fff;
  const float x = size < 0x400    ? size * 5.9604644775390625e-8f
                  : size < 0x7c00 ? __builtin_bit_cast(float, (size << 13) + 0x38000000)
                                  : __builtin_bit_cast(float, size << 13 | 0x7f800000);
  return h & 0x8000 ? -x : x;
}

// The nearest whole number, of two as near the even one; of numbers of at most 22 bits, in such a way that a loop of it
// becomes vectors.
inline int32_t nearest(float x) { return __builtin_bit_cast(int32_t, x + 12582912.0f) - 0x4b400000; }

// e to the power of x, within 2 units in the last place; such that a loop of it becomes vectors. Below -87 and beyond 88
// it is as there (Cephes' polynomial).
LATHE_INLINE float power(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // whose last bits are the nearest whole number
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * __builtin_bit_cast(float, (__builtin_bit_cast(int32_t, shifted) - 0x4b400000 + 127) << 23);
}

// Whole numbers from `first` to `last` that one of the threads takes, of `count` in all.
struct Share {
  i64 first, last;
  Share(i64 count, i64 step = 1) {
    const i64 n = omp_get_num_threads(), i = omp_get_thread_num(), blocks = (count + step - 1) / step;
    first = blocks * i / n * step;
    last = blocks * (i + 1) / n * step;
    if (last > count) last = count;
  }
};

}  // namespace lathe
