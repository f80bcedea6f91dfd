// What all kernels share: kinds of numbers, and how many of them a vector takes at once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LATHE_API extern "C" __attribute__((visibility("default")))

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

inline float wide(float x) { return x; }
inline float wide(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// To the nearest, of two as near to the even one; what is no number stays none.
template <class E> inline E narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return {uint16_t((x != x ? 0x7fc00000u : rounded) >> 16)};
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
