// Panels (panel.h) from row-major weights, and back.

// --- rounding --------------------------------------------------------------------------------------------------------

// The value that is farthest from zero, the first of several.
inline float farthest_value(const void* row, int64_t format, int64_t first, int64_t last) {
  float farthest = 0;
  for (int64_t k = first; k < last; ++k) {
    const float value = value_at(row, format, k);
    if (__builtin_fabsf(value) > __builtin_fabsf(farthest)) farthest = value;
  }
  return farthest;
}

inline uint32_t pair_word(int64_t format, float lower, float upper) {
  if (format == FG_BF16) return to_bf16(lower) | (uint32_t)to_bf16(upper) << 16;
  const _Float16 pair[2] = {(_Float16)lower, (_Float16)upper};
  uint32_t word;
  memcpy(&word, pair, 4);
  return word;
}

static void round_floats(int64_t format, const void* row, int64_t row_format, int64_t in_features, uint32_t* column) {
  const int64_t per_word = values_of_word(format);
  for (int64_t k = 0; k < in_features; k += 16) {
    const f32x16 values = values_at(row, row_format, k, in_features);
    for (int64_t i = 0; i < 16 && k + i < in_features; i += per_word) {
      column[(k + i) / per_word * WIDTH] =
          format == FG_F32 ? as_bits(values)[i] : pair_word(format, values[i], values[i + 1]);
    }
  }
}

// -127 .. 127 for max |w|.
static void round_to_int8(const void* row, int64_t row_format, int64_t in_features, uint32_t* column, float* scale) {
  const float largest = largest_absolute(row, row_format, in_features);
  const float inverse = largest == 0 ? 0 : 127.0f / largest;
  *scale = largest / 127.0f;
  for (int64_t k = 0; k < in_features; k += 16) {
    const i32x16 rounded = round_to_int(values_at(row, row_format, k, in_features) * inverse) + 128;
    const u8x16 bytes = __builtin_convertvector(rounded, u8x16);
    uint32_t words[4];
    memcpy(words, &bytes, 16);
    for (int64_t i = 0; i < 4 && k + 4 * i < in_features; ++i) column[(k / 4 + i) * WIDTH] = words[i];
  }
}

// -8 for the value of a group that is farthest from zero: no level is lost, and the scale has a sign.
static void round_to_int4(const void* row, int64_t row_format, int64_t in_features, int64_t group_size,
                          uint32_t* column, float* scales) {
  for (int64_t first = 0; first < in_features; first += group_size) {
    const int64_t last = first + group_size < in_features ? first + group_size : in_features;
    const float farthest = farthest_value(row, row_format, first, last);
    const float inverse = farthest == 0 ? 0 : -8.0f / farthest;
    *scales = farthest / -8.0f;
    scales += WIDTH;
    for (int64_t k = first; k < first + group_size; k += 8) {
      const f32x16 rounded = __builtin_elementwise_roundeven(values_at(row, row_format, k, last) * inverse);
      const u32x16 nibbles =
          (u32x16)__builtin_convertvector(min(max(rounded, splat(-8)), splat(7)) + splat(8), i32x16);
      uint32_t word = 0;
      for (int j = 0; j < 4; ++j) word |= (nibbles[j] | nibbles[4 + j] << 4) << 8 * j;
      column[k / 8 * WIDTH] = word;
    }
  }
}

// --- layer -----------------------------------------------------------------------------------------------------------

static int64_t linear_panel_bytes(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size) {
  return divide_up(out_features, WIDTH) * panel_bytes(format, in_features, group_size);
}

static int64_t linear_num_scales(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size) {
  return divide_up(out_features, WIDTH) * panel_scales(format, in_features, group_size);
}

// A column beyond the last of W: zeros, whose results nobody reads.
static void clear_column(uint32_t* words, int64_t count) {
  for (int64_t i = 0; i < count; ++i) words[i * WIDTH] = 0;
}

static void linear_pack(int64_t format, int64_t group_size, const void* weight, int64_t weight_format,
                        int64_t in_features, int64_t out_features, void* panels, float* scales) {
  const int64_t word_rows = panel_word_rows(format, in_features, group_size);
  const int64_t num_scales = panel_scales(format, in_features, group_size);
  const int64_t row_bytes = in_features * (weight_format == FG_F32 ? 4 : 2);
  parallel_for(divide_up(out_features, WIDTH), 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t rows = out_features - p * WIDTH < WIDTH ? out_features - p * WIDTH : WIDTH;
      const char* row = (const char*)weight + p * WIDTH * row_bytes;
      uint32_t* panel = (uint32_t*)panels + p * word_rows * WIDTH;
      if (format == weight_format) {
        transpose_panel(row, row_bytes, rows, panel, word_rows);
        continue;
      }
      for (int64_t column = 0; column < WIDTH; ++column, row += row_bytes) {
        float* own_scales = scales + p * num_scales + column;
        if (column >= rows) {
          clear_column(panel + column, word_rows);
          clear_column((uint32_t*)own_scales, num_scales / WIDTH);
        } else if (format == FG_I8) {
          round_to_int8(row, weight_format, in_features, panel + column, own_scales);
        } else if (format == FG_I4) {
          round_to_int4(row, weight_format, in_features, group_size, panel + column, own_scales);
        } else {
          round_floats(format, row, weight_format, in_features, panel + column);
        }
      }
    }
  });
}

static void linear_unpack_row(const fg_linear* layer, int64_t row, float* values) {
  const int64_t format = layer->format, K = layer->in_features, group_size = layer->group_size;
  if (layer->layout != FG_PANELS) {
    for (int64_t k = 0; k < K; ++k) values[k] = value_at(layer->panels, format, row * K + k);
    return;
  }
  const int64_t p = row / WIDTH, column = row % WIDTH, per_word = values_of_word(format);
  const uint32_t* words = (const uint32_t*)layer->panels + p * panel_word_rows(format, K, group_size) * WIDTH + column;
  const int64_t first_scale = p * panel_scales(format, K, group_size) + column;
  const float* scales = layer->scales + first_scale;
  for (int64_t k = 0; k < K; ++k) {
    const uint32_t word = words[k / per_word * WIDTH];
    const int64_t i = k % per_word;
    switch (format) {
      case FG_I8: values[k] = (float)((int32_t)(word >> 8 * i & 0xff) - 128) * scales[0]; break;
      case FG_I4: {
        const int32_t nibble = word >> (8 * (i % 4) + 4 * (i / 4)) & 0xf;
        values[k] = (float)(nibble - 8) * scales[k / group_size * WIDTH];
        if (layer->offsets) values[k] += layer->offsets[first_scale + k / group_size * WIDTH];
        break;
      }
      default: values[k] = value_at(&word, format, i);
    }
  }
}
