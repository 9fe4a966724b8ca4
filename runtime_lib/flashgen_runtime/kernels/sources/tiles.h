// The tile registers of AMX: 8, each of 16 rows of 64 bytes. Of a product C += A B, each tile of B has the layout of
// 16 rows of words and half of the columns of a panel (panel.h), A that of 16 rows of x, 64 bytes of each.
//
// FG_EMULATED_TILES takes plain loops for the instructions, in the order that the processors' manual gives them: for
// tests on processors that have none.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_ROW_BYTES = 64;
constexpr int64_t TILE_BYTES = TILE_ROWS * TILE_ROW_BYTES;

#if !defined(FG_EMULATED_TILES)

// All tiles whole; they are the calling thread's, until it gives them back.
inline void take_tiles() {
  struct {
    uint8_t palette, first_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape = {1, 0, {}, {}, {}};
  for (int tile = 0; tile < 8; ++tile) shape.row_bytes[tile] = TILE_ROW_BYTES, shape.rows[tile] = TILE_ROWS;
  _tile_loadconfig(&shape);
}
inline void give_tiles_back() { _tile_release(); }

template <int C>
inline void clear_tile() {
  _tile_zero(C);
}
template <int C>
inline void load_tile(const void* from, int64_t stride) {
  _tile_loadd(C, from, stride);
}
template <int C>
inline void store_tile(void* to, int64_t stride) {
  _tile_stored(C, to, stride);
}
// Sums of four products of signed bytes of A with unsigned ones of B.
template <int C, int A, int B>
inline void add_bytes() {
  _tile_dpbsud(C, A, B);
}
// For each place the products of the lower halves of words and those of the upper ones are summed, each along k in
// float32 from 0 on, then both, then that is added to C. Subnormal numbers are 0.
template <int C, int A, int B>
inline void add_bf16() {
  _tile_dpbf16ps(C, A, B);
}

#else

struct EmulatedTiles {
  uint8_t rows[8][TILE_ROWS][TILE_ROW_BYTES];
};
thread_local EmulatedTiles emulated;

inline void take_tiles() { memset(&emulated, 0, sizeof(emulated)); }
inline void give_tiles_back() { memset(&emulated, 0xff, sizeof(emulated)); }

template <int C>
inline void clear_tile() {
  memset(emulated.rows[C], 0, TILE_BYTES);
}
template <int C>
inline void load_tile(const void* from, int64_t stride) {
  for (int64_t row = 0; row < TILE_ROWS; ++row) {
    memcpy(emulated.rows[C][row], (const char*)from + row * stride, TILE_ROW_BYTES);
  }
}
template <int C>
inline void store_tile(void* to, int64_t stride) {
  for (int64_t row = 0; row < TILE_ROWS; ++row) {
    memcpy((char*)to + row * stride, emulated.rows[C][row], TILE_ROW_BYTES);
  }
}

template <typename T>
inline T* emulated_row(int tile, int64_t row) {
  return (T*)emulated.rows[tile][row];
}

template <int C, int A, int B>
inline void add_bytes() {
  for (int64_t row = 0; row < TILE_ROWS; ++row)
    for (int64_t k = 0; k < TILE_ROWS; ++k)
      for (int64_t column = 0; column < 16; ++column)
        for (int i = 0; i < 4; ++i) {
          const int32_t a = emulated_row<int8_t>(A, row)[4 * k + i], b = emulated_row<uint8_t>(B, k)[4 * column + i];
          emulated_row<uint32_t>(C, row)[column] += (uint32_t)(a * b);
        }
}

inline float without_subnormal(float x) { return __builtin_fabsf(x) < __FLT_MIN__ ? __builtin_copysignf(0, x) : x; }
inline float emulated_bf16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return without_subnormal(value);
}

template <int C, int A, int B>
inline void add_bf16() {
  for (int64_t row = 0; row < TILE_ROWS; ++row)
    for (int64_t column = 0; column < 16; ++column) {
      float sums[2] = {};
      for (int64_t k = 0; k < TILE_ROWS; ++k)
        for (int i = 0; i < 2; ++i) {
          const float a = emulated_bf16(emulated_row<uint16_t>(A, row)[2 * k + i]);
          const float b = emulated_bf16(emulated_row<uint16_t>(B, k)[2 * column + i]);
          sums[i] = without_subnormal(__builtin_fmaf(a, b, sums[i]));
        }
      float* sum = emulated_row<float>(C, row) + column;
      *sum = without_subnormal(without_subnormal(*sum) + without_subnormal(sums[0] + sums[1]));
    }
}

#endif

}  // namespace
