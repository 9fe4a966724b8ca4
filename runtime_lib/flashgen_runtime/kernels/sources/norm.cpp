// Norms over rows. Sums run in four vectors side by side, number i in lane i % 16 of vector i / 16 % 4, which are added
// in one fixed order at the end.

// The sum of term(i, number of values from i on) over all vectors of a row.
template <typename F>
inline float sum_row(int64_t size, F&& term) {
  f32x16 sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= size; i += 64)
    for (int v = 0; v < 4; ++v) sums[v] += term(i + 16 * v, 16);
  for (int v = 0; i < size; i += 16, ++v) sums[v] += term(i, size - i);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static void rms_norm_row(const float* x, const float* weight, float offset, float eps, float* out, int64_t size) {
  float squares = sum_row(size, [&](int64_t i, int64_t count) {
    f32x16 value = load_first(x + i, count);
    return value * value;
  });
  float factor = 1.0f / __builtin_sqrtf(squares / size + eps);
  for (int64_t i = 0; i < size; i += 16) {
    f32x16 scaled = load_first(x + i, size - i) * factor;
    store_first(out + i, scaled * (load_first(weight + i, size - i) + offset), size - i);
  }
}

static void rms_norm(const float* x, int64_t x_stride, const float* weight, float offset, float eps, float* out,
                     int64_t out_stride, int64_t rows, int64_t size) {
  parallel_for(rows, rows_of_piece(size), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row)
      rms_norm_row(x + row * x_stride, weight, offset, eps, out + row * out_stride, size);
  });
}

static void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, float* out,
                           int64_t size) {
  float mean = sum_row(size, [&](int64_t i, int64_t count) { return load_first(x + i, count); }) / size;
  float squares = sum_row(size, [&](int64_t i, int64_t count) {
    f32x16 centred = load_first(x + i, count) - mean;
    return first_lanes(centred * centred, count);
  });
  float factor = 1.0f / __builtin_sqrtf(squares / size + eps);
  for (int64_t i = 0; i < size; i += 16) {
    f32x16 scaled = (load_first(x + i, size - i) - mean) * factor;
    f32x16 moved = scaled * load_first(weight + i, size - i) + load_first(bias + i, size - i);
    store_first(out + i, moved, size - i);
  }
}

static void layer_norm(const float* x, int64_t x_stride, const float* weight, const float* bias, float eps, float* out,
                       int64_t out_stride, int64_t rows, int64_t size) {
  parallel_for(rows, rows_of_piece(size), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row)
      layer_norm_row(x + row * x_stride, weight, bias, eps, out + row * out_stride, size);
  });
}
