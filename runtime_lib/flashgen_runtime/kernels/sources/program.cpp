// Runs a list of operations over one batch: a whole step of a model is one call from outside. Which kernel does the
// work is decided behind the `fg_` functions, so this file is compiled once, for all instruction sets.
#include <string.h>

#include "kernels.h"
#include "parallel.h"

static void embed_panels(const fg_op* op, const int64_t* ids, int64_t rows) {
  const fg_linear* table = static_cast<const fg_linear*>(op->weight);
  parallel_for(rows, 1, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t row = first; row < last; ++row) {
      float* out = op->out + row * op->out_stride;
      fg_linear_unpack_row(table, ids[row], out);
      for (int64_t i = 0; i < table->in_features; ++i) out[i] *= op->factor;
    }
  });
}

static void select_rows(const fg_op* op, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    memcpy(op->out + i * op->out_stride, op->x + rows[i] * op->x_stride, op->size * sizeof(float));
}

static void run(const fg_op* op, const fg_batch* batch) {
  int64_t rows = op->is_sampled ? batch->num_sampled : batch->num_tokens;
  if (rows == 0) return;
  const float* weight = static_cast<const float*>(op->weight);
  switch (op->kind) {
    case FG_OP_EMBED:
      return fg_embed(op->weight, op->mode, op->size, batch->token_ids, rows, op->factor, op->out, op->out_stride,
                      op->is_added);
    case FG_OP_EMBED_POSITIONS:
      return fg_embed(op->weight, op->mode, op->size, batch->positions, rows, op->factor, op->out, op->out_stride,
                      op->is_added);
    case FG_OP_EMBED_PANELS:
      return embed_panels(op, batch->token_ids, rows);
    case FG_OP_SELECT_ROWS:
      return select_rows(op, batch->sampled_rows, rows);
    case FG_OP_RMS_NORM:
      return fg_rms_norm(op->x, op->x_stride, weight, 0, op->factor, op->out, op->out_stride, rows, op->size);
    case FG_OP_LAYER_NORM:
      return fg_layer_norm(op->x, op->x_stride, weight, op->bias, op->factor, op->out, op->out_stride, rows, op->size);
    case FG_OP_LINEAR:
      return fg_linear_forward(static_cast<const fg_linear*>(op->weight), op->x, op->x_stride, op->out, op->out_stride,
                               rows, op->is_added);
    case FG_OP_ROPE_ANGLES:
      return fg_rope_angles(batch->positions, weight, op->size, op->factor, op->out, rows);
    case FG_OP_ROPE_AND_STORE:
      return fg_rope_and_store(static_cast<const fg_rope_store*>(op->options), op->out, op->out_stride, op->x,
                               op->layer, batch->slots, rows);
    case FG_OP_ATTENTION:
      return fg_paged_attention(static_cast<const fg_attention*>(op->options), op->x, op->x_stride, op->layer, batch,
                                op->out, op->out_stride);
    case FG_OP_ACTIVATE:
      return fg_activate(op->mode, op->x, op->x_stride, op->out, op->out_stride, rows, op->size);
    case FG_OP_GATED_ACTIVATION:
      return fg_gated_activation(op->mode, op->x, op->x_stride, op->out, op->out_stride, rows, op->size);
  }
}

extern "C" void fg_program_run(const fg_op* ops, int64_t count, const fg_batch* batch) {
  for (int64_t i = 0; i < count; ++i) run(ops + i, batch);
}
