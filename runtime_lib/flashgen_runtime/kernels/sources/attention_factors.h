// How attention (attention.cpp) multiplies what a cache holds: by FMAs, or by dot products of bfloat16 where there are.
#pragma once
#include "dot.h"
#include "kv_cache.h"

// How stored numbers meet queries, or p: a step takes VALUES of them that follow one another along the sum, in
// MEMORY_ROWS rows of memory, as OPERANDS vectors, each of which meets a word of queries for all lanes.
template <int64_t FORMAT>
struct Factors {
  typedef typename TileOf<FORMAT>::word word;
  typedef f32x16 Operand;
  static constexpr bool IS_DOT = false;
  static constexpr int64_t MEMORY_ROWS = 1;
  static constexpr int64_t VALUES = TileOf<FORMAT>::STEP, OPERANDS = VALUES, IS_SCALED = TileOf<FORMAT>::IS_SCALED;
  static void load(const word* from, int64_t, Operand* operands) { TileOf<FORMAT>::load(from, operands); }
  static f32x16 add(f32x16 sum, Operand operand, uint32_t x) { return fma(as_float(u32x16{} + x), operand, sum); }
};

#if defined(__AVX512BF16__)

struct Dots {
  typedef u32x16 Operand;
  static constexpr bool IS_DOT = true;
  static constexpr int64_t VALUES = 2, OPERANDS = 1;
  static f32x16 add(f32x16 sum, Operand operand, uint32_t x) { return dot_bf16(sum, operand, u32x16{} + x); }
};

template <>
struct Factors<FG_BF16> : Dots {
  typedef uint32_t word;
  static constexpr int64_t MEMORY_ROWS = 1, IS_SCALED = 0;
  static void load(const word* from, int64_t, Operand* operands) { operands[0] = ::load<u32x16>(from); }
};

template <>
struct Factors<FG_I8> : Dots {
  typedef int8_t word;
  static constexpr int64_t MEMORY_ROWS = 2, IS_SCALED = 1;
  static void load(const word* from, int64_t stride, Operand* operands) {
    const f32x16 first = Stored<FG_I8>::load(from), second = Stored<FG_I8>::load(from + stride);
    operands[0] = as_bits(first) >> 16 | as_bits(second);
  }
};

// 32 numbers, rounded, in pairs.
inline u32x16 bf16_pairs(f32x16 low, f32x16 high) {
  return (u32x16)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

#else

// Nobody calls it.
inline u32x16 bf16_pairs(f32x16 low, f32x16) { return as_bits(low); }

#endif
