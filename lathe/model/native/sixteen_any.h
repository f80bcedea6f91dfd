// Sixteen rows on any processor: loops of which the compiler makes vectors.
#pragma once
#include "lanes.h"

namespace lathe::sixteen {

constexpr int LEVEL = 0, ROWS = 2;
struct Ints {
  int32_t v[16];
};
struct Floats {
  float v[16];
};
struct Bytes {
  uint8_t v[64];
};

// What `of` gives for each number.
template <class X, class Of> LATHE_INLINE X each(Of of) {
  X x;
#pragma omp simd
  for (size_t i = 0; i < sizeof x.v / sizeof x.v[0]; i++) x.v[i] = of(i);
  return x;
}
LATHE_INLINE Ints ints(int32_t x) {
  return each<Ints>([=](size_t) { return x; });
}
LATHE_INLINE Floats floats(float x) {
  return each<Floats>([=](size_t) { return x; });
}
LATHE_INLINE Floats floats(const Ints& x) {
  return each<Floats>([&](size_t i) { return float(x.v[i]); });
}
LATHE_INLINE Floats singles(const uint8_t* p) {
  Floats x;
  std::memcpy(x.v, p, sizeof x.v);
  return x;
}
LATHE_INLINE Floats halves(const uint8_t* p) {
  uint16_t half[16];
  std::memcpy(half, p, sizeof half);
  return each<Floats>([&](size_t i) { return from_half(half[i]); });
}
LATHE_INLINE Floats levels(const uint8_t* p) {
  return each<Floats>([=](size_t i) { return float(int8_t(p[i])); });
}
LATHE_INLINE Floats times(const Floats& x, const Floats& y) {
  return each<Floats>([&](size_t i) { return x.v[i] * y.v[i]; });
}
LATHE_INLINE Floats plus(const Floats& sum, const Floats& x, const Floats& y) {
  return each<Floats>([&](size_t i) { return sum.v[i] + x.v[i] * y.v[i]; });
}
LATHE_INLINE void store(const Floats& x, float* p) { std::memcpy(p, x.v, sizeof x.v); }

LATHE_INLINE Bytes eights(const uint8_t* p) {
  return each<Bytes>([=](size_t i) { return p[i]; });
}
LATHE_INLINE Bytes lower(const uint8_t* p) {
  return each<Bytes>([=](size_t i) { return uint8_t(p[i] & 15); });
}
LATHE_INLINE Bytes upper(const uint8_t* p) {
  return each<Bytes>([=](size_t i) { return uint8_t(p[i] >> 4); });
}
LATHE_INLINE Bytes valued(const Bytes& x) {
  return each<Bytes>([&](size_t i) { return NF4[x.v[i]]; });
}
LATHE_INLINE Ints dot(const Ints& sum, const Bytes& w, int32_t four) {
  int8_t x[4];
  std::memcpy(x, &four, 4);
  return each<Ints>([&](size_t i) {
    const uint8_t* row = w.v + 4 * i;
    return sum.v[i] + row[0] * x[0] + row[1] * x[1] + row[2] * x[2] + row[3] * x[3];
  });
}
LATHE_INLINE Ints multiples(const uint8_t* p, int32_t by) {
  return each<Ints>([=](size_t i) { return p[i] * by; });
}

}  // namespace lathe::sixteen
