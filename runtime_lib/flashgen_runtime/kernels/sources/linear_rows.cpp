// Few rows of x times a row-major W, as it lies in a checkpoint, in the order that is fastest: lanes along k. A sum of
// lanes has another order than the chain of a tile, so results differ from those of panels in their last bits.

// Rows of W that are read side by side, and rows of x that they meet: a register of 512 bits for each pair.
#if defined(__AVX512F__)
constexpr int ROWS_OF_W = 4, ROWS_OF_X = 4;
#else
constexpr int ROWS_OF_W = 2, ROWS_OF_X = 2;
#endif

// `words`: [words of a row of W / 16][R][W::ROW_WORDS] of x.
template <typename W, int R>
static void dot_rows(const fg_linear* layer, const uint32_t* words, int64_t first, const Output& output) {
  const int64_t row_bytes = row_bytes_of(layer);
  const int64_t N = layer->out_features, count = N - first < ROWS_OF_W ? N - first : ROWS_OF_W;
  const char* rows[ROWS_OF_W];
  // Rows beyond the last one are read as the last one, and not written.
  for (int64_t n = 0; n < ROWS_OF_W; ++n) {
    rows[n] = (const char*)layer->panels + (first + (n < count ? n : count - 1)) * row_bytes;
  }
  alignas(64) f32x16 sum[ROWS_OF_W][R] = {};
  const int64_t whole = row_bytes / 64 * 16;
  for (int64_t k = 0; k < whole; k += 16, words += R * W::ROW_WORDS) {
    for (int n = 0; n < ROWS_OF_W; ++n) {
      const char* at = rows[n] + k * 4;
      __builtin_prefetch(at + ROWS_OF_W * row_bytes);
      const u32x16 weights = load<u32x16>(at);
      for (int r = 0; r < R; ++r) sum[n][r] = W::dot(sum[n][r], weights, words + r * W::ROW_WORDS);
    }
  }
  if (whole * 4 < row_bytes) {
    for (int n = 0; n < ROWS_OF_W; ++n) {
      const u32x16 weights = words_at(rows[n], whole, row_bytes);
      for (int r = 0; r < R; ++r) sum[n][r] = W::dot(sum[n][r], weights, words + r * W::ROW_WORDS);
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    for (int r = 0; r < R; ++r) {
      float value = sum_lanes(sum[n][r]);
      if (output.bias) value += output.bias[first + n];
      float* y = output.y + r * output.stride + first + n;
      *y = output.is_added ? *y + value : value;
    }
  }
}

template <typename W, int R = ROWS_OF_X>
static void dot_rows_of(int64_t rows, const fg_linear* layer, const uint32_t* words, int64_t first,
                        const Output& output) {
  if (rows == R) return dot_rows<W, R>(layer, words, first, output);
  if constexpr (R > 1) dot_rows_of<W, R - 1>(rows, layer, words, first, output);
}

template <typename W>
static void forward_rows(const fg_linear* layer, const float* x, int64_t x_stride, int64_t rows,
                         const Output& output) {
  const int64_t K = layer->in_features, per_step = 16 * values_of_word(layer->format);
  const int64_t steps = divide_up(K, per_step);
  uint32_t* words = (uint32_t*)fg_scratch(FG_SCRATCH_INPUT, steps * rows * W::ROW_WORDS * 4);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t r = 0; r < rows; ++r) {
      W::put_row_words(x + r * x_stride, step * per_step, K, words + (step * rows + r) * W::ROW_WORDS);
    }
  }
  const int64_t groups = divide_up(layer->out_features, ROWS_OF_W);
  int64_t grain = groups / (8 * fg_num_threads());
  grain = grain < 1 ? 1 : grain > 128 ? 128 : grain;
  parallel_for(groups, grain, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; ++i) dot_rows_of<W>(rows, layer, words, i * ROWS_OF_W, output);
  });
}
