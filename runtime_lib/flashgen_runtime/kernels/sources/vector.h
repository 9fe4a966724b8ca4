// Vectors of 16 and 32 numbers in the compiler's own vector types: one zmm, two ymm or four NEON registers each, so that
// every kernel is written once. Only the dot products of small integers and of bfloat16 need intrinsics (`dot.h`).
#pragma once
#include <stdint.h>
#include <string.h>

// For what must see its caller's registers: compilers find a large function not worth it.
#define FG_INLINE inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));
typedef int8_t i8x16 __attribute__((vector_size(16), aligned(1)));
typedef uint8_t u8x16 __attribute__((vector_size(16), aligned(1)));
typedef _Float16 f16x16 __attribute__((vector_size(32), aligned(2)));

namespace {

template <typename V, typename T>
inline V load(const T* from) {
  V value;
  memcpy(&value, from, sizeof(V));
  return value;
}
template <typename V, typename T>
inline void store(T* to, V value) {
  memcpy(to, &value, sizeof(V));
}

// NOTE: minus, because x - 0 is x for every x; x + 0 is not for -0 and would be computed.
inline f32x16 splat(float value) { return value - (f32x16){}; }
inline f32x16 as_float(u32x16 bits) { return (f32x16)bits; }
inline u32x16 as_bits(f32x16 value) { return (u32x16)value; }

// a * b + c, rounded once: the order of operations is fixed in the source, so results do not depend on the compiler.
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return __builtin_elementwise_fma(a, b, c); }
// One instruction each; unlike the compiler's own they do not care for NaN, which takes three.
inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

// 16 words of two bfloat16 each: the lower ones, the upper ones.
inline f32x16 bf16_low(u32x16 pairs) { return as_float(pairs << 16); }
inline f32x16 bf16_high(u32x16 pairs) { return as_float(pairs & 0xffff0000u); }

// Round to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline float from_bf16(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Sum and maximum over the lanes, in one fixed order: the upper half is folded onto the lower one, four times.
template <typename F>
inline float fold_lanes(f32x16 v, F&& join) {
  v = join(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}
inline float sum_lanes(f32x16 v) {
  return fold_lanes(v, [](f32x16 a, f32x16 b) { return a + b; });
}
inline float max_lanes(f32x16 v) {
  return fold_lanes(v, [](f32x16 a, f32x16 b) { return max(a, b); });
}

}  // namespace
