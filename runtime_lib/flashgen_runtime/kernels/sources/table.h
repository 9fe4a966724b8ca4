// The kernels of one instruction set. `kernels_for_isa.cpp` is compiled once per set and fills one table;
// `dispatch.cpp` calls through the chosen one.
#pragma once
#include "kernels.h"

struct KernelTable {
  decltype(&fg_linear_panel_bytes) linear_panel_bytes;
  decltype(&fg_linear_num_scales) linear_num_scales;
  decltype(&fg_linear_pack) linear_pack;
  decltype(&fg_linear_unpack_row) linear_unpack_row;
  decltype(&fg_linear_forward) linear_forward;
  decltype(&fg_embed) embed;
  decltype(&fg_rms_norm) rms_norm;
  decltype(&fg_layer_norm) layer_norm;
  decltype(&fg_gated_activation) gated_activation;
  decltype(&fg_activate) activate;
  decltype(&fg_rope_angles) rope_angles;
  decltype(&fg_rope_and_store) rope_and_store;
  decltype(&fg_store_kv) store_kv;
  decltype(&fg_kv_tile_bytes) kv_tile_bytes;
  decltype(&fg_copy_blocks) copy_blocks;
  decltype(&fg_paged_attention) paged_attention;
  decltype(&fg_sample) sample;
  decltype(&fg_beam_candidates) beam_candidates;
};

// linear_tiles.cpp: linear_forward on AMX; null in a library without it.
__attribute__((weak)) void linear_forward_on_tiles(const fg_linear* layer, const float* x, int64_t x_stride, float* y,
                                                   int64_t y_stride, int64_t rows, int64_t is_added);
