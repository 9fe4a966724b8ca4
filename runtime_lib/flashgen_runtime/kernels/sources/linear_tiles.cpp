// Linear layers on the tiles of AMX, from the same panels as everywhere: int8 and bfloat16. All else, and few rows of
// int8, go the way of avx512_bf16. Has never run on such a processor: what is tested is this code over emulated tiles.
//
// 32 columns of a panel meet up to 32 rows of x: four tiles of sums, two of each operand. A step over k is 16 rows of
// words. x lies as tiles take it: [step][16 rows][64 bytes], and the sums of a block's rows as [32 rows][32 columns].
//
// int8: sums are exact, so that the bits are those of every other way. bfloat16: the instruction sums in an order of its
// own (tiles.h), so every number of rows goes through it; rows that there are not cost time, not bits.
#include "linear_formats.h"
#include "linear_layer.h"
#include "table.h"
#include "tiles.h"

extern const KernelTable fg_table_avx512_bf16 __attribute__((weak));

namespace {

constexpr int64_t BLOCK_ROWS = 2 * TILE_ROWS;
constexpr int64_t STEP_BYTES = TILE_ROWS * WORD_ROW_BYTES;  // of a panel

// Rows below which a product of int8 leaves most of a tile empty. A guess until it can be measured.
constexpr int64_t MIN_BYTE_ROWS = 6;

struct ByteTiles {
  static constexpr int64_t FORMAT = FG_I8;
  static constexpr int64_t VALUES_OF_STEP = 64;
  template <int C, int A, int B>
  static void add() {
    add_bytes<C, A, B>();
  }
  // A row of x as the first of 16 in its tiles.
  static void put_row(const float* x, int64_t K, char* tiles, float* scale, int32_t* start) {
    const float inverse = I8::row_scale(x, K, scale);
    i32x16 sum = {};
    for (int64_t k = 0; k < divide_up(K, VALUES_OF_STEP) * VALUES_OF_STEP; k += 16) {
      uint32_t quads[4];
      I8::round_16(x, inverse, k, K, quads, &sum);
      memcpy(tiles + k / VALUES_OF_STEP * TILE_BYTES + k % VALUES_OF_STEP, quads, sizeof(quads));
    }
    *start = -BYTE_OFFSET * __builtin_reduce_add(sum);
  }
  static f32x16 finish(u32x16 sum, float scale, int32_t start, const float* scales) {
    return I8::finish((i32x16)sum + start, scale, scales);
  }
};

struct Bf16Tiles {
  static constexpr int64_t FORMAT = FG_BF16;
  static constexpr int64_t VALUES_OF_STEP = 32;
  template <int C, int A, int B>
  static void add() {
    add_bf16<C, A, B>();
  }
  static void put_row(const float* x, int64_t K, char* tiles, float*, int32_t*) {
    for (int64_t k = 0; k < divide_up(K, VALUES_OF_STEP) * VALUES_OF_STEP; k += 16) {
      uint32_t pairs[8];
      BF16::round_16(x, k, K, pairs);
      memcpy(tiles + k / VALUES_OF_STEP * TILE_BYTES + k % VALUES_OF_STEP * 2, pairs, sizeof(pairs));
    }
  }
  static f32x16 finish(u32x16 sum, float, int32_t, const float*) { return (f32x16)sum; }
};

// x for tiles: of every 16 rows all steps, then those of the next 16.
struct TiledRows {
  int64_t rows;
  int64_t steps;
  char* tiles;
  float* scales;
  int32_t* starts;
  const char* at(int64_t row, int64_t step) const { return tiles + (row / TILE_ROWS * steps + step) * TILE_BYTES; }
};

template <typename T>
TiledRows lay_out_tiles(const fg_linear* layer, const float* x, int64_t x_stride, int64_t rows) {
  const int64_t groups = divide_up(rows, TILE_ROWS);
  TiledRows tiled = {rows, divide_up(layer->in_features, T::VALUES_OF_STEP), nullptr, nullptr, nullptr};
  const int64_t bytes = groups * tiled.steps * TILE_BYTES;
  tiled.tiles = (char*)fg_scratch(FG_SCRATCH_INPUT, bytes + rows * 8);
  tiled.scales = (float*)(tiled.tiles + bytes);
  tiled.starts = (int32_t*)(tiled.scales + rows);
  auto lay_out = [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      char* tiles = tiled.tiles + row / TILE_ROWS * tiled.steps * TILE_BYTES + row % TILE_ROWS * TILE_ROW_BYTES;
      T::put_row(x + row * x_stride, layer->in_features, tiles, tiled.scales + row, tiled.starts + row);
    }
  };
  if (rows * layer->in_features < PARALLEL_VALUES) {
    lay_out(0, rows, 0);
  } else {
    parallel_for(rows, TILE_ROWS, lay_out);
  }
  return tiled;
}

// Adds to sums, [GROUPS * 16][32] words, what `steps` steps give; from 0 on if they are the first.
template <typename T, int GROUPS>
void run_steps(const TiledRows& x, int64_t row, int64_t step, int64_t steps, const char* weights, bool is_first,
               Prefetch prefetch, char* sums) {
  constexpr int64_t ROW = WORD_ROW_BYTES, GROUP = TILE_ROWS * ROW;
  if (is_first) {
    clear_tile<0>(), clear_tile<1>();
    if (GROUPS == 2) clear_tile<2>(), clear_tile<3>();
  } else {
    load_tile<0>(sums, ROW), load_tile<1>(sums + 64, ROW);
    if (GROUPS == 2) load_tile<2>(sums + GROUP, ROW), load_tile<3>(sums + GROUP + 64, ROW);
  }
  const char *first_rows = x.at(row, step), *other_rows = x.at(row + TILE_ROWS, step);
  for (int64_t i = 0; i < steps; ++i, weights += STEP_BYTES, first_rows += TILE_BYTES, other_rows += TILE_BYTES) {
    for (int64_t line = 0; line < TILE_ROWS; ++line) prefetch();
    load_tile<4>(first_rows, TILE_ROW_BYTES);
    load_tile<6>(weights, ROW), load_tile<7>(weights + 64, ROW);
    T::template add<0, 4, 6>(), T::template add<1, 4, 7>();
    if (GROUPS == 2) {
      load_tile<5>(other_rows, TILE_ROW_BYTES);
      T::template add<2, 5, 6>(), T::template add<3, 5, 7>();
    }
  }
  store_tile<0>(sums, ROW), store_tile<1>(sums + 64, ROW);
  if (GROUPS == 2) store_tile<2>(sums + GROUP, ROW), store_tile<3>(sums + GROUP + 64, ROW);
}

// Rows `first` to `last` of x over panel p; `first` is the first of a block.
template <typename T>
void run_panel_on_tiles(const fg_linear* layer, const TiledRows& x, int64_t p, int64_t first, int64_t last,
                        const Output& output) {
  const int64_t N = layer->out_features, columns = N - p * WIDTH < WIDTH ? N - p * WIDTH : WIDTH;
  const int64_t word_rows = panel_word_rows(T::FORMAT, layer->in_features, 0);
  const int64_t blocks = divide_up(last - first, BLOCK_ROWS);
  const int64_t block_steps = blocks == 1 ? x.steps : BLOCK_BYTES / STEP_BYTES;
  const char* panel = panel_at(layer, p, columns);
  const float* scales = layer->scales + p * panel_scales(T::FORMAT, layer->in_features, 0);
  char* sums = (char*)fg_scratch(FG_SCRATCH_SUMS, blocks * BLOCK_ROWS * WORD_ROW_BYTES + STEP_BYTES);
  // The last step of a panel that has no whole number of them. NOTE: what follows in memory may be NaN.
  char* rest = sums + blocks * BLOCK_ROWS * WORD_ROW_BYTES;
  const int64_t whole = word_rows / TILE_ROWS;
  if (whole < x.steps) {
    memset(rest, 0, STEP_BYTES);
    memcpy(rest, panel + whole * STEP_BYTES, (word_rows - whole * TILE_ROWS) * WORD_ROW_BYTES);
  }
  for (int64_t step = 0; step < x.steps; step += block_steps) {
    const int64_t end = step + block_steps < x.steps ? step + block_steps : x.steps;
    const int64_t in_place = (end < whole ? end : whole) - step, bytes = in_place * STEP_BYTES;
    const char* weights = panel + step * STEP_BYTES;
    const char* ahead = weights + (blocks == 1 ? PREFETCH_BYTES : bytes);
    if (layer->layout != FG_PANELS) ahead = rows_at(layer, p + 1) + step * STEP_BYTES;
    for (int64_t row = first, block = 0; row < last; row += BLOCK_ROWS, ++block) {
      const Prefetch prefetch = {ahead + bytes * block / blocks, divide_up(WORD_ROW_BYTES, blocks)};
      char* own = sums + block * BLOCK_ROWS * WORD_ROW_BYTES;
      auto run = last - row > TILE_ROWS ? run_steps<T, 2> : run_steps<T, 1>;
      if (in_place) run(x, row, step, in_place, weights, step == 0, prefetch, own);
      if (end > whole) run(x, row, whole, 1, rest, whole == 0, Prefetch{rest, 0}, own);
    }
  }
  for (int64_t row = first; row < last; ++row) {
    const char* own = sums + (row - first) * WORD_ROW_BYTES;
    const float scale = T::FORMAT == FG_I8 ? x.scales[row] : 1;
    const int32_t start = T::FORMAT == FG_I8 ? x.starts[row] : 0;
    write_row(output, row, columns, T::finish(load<u32x16>(own), scale, start, scales),
              T::finish(load<u32x16>(own + 64), scale, start, scales + 16));
  }
}

template <typename T>
void forward_on_tiles(const fg_linear* layer, const float* x, int64_t x_stride, int64_t rows, const Output& output) {
  const TiledRows tiled = lay_out_tiles<T>(layer, x, x_stride, rows);
  const int64_t panels = divide_up(layer->out_features, WIDTH), threads = fg_num_threads();
  const int64_t blocks = divide_up(rows, BLOCK_ROWS);
  int64_t parts = divide_up(4 * threads, panels);
  if (parts > blocks) parts = blocks;
  int64_t grain = panels * parts / (8 * threads);
  grain = grain < 1 ? 1 : grain > 16 ? 16 : grain;
  parallel_for(panels * parts, grain, [&](int64_t first, int64_t last, int64_t) {
    take_tiles();
    for (int64_t i = first; i < last; ++i) {
      const int64_t p = i % panels, part = i / panels;
      const int64_t last_row = blocks * (part + 1) / parts * BLOCK_ROWS;
      const Output own = {output.y + p * WIDTH, output.stride, output.bias ? output.bias + p * WIDTH : nullptr,
                          output.is_added};
      run_panel_on_tiles<T>(layer, tiled, p, blocks * part / parts * BLOCK_ROWS, last_row < rows ? last_row : rows,
                            own);
    }
    give_tiles_back();
  });
}

}  // namespace

void linear_forward_on_tiles(const fg_linear* layer, const float* x, int64_t x_stride, float* y, int64_t y_stride,
                             int64_t rows, int64_t is_added) {
  const Output output = {y, y_stride, layer->bias, is_added != 0};
  if (layer->format == FG_I8 && rows >= MIN_BYTE_ROWS) {
    return forward_on_tiles<ByteTiles>(layer, x, x_stride, rows, output);
  }
  if (layer->format == FG_BF16 && rows > 0 && layer->layout != FG_ROWS_IN_ANY_ORDER) {
    return forward_on_tiles<Bf16Tiles>(layer, x, x_stride, rows, output);
  }
  fg_table_avx512_bf16.linear_forward(layer, x, x_stride, y, y_stride, rows, is_added);
}
