// What training's kernels share beside lanes.h: the exponential in a form that every compiler vectorises, and types by
// their numbers.
#pragma once
#include "lanes.h"

namespace lathe {

// e^x within two units in the last place, where x is between -87 and 88; beyond, as at these ends (Cephes' polynomial).
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float t = x * 1.44269504f + shift;
  int32_t whole;
  std::memcpy(&whole, &t, 4);
  const float n = t - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const int32_t bits = (whole - 0x4B400000 + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return (p * r * r + r + 1.0f) * power;
}

// f, given a number of the type that is called `type`.
template <class F> void by_type(i64 type, F f) {
  if (type == 0)
    f(float{});
  else
    f(bf16{});
}

}  // namespace lathe
