// Sixteen rows in four vectors of 128 bits: the dot products of Arm (FEAT_DotProd).
#pragma once
#include <arm_neon.h>

#include "lanes.h"

namespace lathe::sixteen {

constexpr int LEVEL = 128, ROWS = 2;
struct Ints {
  int32x4_t v[4];
};
struct Floats {
  float32x4_t v[4];
};
struct Bytes {
  int8x16_t v[4];
};

// What `of` gives for each quarter.
template <class X, class Of> LATHE_INLINE X each(Of of) { return {{of(0), of(1), of(2), of(3)}}; }
LATHE_INLINE Ints ints(int32_t x) {
  return each<Ints>([=](int) { return vdupq_n_s32(x); });
}
LATHE_INLINE Floats floats(float x) {
  return each<Floats>([=](int) { return vdupq_n_f32(x); });
}
LATHE_INLINE Floats floats(Ints x) {
  return each<Floats>([&](int i) { return vcvtq_f32_s32(x.v[i]); });
}
LATHE_INLINE Floats singles(const uint8_t* p) {
  return each<Floats>([=](int i) { return vld1q_f32((const float*)p + 4 * i); });
}
LATHE_INLINE Floats halves(const uint8_t* p) {
  return each<Floats>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i))); });
}
LATHE_INLINE Floats levels(const uint8_t* p) {
  const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
LATHE_INLINE Floats times(Floats x, Floats y) {
  return each<Floats>([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
}
LATHE_INLINE Floats plus(Floats sum, Floats x, Floats y) {
  return each<Floats>([&](int i) { return vfmaq_f32(sum.v[i], x.v[i], y.v[i]); });
}
LATHE_INLINE void store(Floats x, float* p) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}

LATHE_INLINE Bytes eights(const uint8_t* p) {
  return each<Bytes>([=](int i) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(128))); });
}
LATHE_INLINE Bytes lower(const uint8_t* p) {
  return each<Bytes>([=](int i) { return vreinterpretq_s8_u8(vandq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(15))); });
}
LATHE_INLINE Bytes upper(const uint8_t* p) {
  return each<Bytes>([=](int i) { return vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(p + 16 * i), 4)); });
}
LATHE_INLINE Bytes valued(Bytes x) {
  const int8x16_t table = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(NF4), vdupq_n_u8(128)));
  return each<Bytes>([&](int i) { return vqtbl1q_s8(table, vreinterpretq_u8_s8(x.v[i])); });
}
LATHE_INLINE Ints dot(Ints sum, Bytes w, int32_t four) {
  const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
  return each<Ints>([&](int i) { return vdotq_s32(sum.v[i], w.v[i], x); });
}
LATHE_INLINE Ints multiples(const uint8_t* p, int32_t by) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  const uint32x4_t v[] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
                          vmovl_high_u16(high)};
  return each<Ints>([&](int i) { return vmulq_n_s32(vreinterpretq_s32_u32(v[i]), by); });
}

}  // namespace lathe::sixteen
