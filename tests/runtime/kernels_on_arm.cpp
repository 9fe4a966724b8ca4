// Linear layers against plain loops, for processors that the tests reach through an emulator only: compiled together
// with the kernels by `test_kernels_build.py`. Ends with 0, or says what is wrong.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static uint32_t state = 1;
static float uniform(void) {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static int check(int64_t format, int64_t layout, int64_t K, int64_t N, int64_t rows, bool has_offsets = false) {
  const int64_t group_size = format == FG_I4 ? 64 : 0;
  float* weight = (float*)malloc(N * K * 4);
  float* rounded = (float*)malloc(N * K * 4);
  float* x = (float*)malloc(rows * K * 4);
  float* y = (float*)malloc(rows * N * 4);
  float* alone = (float*)malloc(N * 4);
  float* bias = (float*)malloc(N * 4);
  void* panels = aligned_alloc(64, fg_linear_panel_bytes(format, K, N, group_size));
  const int64_t num_scales = fg_linear_num_scales(format, K, N, group_size);
  float* scales = (float*)malloc(num_scales * 4 + 4);
  float* offsets = (float*)malloc(num_scales * 4 + 4);
  for (int64_t i = 0; i < N * K; ++i) weight[i] = uniform();
  for (int64_t i = 0; i < rows * K; ++i) x[i] = uniform();
  for (int64_t i = 0; i < N; ++i) bias[i] = uniform();
  for (int64_t i = 0; i < num_scales; ++i) offsets[i] = has_offsets ? uniform() : 0;

  fg_linear_pack(format, group_size, weight, FG_F32, K, N, panels, scales);
  fg_linear layer = {format, K, N, group_size, panels, scales, bias, FG_PANELS, has_offsets ? offsets : nullptr};
  for (int64_t n = 0; n < N; ++n) fg_linear_unpack_row(&layer, n, rounded + n * K);
  if (layout != FG_PANELS) layer.panels = weight, layer.layout = layout;
  fg_linear_forward(&layer, x, K, y, N, rows, 0);

  // Rounding weights and activations to `bits` moves a sum of K products by about sqrt(K) steps.
  const double step = format == FG_I4 ? 1.0 / 7 : format == FG_I8 ? 1.0 / 127 : format == FG_F32 ? 1e-7 : 1.0 / 256;
  const double activation_step = format == FG_I4 || format == FG_I8 ? 1.0 / 127 : 1e-7;
  double weight_error = 0, error = 0;
  for (int64_t i = 0; i < N * K; ++i) {
    const int64_t n = i / K, groups = num_scales / ((N + 31) / 32 * 32);
    const float offset = has_offsets ? offsets[(n / 32 * groups + i % K / group_size) * 32 + n % 32] : 0;
    weight_error = fmax(weight_error, fabs(rounded[i] - offset - weight[i]));
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias[n];
      for (int64_t k = 0; k < K; ++k) sum += (double)x[r * K + k] * rounded[n * K + k];
      error = fmax(error, fabs(sum - y[r * N + n]));
    }
  }
  int wrong = weight_error > step || error > activation_step * sqrt((double)K) * 2 + 2e-4;
  for (int64_t r = 0; r < rows; ++r) {
    fg_linear_forward(&layer, x + r * K, K, alone, N, 1, 0);
    if (layout != FG_ROWS_IN_ANY_ORDER && memcmp(alone, y + r * N, N * 4)) wrong |= 2;
  }
  if (wrong) {
    printf("format %d layout %d offsets %d, %d -> %d, %d rows: weights off by %g, results by %g, differs alone: %d\n",
           (int)format, (int)layout, has_offsets, (int)K, (int)N, (int)rows, weight_error, error, wrong >> 1);
  }
  free(weight), free(rounded), free(x), free(y), free(alone), free(bias), free(panels), free(scales), free(offsets);
  return wrong;
}

// attention_on_arm.cpp
int check_attention(int64_t format);

int main(void) {
  const int64_t shapes[][3] = {{64, 32, 1}, {65, 33, 5}, {130, 100, 7}, {3, 7, 20}, {2500, 40, 9}};
  int wrong = fg_available_isas()[0] == 0;
  fg_set_num_threads(2);
  for (const auto& shape : shapes) {
    for (int64_t format = FG_F32; format <= FG_I4; ++format) {
      wrong |= check(format, FG_PANELS, shape[0], shape[1], shape[2]);
    }
    wrong |= check(FG_I4, FG_PANELS, shape[0], shape[1], shape[2], true);
    for (int64_t layout = FG_ROWS; layout <= FG_ROWS_IN_ANY_ORDER; ++layout) {
      wrong |= check(FG_F32, layout, shape[0], shape[1], shape[2]);
    }
  }
  for (int64_t format = FG_F32; format <= FG_I8; ++format) wrong |= check_attention(format);
  printf("%s: %s\n", fg_current_isa(), wrong ? "wrong" : "right");
  return wrong != 0;
}
