// Linear layers: y = x W^T + bias.
//
// A tile is up to MAX_ROWS rows of x times one panel (panel.h); its sums stay in registers. x is laid out for it
// beforehand, as [words of a row][rows of the tile], rounded as the format wants it (linear_formats.h). Every sum is
// one chain over k in one order, whatever the number of rows, tiles and threads: with equal rows come equal bits. Where
// several tiles meet a large panel, they go over it in blocks that stay in the second-level cache, and leave their sums
// in memory in between.

#include "linear_rows.cpp"

// --- tiles -----------------------------------------------------------------------------------------------------------

template <typename W>
struct Tile {
  const uint32_t* x;
  const float* row_scales;
  const int32_t* row_starts;
  int64_t first_row;
  int64_t columns;

  // Sums after an earlier block, or null before the first; where they go for the next block, or null after the last.
  const typename W::Sum* earlier;
  typename W::Sum* later;
};

template <typename W, int R>
static void run_tile(const Tile<W>& tile, const Block& block, Prefetch prefetch, const Output& output) {
  alignas(64) typename W::Sum sum[R][2];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 2; ++c) sum[r][c] = tile.earlier ? tile.earlier[2 * r + c] : W::start(tile.row_starts[r]);
  }
  const char* weights = block.weights;
  const uint32_t* x = tile.x;
  const int64_t weight_bytes = W::rows_per_step(block.group_size) * WORD_ROW_BYTES;
  const int64_t words = W::words(block.group_size) * R;
  for (int64_t i = 0; i < block.steps; ++i) {
    W::template step<R>(sum, block, weights, x, i, prefetch);
    weights += weight_bytes;
    x += words;
  }
  for (int r = 0; r < R; ++r) {
    if (tile.later) {
      for (int c = 0; c < 2; ++c) tile.later[2 * r + c] = sum[r][c];
    } else {
      const float scale = W::HAS_ROW_SCALES ? tile.row_scales[r] : 1;
      write_row(output, tile.first_row + r, tile.columns, W::finish(sum[r][0], scale, block.scales),
                W::finish(sum[r][1], scale, block.scales + 16));
    }
  }
}

template <typename W, int R = W::MAX_ROWS>
static void run_tile_of(int64_t rows, const Tile<W>& tile, const Block& block, Prefetch prefetch,
                        const Output& output) {
  if (rows == R) return run_tile<W, R>(tile, block, prefetch, output);
  if constexpr (R > 1) run_tile_of<W, R - 1>(rows, tile, block, prefetch, output);
}

// --- layer -----------------------------------------------------------------------------------------------------------

// x as tiles take it.
struct Activations {
  int64_t rows;
  int64_t tiles;
  int64_t words_per_row;
  uint32_t* words;
  float* scales;
  int32_t* starts;

  // Tiles differ by at most one row.
  int64_t first_row(int64_t tile) const { return rows * tile / tiles; }
};

template <typename W>
static Activations lay_out(const fg_linear* layer, const float* x, int64_t x_stride, int64_t rows) {
  Activations a;
  a.rows = rows;
  a.tiles = divide_up(rows, W::MAX_ROWS);
  a.words_per_row = W::steps(layer) * W::words(layer->group_size);
  a.words = (uint32_t*)fg_scratch(FG_SCRATCH_INPUT, rows * (a.words_per_row + 2) * 4);
  a.scales = (float*)(a.words + rows * a.words_per_row);
  a.starts = (int32_t*)(a.scales + rows);
  auto lay_out_tiles = [&](int64_t first, int64_t last, int64_t) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t start = a.first_row(tile), count = a.first_row(tile + 1) - start;
      for (int64_t i = 0; i < count; ++i) {
        W::put_row(x + (start + i) * x_stride, layer->in_features, layer->group_size,
                   a.words + start * a.words_per_row + i, count, a.scales + start + i, a.starts + start + i);
      }
    }
  };
  if (rows * layer->in_features < PARALLEL_VALUES) {
    lay_out_tiles(0, a.tiles, 0);
  } else {
    parallel_for(a.tiles, 1, lay_out_tiles);
  }
  return a;
}

// Tiles from `first_tile` to `last_tile` over panel p.
template <typename W>
static void run_panel(const fg_linear* layer, const Activations& a, int64_t p, int64_t first_tile, int64_t last_tile,
                      const Output& output) {
  typedef typename W::Sum Sum;
  const int64_t N = layer->out_features, columns = N - p * WIDTH < WIDTH ? N - p * WIDTH : WIDTH;
  const int64_t tiles = last_tile - first_tile, steps = W::steps(layer), group_size = layer->group_size;
  const int64_t step_bytes = W::rows_per_step(group_size) * WORD_ROW_BYTES;
  const int64_t block_steps = tiles == 1 || step_bytes > BLOCK_BYTES ? steps : BLOCK_BYTES / step_bytes;
  const int64_t first_row = a.first_row(first_tile);
  const char* panel = panel_at(layer, p, columns);
  const int64_t num_scales = panel_scales(layer->format, layer->in_features, group_size);
  const float* scales = layer->scales + p * num_scales;
  Sum* sums = nullptr;
  if (block_steps < steps) {
    sums = (Sum*)fg_scratch(FG_SCRATCH_SUMS, (a.first_row(last_tile) - first_row) * 2 * sizeof(Sum));
  }
  for (int64_t step = 0; step < steps; step += block_steps) {
    const bool is_last = step + block_steps >= steps;
    const Block block = {panel + step * step_bytes, is_last ? steps - step : block_steps,
                         layer->format == FG_I4 ? scales + step * WIDTH : scales,
                         layer->offsets ? layer->offsets + p * num_scales + step * WIDTH : nullptr, group_size};
    const int64_t bytes = block.steps * step_bytes;
    const char* ahead = block.weights + (tiles == 1 ? PREFETCH_BYTES : bytes);
    if (layer->layout != FG_PANELS) ahead = rows_at(layer, p + 1) + step * step_bytes;
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const Prefetch prefetch = {ahead + bytes * (t - first_tile) / tiles, divide_up(WORD_ROW_BYTES, tiles)};
      const int64_t row = a.first_row(t), rows = a.first_row(t + 1) - row;
      Sum* own_sums = sums + (row - first_row) * 2;
      const uint32_t* x = a.words + row * a.words_per_row + step * W::words(group_size) * rows;
      run_tile_of<W>(rows,
                     Tile<W>{x, a.scales + row, a.starts + row, row, columns, step ? own_sums : nullptr,
                             is_last ? nullptr : own_sums},
                     block, prefetch, output);
    }
  }
}

template <typename W>
static void forward(const fg_linear* layer, const float* x, int64_t x_stride, int64_t rows, const Output& output) {
  if constexpr (!W::HAS_ROW_SCALES) {
    if (layer->layout == FG_ROWS_IN_ANY_ORDER && rows <= ROWS_OF_X) {
      return forward_rows<W>(layer, x, x_stride, rows, output);
    }
  }
  const Activations a = lay_out<W>(layer, x, x_stride, rows);
  // A piece of work is a panel and, where panels are few, a part of the tiles.
  const int64_t panels = divide_up(layer->out_features, WIDTH), threads = fg_num_threads();
  int64_t parts = divide_up(4 * threads, panels);
  if (parts > a.tiles) parts = a.tiles;
  int64_t grain = panels * parts / (8 * threads);
  grain = grain < 1 ? 1 : grain > 16 ? 16 : grain;
  parallel_for(panels * parts, grain, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t p = i % panels, part = i / panels;
      const Output own = {output.y + p * WIDTH, output.stride, output.bias ? output.bias + p * WIDTH : nullptr,
                          output.is_added};
      run_panel<W>(layer, a, p, a.tiles * part / parts, a.tiles * (part + 1) / parts, own);
    }
  });
}

static void linear_forward(const fg_linear* layer, const float* x, int64_t x_stride, float* y, int64_t y_stride,
                           int64_t rows, int64_t is_added) {
  if (rows <= 0) return;
  const Output output = {y, y_stride, layer->bias, is_added != 0};
  switch (layer->format) {
    case FG_F32: return forward<F32>(layer, x, x_stride, rows, output);
    case FG_F16: return forward<F16>(layer, x, x_stride, rows, output);
    case FG_BF16: return forward<BF16>(layer, x, x_stride, rows, output);
    case FG_I8: return forward<I8>(layer, x, x_stride, rows, output);
    default:
      if (layer->offsets) return forward<I4WithOffsets>(layer, x, x_stride, rows, output);
      return forward<I4>(layer, x, x_stride, rows, output);
  }
}
