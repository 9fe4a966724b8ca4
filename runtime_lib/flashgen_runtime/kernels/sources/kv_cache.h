// How keys and values lie in memory: tiles of 32 tokens. Slot s is token s % 32 of tile s / 32; a block of `block_size`
// tokens is block_size / 32 tiles that follow one another. In a tile heads follow one another; of one head:
//
//   keys    [key_size][32 tokens]          tokens across lanes: scores need no horizontal sums
//   values  [32 tokens][value_size]        a token's values across lanes
//   bfloat16, keys    [key_size / 2][32 tokens][2]       two neighbours along the sum side by side in a word:
//   bfloat16, values  [16 pairs of tokens][value_size][2]  one load and two operations make two vectors of them
//
// int8 has a scale for each token and head, [tiles][heads][32 tokens]: value = scale * stored.
#pragma once
#include "rows.h"

constexpr int64_t FG_TILE = 32;

namespace {

// One load from a tile: STEP vectors of 16 numbers that follow one another along the sum (over the head size for keys,
// over tokens for values).
template <int64_t FORMAT>
struct TileOf {
  static constexpr int64_t STEP = 1;
  static constexpr int64_t IS_SCALED = FORMAT == FG_I8;
  typedef typename Stored<FORMAT>::type word;
  static void load(const word* from, f32x16* vectors) { vectors[0] = Stored<FORMAT>::load(from); }
};
template <>
struct TileOf<FG_BF16> {
  static constexpr int64_t STEP = 2;
  static constexpr int64_t IS_SCALED = 0;
  typedef uint32_t word;
  static void load(const uint32_t* from, f32x16* vectors) {
    u32x16 pairs = ::load<u32x16>(from);
    vectors[0] = bf16_low(pairs);
    vectors[1] = bf16_high(pairs);
  }
};

inline int64_t bytes_of(int64_t format) { return format == FG_F32 ? 4 : format == FG_I8 ? 1 : 2; }

// Bytes from a head's keys (or values) in one tile to the next head's.
inline int64_t head_bytes(int64_t format, int64_t head_size) { return FG_TILE * head_size * bytes_of(format); }

}  // namespace
