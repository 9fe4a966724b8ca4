// What all ways to compute a linear layer share: where the weights of a panel are, where results go.
//
// A row-major W is turned into panels on the way, one at a time, each just before its use.
#pragma once
#include "kernels.h"
#include "panel.h"
#include "parallel.h"
#include "vector.h"

namespace {

// Bytes of a panel that stay in the second-level cache, twice (the next block comes in meanwhile), beside x and sums.
constexpr int64_t BLOCK_BYTES = 64 * 1024;

// How far ahead of its reads a single tile fetches weights, of which every byte comes from memory once.
constexpr int64_t PREFETCH_BYTES = 8 * 1024;

// Values of x from which laying it out is worth waking threads.
constexpr int64_t PARALLEL_VALUES = 32 * 1024;

// Where results go.
struct Output {
  float* y;
  int64_t stride;
  const float* bias;  // or null
  bool is_added;
};

// Of a row-major W.
inline int64_t row_bytes_of(const fg_linear* layer) {
  return layer->in_features * 4 / values_of_word(layer->format);
}

// 32 columns of a row, or the `columns` that the last panel has.
inline void write_row(const Output& output, int64_t row, int64_t columns, f32x16 a, f32x16 b) {
  float* y = output.y + row * output.stride;
  if (columns == WIDTH) {
    if (output.bias) a += load<f32x16>(output.bias), b += load<f32x16>(output.bias + 16);
    if (output.is_added) a += load<f32x16>(y), b += load<f32x16>(y + 16);
    store(y, a), store(y + 16, b);
    return;
  }
  float lanes[WIDTH];
  store(lanes, a), store(lanes + 16, b);
  for (int64_t i = 0; i < columns; ++i) {
    float value = lanes[i];
    if (output.bias) value += output.bias[i];
    y[i] = output.is_added ? y[i] + value : value;
  }
}

// --- row-major weights -----------------------------------------------------------------------------------------------

template <typename T, T...>
struct Lanes {};

// Vectors i and i + D exchange the lanes that have bit D set in one and not in the other.
template <int D, int... lane>
FG_INLINE void exchange(u32x16 (&v)[16], Lanes<int, lane...>) {
#pragma clang loop unroll(full)  // the vectors are to stay in registers
  for (int i = 0; i < 16; ++i) {
    if (i & D) continue;
    const u32x16 a = v[i], b = v[i + D];
    v[i] = __builtin_shufflevector(a, b, (lane & D ? 16 + lane - D : lane)...);
    v[i + D] = __builtin_shufflevector(a, b, (lane & D ? 16 + lane : lane + D)...);
  }
}

// Lane j of vector i becomes lane i of vector j.
FG_INLINE void transpose(u32x16 (&v)[16]) {
  typedef __make_integer_seq<Lanes, int, 16> all;
  exchange<8>(v, all{});
  exchange<4>(v, all{});
  exchange<2>(v, all{});
  exchange<1>(v, all{});
}

// Rows of W that have their final type: a panel is their words transposed. `rows` counts those that there are.
static void transpose_panel(const char* weight, int64_t row_bytes, int64_t rows, uint32_t* panel, int64_t word_rows) {
  for (int64_t k = 0; k < word_rows; k += 16) {
    const int64_t count = word_rows - k < 16 ? word_rows - k : 16;
    const bool is_whole = (k + 16) * 4 <= row_bytes && rows == WIDTH;
    for (int64_t column = 0; column < WIDTH; column += 16) {
      const char* row = weight + column * row_bytes;
      uint32_t* target = panel + k * WIDTH + column;
      alignas(64) u32x16 v[16];
      if (is_whole) {
#pragma clang loop unroll(full)
        for (int64_t i = 0; i < 16; ++i, row += row_bytes) v[i] = load<u32x16>(row + k * 4);
        transpose(v);
#pragma clang loop unroll(full)
        for (int64_t i = 0; i < 16; ++i) store(target + i * WIDTH, v[i]);
      } else {
        for (int64_t i = 0; i < 16; ++i, row += row_bytes) {
          v[i] = column + i < rows ? words_at(row, k, row_bytes) : u32x16{};
        }
        transpose(v);
        for (int64_t i = 0; i < count; ++i) store(target + i * WIDTH, v[i]);
      }
    }
  }
}

// The rows of a row-major W that make panel p.
static const char* rows_at(const fg_linear* layer, int64_t p) {
  return (const char*)layer->panels + p * WIDTH * row_bytes_of(layer);
}

static const char* panel_at(const fg_linear* layer, int64_t p, int64_t columns) {
  const int64_t bytes = panel_bytes(layer->format, layer->in_features, layer->group_size);
  if (layer->layout == FG_PANELS) return (const char*)layer->panels + p * bytes;
  uint32_t* panel = (uint32_t*)fg_scratch(FG_SCRATCH_WEIGHTS, bytes);
  transpose_panel(rows_at(layer, p), row_bytes_of(layer), columns, panel, bytes / WORD_ROW_BYTES);
  return (const char*)panel;
}

}  // namespace
