// The library's functions: each calls the kernel of the chosen instruction set. Which sets there are is asked of the
// processor and of the system, which must save the registers.
#include <string.h>

#include "table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

// A library may be built with some of the sets only: the tables of the others are null.
#define FG_DECLARE(isa) extern const KernelTable fg_table_##isa __attribute__((weak));
#if defined(__x86_64__)
#define FG_ISAS(X) X(avx512_bf16) X(avx512_vnni) X(avx512) X(avx2)
#else
#define FG_ISAS(X) X(neon)
#endif
FG_ISAS(FG_DECLARE)

namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r = {};
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool has(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

// Which registers the system saves: bit 1 and 2 are those of AVX, bits 5 to 7 those of AVX-512.
uint32_t saved_registers() {
  constexpr uint32_t OSXSAVE = 1u << 27;
  if (!has(cpuid(1, 0).c, OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Bits as in the processors' manuals: leaf 1 ECX, leaf 7 EBX and ECX, leaf 7.1 EAX.
bool has_avx2() {
  constexpr uint32_t FMA = 1u << 12, F16C = 1u << 29, BMI1 = 1u << 3, AVX2 = 1u << 5, BMI2 = 1u << 8;
  return has(saved_registers(), 0x6) && has(cpuid(1, 0).c, FMA | F16C) && has(cpuid(7, 0).b, BMI1 | AVX2 | BMI2);
}
bool has_avx512() {
  constexpr uint32_t F = 1u << 16, DQ = 1u << 17, CD = 1u << 28, BW = 1u << 30, VL = 1u << 31;
  return has_avx2() && has(saved_registers(), 0xe6) && has(cpuid(7, 0).b, F | DQ | CD | BW | VL);
}
bool has_avx512_vnni() { return has_avx512() && has(cpuid(7, 0).c, 1u << 11); }
bool has_avx512_bf16() { return has_avx512_vnni() && has(cpuid(7, 1).a, 1u << 5); }

// Of amx: linear layers on tiles, all else as avx512_bf16 does it.
KernelTable table_with_tiles;

#if defined(FG_EMULATED_TILES)
bool has_amx() { return has_avx512_bf16(); }
bool may_use_tiles() { return true; }
#else
// Bits 17 and 18 of the saved registers are the tiles' shapes and contents; leaf 7 EDX.
bool has_amx() {
  constexpr uint32_t BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
  return has_avx512_bf16() && has(saved_registers(), 0x60000) && has(cpuid(7, 0).d, BF16 | TILE | INT8);
}
// The system gives a process's threads room for tiles when it asks for it, once.
bool may_use_tiles() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_CONTENTS = 18;  // of asm/prctl.h; which registers
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_CONTENTS) == 0;
}
#endif

#else

bool has_neon() {
  constexpr unsigned long wanted = HWCAP_ASIMD | HWCAP_ASIMDHP | HWCAP_ASIMDDP;
  return (getauxval(AT_HWCAP) & wanted) == wanted;
}

#endif

struct Isa {
  const char* name;
  const KernelTable* table;
};
constexpr int MAX_ISAS = 8;

struct Isas {
  Isa list[MAX_ISAS];
  int count = 0;
  char names[256] = "";

  Isas() {
#define FG_ADD(isa) \
  if (&fg_table_##isa && has_##isa()) add({#isa, &fg_table_##isa});
    FG_ISAS(FG_ADD)
#if defined(__x86_64__)
    // NOTE: last, so that nobody takes by default what has not run on such a processor yet.
    if (&linear_forward_on_tiles && &fg_table_avx512_bf16 && has_amx()) {
      table_with_tiles = fg_table_avx512_bf16;
      table_with_tiles.linear_forward = linear_forward_on_tiles;
      add({"amx", &table_with_tiles});
    }
#endif
  }
  void add(Isa isa) {
    if (count) strcat(names, ",");
    strcat(names, isa.name);
    list[count++] = isa;
  }
};

const Isas isas;
const Isa* current = isas.list;
inline const KernelTable* table() { return current->table; }

}  // namespace

extern "C" {

int64_t fg_interface_version(void) { return 2; }
const char* fg_available_isas(void) { return isas.names; }
const char* fg_current_isa(void) { return isas.count ? current->name : ""; }
int64_t fg_select_isa(const char* name) {
  for (int i = 0; i < isas.count; ++i) {
    if (strcmp(isas.list[i].name, name) == 0) {
#if defined(__x86_64__)
      if (isas.list[i].table == &table_with_tiles && !may_use_tiles()) return -1;
#endif
      current = &isas.list[i];
      return 0;
    }
  }
  return -1;
}

int64_t fg_linear_panel_bytes(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size) {
  return table()->linear_panel_bytes(format, in_features, out_features, group_size);
}
int64_t fg_linear_num_scales(int64_t format, int64_t in_features, int64_t out_features, int64_t group_size) {
  return table()->linear_num_scales(format, in_features, out_features, group_size);
}
void fg_linear_pack(int64_t format, int64_t group_size, const void* weight, int64_t weight_format, int64_t in_features,
                    int64_t out_features, void* panels, float* scales) {
  table()->linear_pack(format, group_size, weight, weight_format, in_features, out_features, panels, scales);
}
void fg_linear_unpack_row(const fg_linear* layer, int64_t row, float* values) {
  table()->linear_unpack_row(layer, row, values);
}
void fg_linear_forward(const fg_linear* layer, const float* x, int64_t x_stride, float* y, int64_t y_stride,
                       int64_t rows, int64_t is_added) {
  table()->linear_forward(layer, x, x_stride, y, y_stride, rows, is_added);
}
void fg_embed(const void* weight, int64_t format, int64_t size, const int64_t* ids, int64_t rows, float scale,
              float* out, int64_t out_stride, int64_t is_added) {
  table()->embed(weight, format, size, ids, rows, scale, out, out_stride, is_added);
}
void fg_rms_norm(const float* x, int64_t x_stride, const float* weight, float offset, float eps, float* out,
                 int64_t out_stride, int64_t rows, int64_t size) {
  table()->rms_norm(x, x_stride, weight, offset, eps, out, out_stride, rows, size);
}
void fg_layer_norm(const float* x, int64_t x_stride, const float* weight, const float* bias, float eps, float* out,
                   int64_t out_stride, int64_t rows, int64_t size) {
  table()->layer_norm(x, x_stride, weight, bias, eps, out, out_stride, rows, size);
}
void fg_gated_activation(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                         int64_t size) {
  table()->gated_activation(kind, x, x_stride, out, out_stride, rows, size);
}
void fg_activate(int64_t kind, const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t rows,
                 int64_t size) {
  table()->activate(kind, x, x_stride, out, out_stride, rows, size);
}
void fg_rope_angles(const int64_t* positions, const float* frequencies, int64_t count, float factor, float* out,
                    int64_t rows) {
  table()->rope_angles(positions, frequencies, count, factor, out, rows);
}
void fg_rope_and_store(const fg_rope_store* options, float* qkv, int64_t qkv_stride, const float* angles,
                       const fg_kv_layer* layer, const int64_t* slots, int64_t rows) {
  table()->rope_and_store(options, qkv, qkv_stride, angles, layer, slots, rows);
}
void fg_store_kv(const float* keys, int64_t key_stride, int64_t key_head_stride, const float* values,
                 int64_t value_stride, int64_t value_head_stride, const fg_kv_layer* layer, const int64_t* slots,
                 int64_t rows) {
  table()->store_kv(keys, key_stride, key_head_stride, values, value_stride, value_head_stride, layer, slots, rows);
}
int64_t fg_kv_tile_bytes(int64_t format, int64_t num_heads, int64_t head_size) {
  return table()->kv_tile_bytes(format, num_heads, head_size);
}
void fg_copy_blocks(const fg_kv_layer* layer, int64_t block_size, const int64_t* pairs, int64_t count) {
  table()->copy_blocks(layer, block_size, pairs, count);
}
void fg_paged_attention(const fg_attention* options, const float* queries, int64_t query_stride,
                        const fg_kv_layer* layer, const fg_batch* batch, float* out, int64_t out_stride) {
  table()->paged_attention(options, queries, query_stride, layer, batch, out, out_stride);
}
void fg_sample(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows, int64_t count) {
  table()->sample(logits, stride, vocab_size, rows, count);
}
void fg_beam_candidates(const float* logits, int64_t stride, int64_t vocab_size, fg_sampling_row* rows, int64_t count) {
  table()->beam_candidates(logits, stride, vocab_size, rows, count);
}

}  // extern "C"
