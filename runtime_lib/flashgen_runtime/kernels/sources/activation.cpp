// Activation functions, and gates: the activation of a row's first half times its second half.

template <int64_t KIND>
inline f32x16 activation(f32x16 x) {
  if (KIND == FG_SILU) return x / (1.0f + exp(-x));
  if (KIND == FG_GELU) return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
  if (KIND == FG_GELU_TANH) return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  return max(x, f32x16{});
}

template <int64_t KIND, bool IS_GATED>
static void activate_rows(const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                          int64_t size) {
  parallel_for(rows, rows_of_piece(4 * size), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      const float* from = x + row * x_stride;
      for (int64_t i = 0; i < size; i += 16) {
        f32x16 value = activation<KIND>(load_first(from + i, size - i));
        if (IS_GATED) value *= load_first(from + size + i, size - i);
        store_first(out + row * out_stride + i, value, size - i);
      }
    }
  });
}

template <bool IS_GATED>
static void activate_kind(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                          int64_t size) {
  auto of_kind = kind == FG_SILU        ? activate_rows<FG_SILU, IS_GATED>
                 : kind == FG_GELU      ? activate_rows<FG_GELU, IS_GATED>
                 : kind == FG_GELU_TANH ? activate_rows<FG_GELU_TANH, IS_GATED>
                                        : activate_rows<FG_RELU, IS_GATED>;
  of_kind(x, x_stride, out, out_stride, rows, size);
}

static void gated_activation(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride,
                             int64_t rows, int64_t size) {
  activate_kind<true>(kind, x, x_stride, out, out_stride, rows, size);
}

static void activate(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                     int64_t size) {
  activate_kind<false>(kind, x, x_stride, out, out_stride, rows, size);
}
