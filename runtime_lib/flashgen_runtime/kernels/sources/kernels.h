// The C interface of the kernels: pointers and sizes only, neither torch nor Python. `library.py` declares the same.
//
// Activations are rows of float32; a stride counts values. Weights are panels of 32 columns (see `linear.cpp`), keys
// and values lie in tiles of 32 tokens (see `kv_cache.h`). Every function that computes shares its work among the
// threads of one pool and returns when all of it is done; calls from several threads take turns.
//
// Every result is a function of its own row alone: one order of reduction, whatever else is in the batch, however many
// threads there are.
#pragma once
#include <stdint.h>

// Everything else in the library is hidden.
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

// How numbers are stored. int8 and int4 have scales beside them.
enum fg_format { FG_F32 = 0, FG_F16 = 1, FG_BF16 = 2, FG_I8 = 3, FG_I4 = 4 };

// How the values of a weight matrix lie: in panels, or (float formats) row-major as in a checkpoint.
// FG_ROWS_IN_ANY_ORDER may sum few rows of activations in another order than many, which is faster.
enum fg_layout { FG_PANELS = 0, FG_ROWS = 1, FG_ROWS_IN_ANY_ORDER = 2 };

// One linear layer: y = x W^T + bias, W is [out_features, in_features].
typedef struct {
  int64_t format;
  int64_t in_features;
  int64_t out_features;
  int64_t group_size;   // FG_I4: values of one column that share a scale; else 0
  const void* panels;   // ceil(out_features / 32) panels, or the rows
  const float* scales;  // FG_I8: [panels * 32]; FG_I4: [panels, groups, 32]; else null
  const float* bias;    // [out_features] or null
  int64_t layout;
  const float* offsets;  // FG_I4: as scales, added to every value of the group; or null
} fg_linear;

// Keys and values of one attention layer, see `kv_cache.h`.
typedef struct {
  int64_t format;  // FG_F32, FG_F16, FG_BF16 or FG_I8
  int64_t num_heads;
  int64_t key_size;    // multiple of 4
  int64_t value_size;  // multiple of 4
  void* keys;
  void* values;
  float* key_scales;    // FG_I8: [tiles, num_heads, 32]; else null
  float* value_scales;  // as key_scales
} fg_kv_layer;

// One step: T tokens of B sequences in one flat row, without padding.
typedef struct {
  int64_t num_tokens;
  int64_t num_sequences;
  int64_t block_size;          // tokens of a block, a multiple of 32
  int64_t block_table_stride;  // blocks of a row of block_tables
  int64_t num_sampled;
  const int64_t* token_ids;     // [T]
  const int64_t* positions;     // [T]
  const int64_t* slots;         // [T]: where keys and values go; token i of block b is slot b * block_size + i
  const int64_t* starts;        // [B + 1]: sequence i has the tokens starts[i] .. starts[i + 1]
  const int64_t* kv_lens;       // [B]: tokens in the cache after this step
  const int64_t* block_tables;  // [B, block_table_stride]
  const int64_t* sampled_rows;  // [num_sampled]
} fg_batch;

// What attention needs beside its inputs.
typedef struct {
  int64_t num_heads;  // of the queries; a multiple of the cache's
  float scaling;      // factor of the scores
  float softcap;      // scores become softcap * tanh(score / softcap); 0: they stay
  int64_t window;     // a token sees those less than this far away; 0: all
  int64_t is_causal;  // 0: a token sees those after it too
  const float* sinks; // [num_heads]: one more score in each softmax, without a value; or null
} fg_attention;

// --- library ---------------------------------------------------------------------------------------------------------

// Version of this interface; the Python side refuses another one.
int64_t fg_interface_version(void);

// Names of the instruction sets that this processor runs and this library was built for, best first, by comma. The last
// of them may be amx, which has never run on such a processor: it is to be taken only when it is asked for.
const char* fg_available_isas(void);
const char* fg_current_isa(void);
// 0, or -1 for a name that is not among them, or that the system refuses. Panels are the same for all.
int64_t fg_select_isa(const char* name);

// Threads that work, the caller among them.
void fg_set_num_threads(int64_t count);
int64_t fg_num_threads(void);

// --- linear.cpp ------------------------------------------------------------------------------------------------------

// Bytes of the panels of a layer; scales come beside them, float32: fg_linear_num_scales values.
int64_t fg_linear_panel_bytes(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size);
int64_t fg_linear_num_scales(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size);

// Packs W, [out_features, in_features], rows of float32, float16 or bfloat16 (weight_format), into panels of `format`.
// int8 and int4 round to nearest with a scale per column, or per column and group.
void fg_linear_pack(int64_t format, int64_t group_size, const void* weight, int64_t weight_format, int64_t in_features,
                    int64_t out_features, void* panels, float* scales);

// One row of W as float32: [in_features]. For embeddings whose only copy are panels.
void fg_linear_unpack_row(const fg_linear* layer, int64_t row, float* values);

// y[rows, out_features] = x[rows, in_features] W^T + bias, or that added to y.
void fg_linear_forward(const fg_linear* layer, const float* x, int64_t x_stride, float* y, int64_t y_stride,
                       int64_t rows, int64_t is_added);

// --- embedding.cpp ---------------------------------------------------------------------------------------------------

// out[i] = scale * table[ids[i]] (+ out[i]); the table is row-major in FG_F32, FG_F16 or FG_BF16.
void fg_embed(const void* table, int64_t format, int64_t size, const int64_t* ids, int64_t rows, float scale,
              float* out, int64_t out_stride, int64_t is_added);

// --- norm.cpp --------------------------------------------------------------------------------------------------------

// out = x / sqrt(mean(x^2) + eps) * (weight + offset); in place when out == x.
void fg_rms_norm(const float* x, int64_t x_stride, const float* weight, float offset, float eps, float* out,
                 int64_t out_stride, int64_t rows, int64_t size);
// out = (x - mean) / sqrt(variance + eps) * weight + bias
void fg_layer_norm(const float* x, int64_t x_stride, const float* weight, const float* bias, float eps, float* out,
                   int64_t out_stride, int64_t rows, int64_t size);

// --- activation.cpp --------------------------------------------------------------------------------------------------

enum fg_activation { FG_SILU = 0, FG_GELU = 1, FG_GELU_TANH = 2, FG_RELU = 3 };

// out[size] = act(x[0 .. size]) * x[size .. 2 size]
void fg_gated_activation(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                         int64_t size);
void fg_activate(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                 int64_t size);

// --- rope_store.cpp --------------------------------------------------------------------------------------------------

// cos and sin of positions[i] * frequencies[j], times `factor`: out [rows, 2 * count], cosines first.
void fg_rope_angles(const int64_t* positions, const float* frequencies, int64_t count, float factor, float* out,
                    int64_t rows);

// One pass over a row of queries, keys and values as the fused projection leaves them:
//   qkv [rows, (num_heads + 2 * layer.num_heads) * head size], queries first;
// queries and keys are normed over the head size (RMS; weights [head size] or null) and rotated (halves of the first
// 2 * count values of a head: "neox"); keys and values go to their slots; queries stay in qkv.
typedef struct {
  int64_t num_heads;
  const float* query_norm;
  const float* key_norm;
  float norm_eps;
  float norm_offset;
  int64_t rope_count;  // angles of a head; 0: no rotation
} fg_rope_store;
void fg_rope_and_store(const fg_rope_store* options, float* qkv, int64_t qkv_stride, const float* angles,
                       const fg_kv_layer* layer, const int64_t* slots, int64_t rows);

// Stores keys [rows, num_heads, key_size] and values [rows, num_heads, value_size]; strides of rows and of heads.
void fg_store_kv(const float* keys, int64_t key_stride, int64_t key_head_stride, const float* values,
                 int64_t value_stride, int64_t value_head_stride, const fg_kv_layer* layer, const int64_t* slots,
                 int64_t rows);

// Bytes of one tile (32 tokens, all heads) of keys or of values, for one head size.
int64_t fg_kv_tile_bytes(int64_t format, int64_t num_heads, int64_t head_size);
// Copies whole blocks of a layer, keys, values and scales: pairs [count, 2] of source and target.
void fg_copy_blocks(const fg_kv_layer* layer, int64_t block_size, const int64_t* pairs, int64_t count);

// --- attention.cpp ---------------------------------------------------------------------------------------------------

// queries: row i at queries + i * query_stride, heads one after another, key_size each; out: [T, num_heads * value_size].
void fg_paged_attention(const fg_attention* options, const float* queries, int64_t query_stride,
                        const fg_kv_layer* layer, const fg_batch* batch, float* out, int64_t out_stride);

// --- program.cpp -----------------------------------------------------------------------------------------------------

// One step of a model: x and out are rows of activations, one for each token of the batch, or for each sampled row.
enum fg_op_kind {
  FG_OP_EMBED = 0,             // out = factor * row token_ids[i] of `weight` (a table of format `mode`, rows of `size`)
  FG_OP_EMBED_POSITIONS = 1,   // the same with row positions[i]
  FG_OP_EMBED_PANELS = 2,      // the same as FG_OP_EMBED, `weight` is an fg_linear
  FG_OP_SELECT_ROWS = 3,       // out = rows of x that are sampled, `size` values each
  FG_OP_RMS_NORM = 4,          // `weight`, factor: epsilon
  FG_OP_LAYER_NORM = 5,        // `weight`, `bias`, factor: epsilon
  FG_OP_LINEAR = 6,            // `weight` is an fg_linear
  FG_OP_ROPE_ANGLES = 7,       // `weight`: `size` frequencies; factor: of cosines and sines
  FG_OP_ROPE_AND_STORE = 8,    // out: queries, keys and values; x: angles; `options` is an fg_rope_store
  FG_OP_ATTENTION = 9,         // `options` is an fg_attention
  FG_OP_ACTIVATE = 10,         // mode: enum fg_activation
  FG_OP_GATED_ACTIVATION = 11  // the same
};
typedef struct {
  int64_t kind;
  int64_t is_sampled;  // 0: as many rows as tokens; 1: as many rows as are sampled
  int64_t is_added;    // FG_OP_EMBED.., FG_OP_LINEAR: out += instead of out =
  int64_t mode;
  int64_t size;
  int64_t x_stride;
  int64_t out_stride;
  const float* x;
  float* out;
  const void* weight;
  const float* bias;
  const void* options;
  const fg_kv_layer* layer;  // FG_OP_ROPE_AND_STORE, FG_OP_ATTENTION
  float factor;
} fg_op;

// Does one operation after the other; those that have no rows are left out.
void fg_program_run(const fg_op* ops, int64_t count, const fg_batch* batch);

// --- sampling.cpp ----------------------------------------------------------------------------------------------------

// How one row's token is chosen, and the result.
typedef struct {
  // Changes of the logits, in this order: penalties for tokens that occurred, biases, the mask.
  int64_t num_counted;
  const int64_t* counted_ids;  // tokens of prompt and completion, each once
  const int64_t* counts;       // how often each is in the completion
  int64_t num_biased;
  const int64_t* biased_ids;
  const float* biases;
  const uint32_t* mask;  // bit i % 32 of word i / 32: token i is allowed; or null
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;

  // Filters, in this order, then the draw.
  float inverse_temperature;  // infinity: the largest logit is taken
  int64_t top_k;              // 0: all
  double top_p;               // 1: all
  double typical_p;           // 1: all
  double uniform;             // in [0, 1)
  float log_min_p;            // minus infinity: all

  // Results: log probabilities by the logits as they came.
  float logprob;         // of the token
  int64_t has_logprobs;  // whether they are asked for
  int64_t num_best;      // at most the vocabulary
  int64_t* best_ids;     // [num_best], best first
  float* best_logprobs;  // [num_best]
  int64_t token_id;
} fg_sampling_row;

// One token for each of `count` rows of logits.
void fg_sample(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows, int64_t count);

// The num_best best of each row's log probabilities after the changes, which here apply to log probabilities.
void fg_beam_candidates(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows, int64_t count);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
