// Attention and what stands before it against plain loops, beside `kernels_on_arm.cpp`: a prompt in a cache of random
// blocks, whole and token by token.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static const int64_t HEADS = 6, KV_HEADS = 2, SIZE = 36, TOKENS = 70, BLOCK = 32, COUNT = 8;
static const int64_t ROW = (HEADS + 2 * KV_HEADS) * SIZE;

static uint32_t state = 7;
static float uniform(void) {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

// The error of storing one value of magnitude up to 2.
static double step_of(int64_t format) {
  return format == FG_F32 ? 1e-6 : format == FG_F16 ? 1e-3 : format == FG_BF16 ? 8e-3 : 2.0 / 127;
}

int check_attention(int64_t format) {
  const int64_t blocks[] = {3, 0, 2}, starts[] = {0, TOKENS}, kv_lens[] = {TOKENS};
  int64_t positions[TOKENS], slots[TOKENS];
  float frequencies[COUNT];
  float* qkv = (float*)malloc(TOKENS * ROW * 4);
  float* plain = (float*)malloc(TOKENS * ROW * 4);
  float* angles = (float*)malloc(TOKENS * 2 * COUNT * 4);
  float* out = (float*)malloc(TOKENS * HEADS * SIZE * 4);
  float* alone = (float*)malloc(HEADS * SIZE * 4);
  const int64_t bytes = 4 * fg_kv_tile_bytes(format, KV_HEADS, SIZE);
  fg_kv_layer layer = {format, KV_HEADS, SIZE, SIZE, calloc(bytes, 1), calloc(bytes, 1)};
  layer.key_scales = (float*)calloc(4 * KV_HEADS * 32, 4), layer.value_scales = (float*)calloc(4 * KV_HEADS * 32, 4);
  for (int64_t i = 0; i < TOKENS; ++i) positions[i] = i, slots[i] = blocks[i / BLOCK] * BLOCK + i % BLOCK;
  for (int64_t i = 0; i < COUNT; ++i) frequencies[i] = (float)pow(100.0, -(double)i / COUNT);
  for (int64_t i = 0; i < TOKENS * ROW; ++i) qkv[i] = plain[i] = uniform();

  fg_rope_angles(positions, frequencies, COUNT, 1, angles, TOKENS);
  fg_rope_store rope = {HEADS, 0, 0, 0, 0, COUNT};
  fg_rope_and_store(&rope, qkv, ROW, angles, &layer, slots, TOKENS);
  fg_batch batch = {TOKENS, 1, BLOCK, 3};
  batch.starts = starts, batch.kv_lens = kv_lens, batch.block_tables = blocks;
  fg_attention attention = {HEADS, 0.3f, 5.0f, 50, 1, 0};
  fg_paged_attention(&attention, qkv, ROW, &layer, &batch, out, HEADS * SIZE);

  int differs = 0;
  for (int64_t t = 0; t < TOKENS; ++t) {
    const int64_t one[] = {0, 1}, len[] = {t + 1};
    batch.num_tokens = 1, batch.starts = one, batch.kv_lens = len;
    fg_paged_attention(&attention, qkv + t * ROW, ROW, &layer, &batch, alone, HEADS * SIZE);
    differs |= memcmp(alone, out + t * HEADS * SIZE, HEADS * SIZE * 4) != 0;
  }

  double error = 0;
  for (int64_t t = 0; t < TOKENS; ++t) {
    for (int64_t h = 0; h < HEADS + KV_HEADS; ++h) {
      float* x = plain + t * ROW + h * SIZE;
      for (int64_t i = 0; i < COUNT; ++i) {
        const double angle = (float)t * frequencies[i], a = x[i], b = x[i + COUNT];
        x[i] = (float)(a * cos(angle) - b * sin(angle)), x[i + COUNT] = (float)(b * cos(angle) + a * sin(angle));
      }
    }
  }
  for (int64_t t = 0; t < TOKENS; ++t) {
    for (int64_t h = 0; h < HEADS; ++h) {
      double sums[SIZE] = {}, total = 0;
      for (int64_t key = t < 50 ? 0 : t - 49; key <= t; ++key) {
        const float* k = plain + key * ROW + (HEADS + h / 3) * SIZE;
        double score = 0;
        for (int64_t i = 0; i < SIZE; ++i) score += (double)plain[t * ROW + h * SIZE + i] * k[i];
        const double weight = exp(5 * tanh(0.3 * score / 5));
        total += weight;
        for (int64_t i = 0; i < SIZE; ++i) sums[i] += weight * k[KV_HEADS * SIZE + i];
      }
      for (int64_t i = 0; i < SIZE; ++i) error = fmax(error, fabs(sums[i] / total - out[(t * HEADS + h) * SIZE + i]));
    }
  }
  free(qkv), free(plain), free(angles), free(out), free(alone);
  free(layer.keys), free(layer.values), free(layer.key_scales), free(layer.value_scales);
  if (error < step_of(format) && !differs) return 0;
  printf("attention, format %d: off by %g, differs alone: %d\n", (int)format, error, differs);
  return 1;
}
