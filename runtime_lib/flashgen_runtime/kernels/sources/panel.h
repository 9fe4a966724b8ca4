// How the weights of a linear layer lie in memory. Included once per instruction set, as `dot.h` is.
//
// A panel holds 32 columns of y, that is 32 rows of W, as [in_features / values of a word][32 columns] words of 32 bit:
//
//   F32   one value      F16, BF16   two values      I8   four, each + 128      I4   eight, each + 8: the low nibbles
//                                                                             are values 0-3, the high ones 4-7
//
// in_features is padded with zeros to whole words (I4: to whole groups), out_features to whole panels. So the words of
// one step over k lie side by side for all lanes, and a panel is one stream of memory.
#pragma once
#include "kernels.h"
#include "vector.h"

namespace {

// Columns of a panel.
constexpr int64_t WIDTH = 32;
constexpr int64_t WORD_ROW_BYTES = WIDTH * 4;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t values_of_word(int64_t format) {
  switch (format) {
    case FG_F32: return 1;
    case FG_I8: return 4;
    case FG_I4: return 8;
    default: return 2;
  }
}

// Rows of words of a panel.
inline int64_t panel_word_rows(int64_t format, int64_t in_features, int64_t group_size) {
  if (format == FG_I4) return divide_up(in_features, group_size) * (group_size / 8);
  return divide_up(in_features, values_of_word(format));
}
inline int64_t panel_bytes(int64_t format, int64_t in_features, int64_t group_size) {
  return panel_word_rows(format, in_features, group_size) * WORD_ROW_BYTES;
}
inline int64_t panel_scales(int64_t format, int64_t in_features, int64_t group_size) {
  if (format == FG_I8) return WIDTH;
  return format == FG_I4 ? divide_up(in_features, group_size) * WIDTH : 0;
}

// A value of a row-major matrix of floats.
inline float value_at(const void* values, int64_t format, int64_t i) {
  if (format == FG_F32) return ((const float*)values)[i];
  if (format == FG_F16) return (float)((const _Float16*)values)[i];
  return from_bf16(((const uint16_t*)values)[i]);
}

// 16 values from index i, zeros from index `end` on.
inline f32x16 values_at(const void* values, int64_t format, int64_t i, int64_t end) {
  if (i + 16 > end) {
    f32x16 lanes = {};
    for (int64_t lane = 0; i + lane < end; ++lane) lanes[lane] = value_at(values, format, i + lane);
    return lanes;
  }
  if (format == FG_F32) return load<f32x16>((const float*)values + i);
  if (format == FG_F16) return __builtin_convertvector(load<f16x16>((const uint16_t*)values + i), f32x16);
  return as_float(__builtin_convertvector(load<u16x16>((const uint16_t*)values + i), u32x16) << 16);
}

// max |x| of a row; NaN if there is one. Compared as integers, among which NaN is the largest.
inline float largest_absolute(const void* row, int64_t format, int64_t count) {
  i32x16 largest = {};
  for (int64_t k = 0; k < count; k += 16) {
    const u32x16 bits = as_bits(values_at(row, format, k, count)) & 0x7fffffffu;
    largest = __builtin_elementwise_max(largest, (i32x16)bits);
  }
  const int32_t bits = __builtin_reduce_max(largest);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline i32x16 round_to_int(f32x16 v) { return __builtin_convertvector(__builtin_elementwise_roundeven(v), i32x16); }

// 16 words from index i, zeros from byte `end` of the row on.
inline u32x16 words_at(const char* row, int64_t i, int64_t end) {
  u32x16 words = {};
  const int64_t first = i * 4, left = end - first;
  if (left >= 64) return load<u32x16>(row + first);
  if (left > 0) memcpy(&words, row + first, left);
  return words;
}

}  // namespace
