// Dot products of 16 words: four products of bytes each, or two of bfloat16. What compilers do not find by themselves.
//
// Of bytes the unsigned operand is the weight's, the signed one a word of activations for all lanes. Where the processor
// has no such instruction, bytes are widened to 16 bits; sums are exact in every case.
#pragma once
#include "vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)

constexpr int DOT_WORDS = 1;  // of activations, for four values of k
constexpr int32_t BYTE_OFFSET = 128;  // what the operand is above the weight
typedef i32x16 ByteOperand;

inline ByteOperand byte_operand(u32x16 weights) { return (i32x16)weights; }
inline ByteOperand nibble_operand(u32x16 nibbles) { return (i32x16)nibbles; }
inline i32x16 dot_bytes(i32x16 sum, ByteOperand weights, const uint32_t* x, int64_t) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32((int)*x));
}

#elif defined(__x86_64__)

constexpr int DOT_WORDS = 2;
constexpr int32_t BYTE_OFFSET = 128;
struct ByteOperand {
  i32x16 even;  // bytes 0 and 2 as 16-bit numbers
  i32x16 odd;
};

inline i32x16 multiply_pairs(i32x16 a, i32x16 b) {
#if defined(__AVX512BW__)
  return (i32x16)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
  typedef int32_t i32x8 __attribute__((vector_size(32)));
#define FG_LOWER(v) (__m256i) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define FG_UPPER(v) (__m256i) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
  const i32x8 lower = (i32x8)_mm256_madd_epi16(FG_LOWER(a), FG_LOWER(b));
  const i32x8 upper = (i32x8)_mm256_madd_epi16(FG_UPPER(a), FG_UPPER(b));
#undef FG_LOWER
#undef FG_UPPER
  return __builtin_shufflevector(lower, upper, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

inline ByteOperand byte_operand(u32x16 weights) {
  return {(i32x16)(weights & 0x00ff00ffu), (i32x16)((weights >> 8) & 0x00ff00ffu)};
}
inline ByteOperand nibble_operand(u32x16 nibbles) { return byte_operand(nibbles); }
inline i32x16 dot_bytes(i32x16 sum, const ByteOperand& weights, const uint32_t* x, int64_t stride) {
  sum += multiply_pairs(weights.even, (i32x16)(u32x16{} + x[0]));
  return sum + multiply_pairs(weights.odd, (i32x16)(u32x16{} + x[stride]));
}

#else  // NEON multiplies signed bytes with signed ones

constexpr int DOT_WORDS = 1;
constexpr int32_t BYTE_OFFSET = 0;
struct ByteOperand {
  int8x16_t part[4];
};

inline ByteOperand nibble_operand(u32x16 nibbles) {
  ByteOperand operand;
  memcpy(&operand, &nibbles, 64);
  return operand;
}
inline ByteOperand byte_operand(u32x16 weights) { return nibble_operand(weights ^ 0x80808080u); }
inline i32x16 dot_bytes(i32x16 sum, const ByteOperand& weights, const uint32_t* x, int64_t) {
  const int8x16_t values = vreinterpretq_s8_u32(vdupq_n_u32(*x));
  int32x4_t part[4];
  memcpy(part, &sum, 64);
  for (int i = 0; i < 4; ++i) part[i] = vdotq_s32(part[i], weights.part[i], values);
  memcpy(&sum, part, 64);
  return sum;
}

#endif

// The words of x for `dot_bytes`, from four bytes.
inline void byte_words(uint32_t bytes, uint32_t* words, int64_t stride) {
  if (DOT_WORDS == 1) {
    words[0] = bytes;
    return;
  }
  const int8_t* value = (const int8_t*)&bytes;
  words[0] = (uint16_t)(int16_t)value[0] | (uint32_t)(uint16_t)(int16_t)value[2] << 16;
  words[stride] = (uint16_t)(int16_t)value[1] | (uint32_t)(uint16_t)(int16_t)value[3] << 16;
}

#if defined(__AVX512BF16__)
// sum + the two products of each word. NOTE: the instruction takes subnormal numbers for 0.
inline f32x16 dot_bf16(f32x16 sum, u32x16 weights, u32x16 x) {
  return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)x);
}
#endif

}  // namespace
