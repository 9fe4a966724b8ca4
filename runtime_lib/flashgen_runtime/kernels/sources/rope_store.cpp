// Rotation of queries and keys, and the way of keys and values into the cache.

// out[row] = factor * (cos, sin) of the angles. The angle is rounded to float32 as in the models' own code: at large
// positions that rounding is part of what they were trained with.
static void rope_angles(const int64_t* positions, const float* frequencies, int64_t count, float factor, float* out,
                        int64_t rows) {
  parallel_for(rows, 16, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t i = 0; i < count; i += 16) {
        f32x16 sine, cosine;
        sine_and_cosine((float)positions[row] * load_first(frequencies + i, count - i), &sine, &cosine);
        store_first(out + row * 2 * count + i, factor * cosine, count - i);
        store_first(out + row * 2 * count + count + i, factor * sine, count - i);
      }
  });
}

// x as rows of FORMAT; int8: returns the scale, so that the largest magnitude becomes 127, ties to even.
template <int64_t FORMAT>
static float convert_row(const float* x, int64_t size, typename Stored<FORMAT>::type* to) {
  for (int64_t i = 0; i < size; i += 16) Stored<FORMAT>::store(to + i, load_first(x + i, size - i));
  return 1;
}
template <>
float convert_row<FG_I8>(const float* x, int64_t size, int8_t* to) {
  f32x16 largest = {};
  for (int64_t i = 0; i < size; i += 16) largest = max(largest, absolute(load_first(x + i, size - i)));
  float magnitude = max_lanes(largest);
  f32x16 inverse = splat(magnitude > 0 ? 127.0f / magnitude : 0.0f);
  for (int64_t i = 0; i < size; i += 16) {
    f32x16 rounded = __builtin_elementwise_roundeven(load_first(x + i, size - i) * inverse);
    store(to + i, __builtin_convertvector(__builtin_convertvector(rounded, i32x16), i8x16));
  }
  return magnitude / 127.0f;
}

// Largest head size; a converted row stands on the stack, rounded up to whole vectors.
constexpr int64_t MAX_HEAD_SIZE = 1024;

template <int64_t FORMAT>
static void store_token(const float* keys, int64_t key_head_stride, const float* values, int64_t value_head_stride,
                        const fg_kv_layer* layer, int64_t slot) {
  typedef typename TileOf<FORMAT>::word word;
  constexpr int64_t STEP = TileOf<FORMAT>::STEP;
  int64_t place = slot % FG_TILE;
  for (int64_t head = 0; head < layer->num_heads; ++head) {
    int64_t at = slot / FG_TILE * layer->num_heads + head;
    typename Stored<FORMAT>::type row[MAX_HEAD_SIZE];

    float key_scale = convert_row<FORMAT>(keys + head * key_head_stride, layer->key_size, row);
    word* to = (word*)((char*)layer->keys + at * head_bytes(FORMAT, layer->key_size)) + place;
    for (int64_t i = 0; i < layer->key_size; i += STEP) memcpy(to + i / STEP * FG_TILE, row + i, sizeof(word));

    float value_scale = convert_row<FORMAT>(values + head * value_head_stride, layer->value_size, row);
    auto* of_head = (typename Stored<FORMAT>::type*)((char*)layer->values + at * head_bytes(FORMAT, layer->value_size));
    of_head += place / STEP * STEP * layer->value_size + place % STEP;
    for (int64_t i = 0; i < layer->value_size; ++i) of_head[i * STEP] = row[i];

    if (TileOf<FORMAT>::IS_SCALED) {
      layer->key_scales[at * FG_TILE + place] = key_scale;
      layer->value_scales[at * FG_TILE + place] = value_scale;
    }
  }
}

static auto token_store(int64_t format) {
  return format == FG_F32   ? store_token<FG_F32>
         : format == FG_F16 ? store_token<FG_F16>
         : format == FG_I8  ? store_token<FG_I8>
                            : store_token<FG_BF16>;
}

// Tokens of one tile share cache lines: long runs of rows stay together, the few rows of a decoding batch do not.
static int64_t rows_to_a_piece(int64_t rows) {
  int64_t share = rows / (4 * fg_num_threads());
  return share < 2 ? 2 : share > FG_TILE ? FG_TILE : share;
}

static void store_kv(const float* keys, int64_t key_stride, int64_t key_head_stride, const float* values,
                     int64_t value_stride, int64_t value_head_stride, const fg_kv_layer* layer, const int64_t* slots,
                     int64_t rows) {
  auto store_any = token_store(layer->format);
  parallel_for(rows, rows_to_a_piece(rows), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row)
      store_any(keys + row * key_stride, key_head_stride, values + row * value_stride, value_head_stride, layer,
                slots[row]);
  });
}

// (a, b) of each pair becomes (a cos - b sin, b cos + a sin); b stands `count` behind a.
inline void rotate(float* x, const float* angles, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    f32x16 a = load_first(x + i, count - i), b = load_first(x + count + i, count - i);
    f32x16 cosine = load_first(angles + i, count - i), sine = load_first(angles + count + i, count - i);
    store_first(x + i, a * cosine - b * sine, count - i);
    store_first(x + count + i, b * cosine + a * sine, count - i);
  }
}

static void rope_and_store(const fg_rope_store* options, float* qkv, int64_t qkv_stride, const float* angles,
                           const fg_kv_layer* layer, const int64_t* slots, int64_t rows) {
  auto store_any = token_store(layer->format);
  int64_t size = layer->key_size, count = options->rope_count, key_offset = options->num_heads * size;
  parallel_for(rows, rows_to_a_piece(rows), [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      float* queries = qkv + row * qkv_stride;
      for (int64_t head = 0; head < options->num_heads + layer->num_heads; ++head) {
        const float* norm = head < options->num_heads ? options->query_norm : options->key_norm;
        float* x = queries + head * size;
        if (norm) rms_norm_row(x, norm, options->norm_offset, options->norm_eps, x, size);
        rotate(x, angles + row * 2 * count, count);
      }
      const float* keys = queries + key_offset;
      store_any(keys, size, keys + layer->num_heads * size, layer->value_size, layer, slots[row]);
    }
  });
}

static int64_t kv_tile_bytes(int64_t format, int64_t num_heads, int64_t head_size) {
  return num_heads * head_bytes(format, head_size);
}

static void copy_blocks(const fg_kv_layer* layer, int64_t block_size, const int64_t* pairs, int64_t count) {
  int64_t tiles = block_size / FG_TILE;
  struct {
    void* start;
    int64_t bytes;
  } parts[] = {
      {layer->keys, tiles * kv_tile_bytes(layer->format, layer->num_heads, layer->key_size)},
      {layer->values, tiles * kv_tile_bytes(layer->format, layer->num_heads, layer->value_size)},
      {layer->key_scales, tiles * layer->num_heads * FG_TILE * (int64_t)sizeof(float)},
      {layer->value_scales, tiles * layer->num_heads * FG_TILE * (int64_t)sizeof(float)},
  };
  parallel_for(count, 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first; i < last; ++i)
      for (auto& part : parts)
        if (part.start)
          memcpy((char*)part.start + pairs[2 * i + 1] * part.bytes, (char*)part.start + pairs[2 * i] * part.bytes,
                 part.bytes);
  });
}
