// Attention over the paged cache, one algorithm for decoding and for prompts.
//
// All queries of a sequence that read the same head of the cache are rows: token by token, and of each token the heads
// of the group. A work item is up to MAX_ROWS rows, so a decoding token and a long prompt differ in the number of rows
// and of items only. An item walks the tiles of 32 keys that its rows see, in order. Of each tile:
//
//   1. scores   one chain of FMAs over the head size for each row and key
//   2. softmax  scores that a row does not see become -inf; the row's maximum moves on, once for the whole tile
//               (online softmax: Milakov and Gimelshein 2018), and what was summed before is scaled to it
//   3. values   one chain of FMAs over the keys for each row and column
//
// What is summed for a row does not depend on the rows beside it: a key that it does not see adds p = 0, a tile of
// which it sees nothing scales by 1. So a token's bits are the same alone, in any batch and in any chunk of its prompt.
// While a tile is worked on, the next one is fetched.
//
// Where the processor has dot products of bfloat16, keys and values in bfloat16 and int8 take them: queries and p are
// rounded to bfloat16, two products make one link of a chain. int8 is exact in bfloat16.

#include "attention_factors.h"

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 12;    // 12 rows x 2 vectors of sums leave 8 of 32 registers for keys and values
constexpr int KEY_VECTORS = 2;  // vectors of 16 keys that are summed beside each other
constexpr int value_vectors(int rows) { return rows <= 4 ? 4 : 2; }
#else
constexpr int MAX_ROWS = 6;  // one such vector takes 2 of 16 registers (AVX2) or 4 of 32 (NEON)
constexpr int KEY_VECTORS = 1;
constexpr int value_vectors(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#endif

// No score: exp gives 0 for it.
static const float UNSEEN = -__builtin_inff();

// Keys and values of one head in one tile.
struct Tile {
  const char* keys;
  const char* values;
  const float* key_scales;
  const float* value_scales;
};

// Rows of one item and what is known of them so far; arrays have ROWS rows, those from num_rows on are padding.
struct Rows {
  int64_t num_rows;
  int64_t first_seen[MAX_ROWS];  // keys that a row sees: first_seen .. last_seen
  int64_t last_seen[MAX_ROWS];
  const uint32_t* queries;       // [words of key_size][ROWS], times scaling
  float* sums;                   // [ROWS][padded value_size]: of p times value
  f32x16 highest;                // lane i: the highest score of row i
  f32x16 totals[MAX_ROWS];       // of p, for each key's place in the tile
};

inline int64_t padded(int64_t value_size) { return (value_size + 15) / 16 * 16; }

inline int64_t sequence_tokens(const fg_batch* batch, int64_t sequence) {
  return batch->starts[sequence + 1] - batch->starts[sequence];
}

static Tile tile_at(const fg_kv_layer* layer, const fg_batch* batch, int64_t sequence, int64_t head, int64_t key) {
  int64_t block = batch->block_tables[sequence * batch->block_table_stride + key / batch->block_size];
  int64_t tile = (block * batch->block_size + key % batch->block_size) / FG_TILE;
  int64_t at = tile * layer->num_heads + head;
  return {(const char*)layer->keys + at * head_bytes(layer->format, layer->key_size),
          (const char*)layer->values + at * head_bytes(layer->format, layer->value_size),
          layer->key_scales + at * FG_TILE, layer->value_scales + at * FG_TILE};
}

// Into the second cache: the first one has too few misses in flight to keep the memory busy.
template <int BYTES>
inline void prefetch(const void* from) {
  for (int at = 0; at < BYTES; at += 64) __builtin_prefetch((const char*)from + at, 0, 2);
}

// 1. scores[ROWS][32]
template <typename K, int ROWS>
static void score_tile(const Tile& tile, const Tile& next, const Rows& rows, int64_t key_size, float* scores) {
  typedef typename K::word word;
  for (int64_t column = 0; column < FG_TILE; column += 16 * KEY_VECTORS) {
    const word* keys = (const word*)tile.keys + column;
    const char* ahead = next.keys + column * sizeof(word);
    const uint32_t* queries = rows.queries;
    f32x16 sums[ROWS][KEY_VECTORS] = {};
    for (int64_t i = 0; i < key_size; i += K::VALUES) {
      typename K::Operand key[KEY_VECTORS][K::OPERANDS];
#pragma unroll
      for (int v = 0; v < KEY_VECTORS; ++v) K::load(keys + 16 * v, FG_TILE, key[v]);
      prefetch<K::MEMORY_ROWS * KEY_VECTORS * 16 * sizeof(word)>(ahead);
#pragma unroll
      for (int step = 0; step < K::OPERANDS; ++step)
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
#pragma unroll
          for (int v = 0; v < KEY_VECTORS; ++v) sums[row][v] = K::add(sums[row][v], key[v][step], queries[step * ROWS + row]);
        }
      keys += K::MEMORY_ROWS * FG_TILE, ahead += K::MEMORY_ROWS * FG_TILE * sizeof(word);
      queries += K::OPERANDS * ROWS;
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
#pragma unroll
      for (int v = 0; v < KEY_VECTORS; ++v) store(scores + row * FG_TILE + column + 16 * v, sums[row][v]);
  }
}

inline f32x16 softcapped(f32x16 scores, float softcap) { return softcap * tanh(scores / softcap); }

// Scores of keys `offset` .. of a tile, of which first .. last are seen.
inline f32x16 seen(f32x16 scores, int32_t offset, int64_t first, int64_t last) {
  const i32x16 places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  int32_t from = first < 0 ? 0 : first > FG_TILE ? FG_TILE : (int32_t)first;
  int32_t to = last < 0 ? 0 : last > FG_TILE ? FG_TILE : (int32_t)last;
  i32x16 is_seen = (places >= from - offset) & (places < to - offset);
  return is_seen ? scores : splat(UNSEEN);
}

// 2. scores[ROWS][32] become p, times the values' scales; returns by lane what the rows' sums are to be scaled with.
template <typename K, int ROWS>
static f32x16 soften_tile(const fg_attention* options, const Tile& tile, const Tile& next, int64_t first_key,
                          Rows& rows, float* scores) {
  if (K::IS_SCALED) {
    prefetch<FG_TILE * sizeof(float)>(next.key_scales);
    prefetch<FG_TILE * sizeof(float)>(next.value_scales);
  }
  float highest[16];
  store(highest, rows.highest);
  for (int row = 0; row < ROWS; ++row) {
    float* of_row = scores + row * FG_TILE;
    f32x16 low = load<f32x16>(of_row), high = load<f32x16>(of_row + 16);
    if (K::IS_SCALED) low *= load<f32x16>(tile.key_scales), high *= load<f32x16>(tile.key_scales + 16);
    if (options->softcap != 0) low = softcapped(low, options->softcap), high = softcapped(high, options->softcap);
    int64_t first = rows.first_seen[row] - first_key, last = rows.last_seen[row] - first_key;
    if (first > 0 || last < FG_TILE) low = seen(low, 0, first, last), high = seen(high, 16, first, last);
    store(of_row, low), store(of_row + 16, high);
    float best = max_lanes(max(low, high));
    highest[row] = best > highest[row] ? best : highest[row];
  }
  f32x16 before = rows.highest;
  rows.highest = load<f32x16>(highest);
  // A row that has seen nothing yet: exp(-inf - 0) is the 0 that it needs, -inf - -inf would be none.
  f32x16 base = rows.highest == splat(UNSEEN) ? f32x16{} : rows.highest;
  f32x16 factors = exp(before - base);
  for (int row = 0; row < ROWS; ++row) {
    float* of_row = scores + row * FG_TILE;
    f32x16 low = exp(load<f32x16>(of_row) - splat(base[row]));
    f32x16 high = exp(load<f32x16>(of_row + 16) - splat(base[row]));
    rows.totals[row] = fma(rows.totals[row], splat(factors[row]), low + high);
    if (K::IS_SCALED) {
      const f32x16 of_low = load<f32x16>(tile.value_scales), of_high = load<f32x16>(tile.value_scales + 16);
      // The scale of a key that nobody sees may be NaN, and dot products take two keys at once.
      low = low > 0 ? low * of_low : splat(0.0f), high = high > 0 ? high * of_high : splat(0.0f);
    }
    if (K::IS_DOT) {
      store(of_row, bf16_pairs(low, high));
    } else {
      store(of_row, low), store(of_row + 16, high);
    }
  }
  return factors;
}

// 3. for `VECTORS` vectors of columns from `column` on; the last vector of a row may have `width` < 16 columns.
template <typename V, int ROWS, int VECTORS>
static void add_columns(const Tile& tile, const Tile& next, int64_t column, int64_t width, int64_t first, int64_t last,
                        f32x16 factors, const float* p, Rows& rows, int64_t value_size) {
  typedef typename V::word word;
  int64_t stride = padded(value_size);
  f32x16 sums[ROWS][VECTORS];
#pragma unroll
  for (int row = 0; row < ROWS; ++row)
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
      sums[row][v] = load<f32x16>(rows.sums + row * stride + column + 16 * v) * splat(factors[row]);

  auto add = [&](int64_t key, int num_keys) __attribute__((always_inline)) {
    int64_t at = key / V::VALUES * V::MEMORY_ROWS * value_size + column;
    const word* values = (const word*)tile.values + at;
    for (int i = 0; i < V::MEMORY_ROWS; ++i) {
      prefetch<VECTORS * 16 * sizeof(word)>(next.values + (at + i * value_size) * sizeof(word));
    }
    typename V::Operand value[VECTORS][V::OPERANDS];
    if (VECTORS == 1 && width < 16) {
      word lanes[V::MEMORY_ROWS][16] = {};
      for (int i = 0; i < V::MEMORY_ROWS; ++i) memcpy(lanes[i], values + i * value_size, width * sizeof(word));
      V::load(lanes[0], 16, value[0]);
    } else {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) V::load(values + 16 * v, value_size, value[v]);
    }
    if constexpr (V::IS_DOT) {
      if (num_keys == 1)
        for (int v = 0; v < VECTORS; ++v) value[v][0] &= 0xffffu;
    }
#pragma unroll
    for (int step = 0; step < V::OPERANDS; ++step) {
      if (step == num_keys) return;
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        uint32_t weight;
        memcpy(&weight, p + row * FG_TILE + key / V::VALUES * V::OPERANDS + step, 4);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sums[row][v] = V::add(sums[row][v], value[v][step], weight);
      }
    }
  };
  // What lies behind the last key is another request's remains and must not even be multiplied by 0: it may be NaN.
  int64_t key = first / V::VALUES * V::VALUES;
  for (; key + V::VALUES <= last; key += V::VALUES) add(key, V::VALUES);
  if (key < last) add(key, 1);

#pragma unroll
  for (int row = 0; row < ROWS; ++row)
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) store(rows.sums + row * stride + column + 16 * v, sums[row][v]);
}

template <typename V, int ROWS>
static void add_values(const Tile& tile, const Tile& next, int64_t first, int64_t last, f32x16 factors, const float* p,
                       Rows& rows, int64_t value_size) {
  constexpr int VECTORS = value_vectors(ROWS);
  int64_t column = 0;
  for (; column + 16 * VECTORS <= value_size; column += 16 * VECTORS)
    add_columns<V, ROWS, VECTORS>(tile, next, column, 16, first, last, factors, p, rows, value_size);
  for (; column < value_size; column += 16)
    add_columns<V, ROWS, 1>(tile, next, column, value_size - column, first, last, factors, p, rows, value_size);
}

// What an item is: rows `first_row` .. of one sequence and one head of the cache.
struct Item {
  int64_t sequence;
  int64_t head;
  int64_t first_row;
  int64_t num_rows;
};

struct Call {
  const fg_attention* options;
  const float* queries;
  int64_t query_stride;
  const fg_kv_layer* layer;
  const fg_batch* batch;
  float* out;
  int64_t out_stride;

  int64_t group() const { return options->num_heads / layer->num_heads; }

  // Keys that the token at `position` sees: first .. last.
  int64_t first_seen(int64_t position) const {
    return options->window && position >= options->window ? position - options->window + 1 : 0;
  }
  int64_t last_seen(int64_t position, int64_t kv_len) const {
    if (options->is_causal) return position + 1;
    return options->window && position + options->window < kv_len ? position + options->window : kv_len;
  }
  int64_t position(const Item& item, int64_t row) const {
    int64_t num_tokens = sequence_tokens(batch, item.sequence);
    return batch->kv_lens[item.sequence] - num_tokens + (item.first_row + row) / group();
  }
  int64_t first_tile(const Item& item) const { return first_seen(position(item, 0)) / FG_TILE * FG_TILE; }
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// Word `i` of a query, times scaling.
template <typename K>
inline uint32_t query_word(const float* query, int64_t i, float scaling) {
  if (!K::IS_DOT) return bits_of(query[i] * scaling);
  return to_bf16(query[2 * i] * scaling) | (uint32_t)to_bf16(query[2 * i + 1] * scaling) << 16;
}

template <typename K, int ROWS>
static void begin_rows(const Call& call, const Item& item, Rows& rows) {
  const fg_kv_layer* layer = call.layer;
  int64_t group = call.group(), stride = padded(layer->value_size), kv_len = call.batch->kv_lens[item.sequence];
  const int64_t words = layer->key_size / K::VALUES * K::OPERANDS;
  uint32_t* queries = (uint32_t*)fg_scratch(FG_SCRATCH_INPUT, words * ROWS * sizeof(uint32_t));
  rows.queries = queries;
  rows.sums = (float*)fg_scratch(FG_SCRATCH_SUMS, ROWS * stride * sizeof(float));
  memset(rows.sums, 0, ROWS * stride * sizeof(float));
  rows.num_rows = item.num_rows;
  rows.highest = splat(UNSEEN);
  for (int64_t row = 0; row < ROWS; ++row) {
    rows.totals[row] = f32x16{};
    rows.first_seen[row] = rows.last_seen[row] = 0;
    for (int64_t i = 0; i < words; ++i) queries[i * ROWS + row] = 0;
  }
  for (int64_t row = 0; row < item.num_rows; ++row) {
    int64_t head = item.head * group + (item.first_row + row) % group;
    int64_t token = call.batch->starts[item.sequence] + (item.first_row + row) / group;
    int64_t position = call.position(item, row);
    rows.first_seen[row] = call.first_seen(position);
    rows.last_seen[row] = call.last_seen(position, kv_len);
    const float* query = call.queries + token * call.query_stride + head * layer->key_size;
    for (int64_t i = 0; i < words; ++i) queries[i * ROWS + row] = query_word<K>(query, i, call.options->scaling);
    if (call.options->sinks) {
      rows.highest[row] = call.options->sinks[head];
      rows.totals[row][0] = 1;
    }
  }
}

static void end_rows(const Call& call, const Item& item, const Rows& rows) {
  int64_t group = call.group(), value_size = call.layer->value_size;
  for (int64_t row = 0; row < item.num_rows; ++row) {
    int64_t head = item.head * group + (item.first_row + row) % group;
    int64_t token = call.batch->starts[item.sequence] + (item.first_row + row) / group;
    float* out = call.out + token * call.out_stride + head * value_size;
    f32x16 share = splat(1.0f / sum_lanes(rows.totals[row]));
    for (int64_t i = 0; i < value_size; i += 16) {
      // + 0: a sum of -0 turns into +0 when an unseen key adds 0 to it, which may not show.
      f32x16 mean = load<f32x16>(rows.sums + row * padded(value_size) + i) * share + splat(0.0f);
      store_first(out + i, mean, value_size - i);
    }
  }
}

template <typename F, int ROWS>
static void attend(const Call& call, const Item& item, const Item& following) {
  const fg_kv_layer* layer = call.layer;
  Rows rows;
  begin_rows<F, ROWS>(call, item, rows);
  int64_t first_key = call.first_tile(item), last_key = rows.last_seen[item.num_rows - 1];
  Tile tile = tile_at(layer, call.batch, item.sequence, item.head, first_key);
  alignas(64) float scores[ROWS * FG_TILE];
  for (int64_t key = first_key; key < last_key; key += FG_TILE) {
    bool is_last = key + FG_TILE >= last_key;
    const Item& next_item = is_last ? following : item;
    Tile next = tile_at(layer, call.batch, next_item.sequence, next_item.head,
                        is_last ? call.first_tile(following) : key + FG_TILE);
    score_tile<F, ROWS>(tile, next, rows, layer->key_size, scores);
    f32x16 factors = soften_tile<F, ROWS>(call.options, tile, next, key, rows, scores);
    int64_t first = rows.first_seen[0] > key ? rows.first_seen[0] - key : 0;
    int64_t last = is_last ? last_key - key : FG_TILE;
    add_values<F, ROWS>(tile, next, first, last, factors, scores, rows, layer->value_size);
    tile = next;
  }
  end_rows(call, item, rows);
}

// Kernels exist for some numbers of rows; the others leave rows empty.
template <int64_t FORMAT>
static void attend_item(const Call& call, const Item& item, const Item& following) {
  typedef Factors<FORMAT> F;
  if (item.num_rows == 1) return attend<F, 1>(call, item, following);
  if (item.num_rows == 2) return attend<F, 2>(call, item, following);
  if (item.num_rows <= 4) return attend<F, 4>(call, item, following);
  if (item.num_rows <= 6) return attend<F, 6>(call, item, following);
#if defined(__AVX512F__)
  if (item.num_rows <= 8) return attend<F, 8>(call, item, following);
  return attend<F, 12>(call, item, following);
#endif
}

// Items of each sequence follow one another, of it those of each head, so that neighbours read the same keys.
struct Items {
  const Call& call;
  int64_t* ends;  // [B]: items of all sequences up to this one

  explicit Items(const Call& of) : call(of) {
    int64_t num_sequences = of.batch->num_sequences, count = 0;
    ends = (int64_t*)fg_scratch(FG_SCRATCH_OTHER, num_sequences * sizeof(int64_t));
    for (int64_t i = 0; i < num_sequences; ++i) ends[i] = count += items_of_head(i) * of.layer->num_heads;
  }
  int64_t count() const { return call.batch->num_sequences ? ends[call.batch->num_sequences - 1] : 0; }
  int64_t rows_of_head(int64_t sequence) const { return sequence_tokens(call.batch, sequence) * call.group(); }
  int64_t items_of_head(int64_t sequence) const { return (rows_of_head(sequence) + MAX_ROWS - 1) / MAX_ROWS; }

  Item operator[](int64_t index) const {
    int64_t low = 0, high = call.batch->num_sequences - 1;
    while (low < high) {
      int64_t middle = (low + high) / 2;
      if (ends[middle] > index) high = middle;
      else low = middle + 1;
    }
    int64_t of_head = items_of_head(low), in_sequence = index - (low ? ends[low - 1] : 0);
    int64_t num_rows = rows_of_head(low), at = in_sequence % of_head;
    int64_t first = num_rows * at / of_head, last = num_rows * (at + 1) / of_head;
    return {low, in_sequence / of_head, first, last - first};
  }
};

static void paged_attention(const fg_attention* options, const float* queries, int64_t query_stride,
                            const fg_kv_layer* layer, const fg_batch* batch, float* out, int64_t out_stride) {
  Call call = {options, queries, query_stride, layer, batch, out, out_stride};
  Items items(call);
  int64_t count = items.count();
  auto attend_any = layer->format == FG_F32   ? attend_item<FG_F32>
                    : layer->format == FG_F16 ? attend_item<FG_F16>
                    : layer->format == FG_I8  ? attend_item<FG_I8>
                                              : attend_item<FG_BF16>;
  // Several items to a piece, so that the first tile of the next one can be fetched. From the end, where batches have
  // their prompts and prompts their longest rows: the last pieces to be taken are short.
  int64_t grain = count / (8 * fg_num_threads());
  grain = grain < 1 ? 1 : grain > 8 ? 8 : grain;
  parallel_for(count, grain, [&](int64_t first, int64_t last, int64_t) {
    Item item = items[count - 1 - first];
    for (int64_t i = first; i < last; ++i) {
      Item following = i + 1 < last ? items[count - 2 - i] : item;
      attend_any(call, item, following);
      item = following;
    }
  });
}
