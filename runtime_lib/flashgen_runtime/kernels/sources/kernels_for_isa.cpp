// All kernels for one instruction set: compiled with that set's flags and FG_ISA=<its name>.
#include "dot.h"
#include "kernels.h"
#include "kv_cache.h"
#include "math.h"
#include "panel.h"
#include "parallel.h"
#include "rows.h"
#include "table.h"
#include "vector.h"

#define FG_JOIN_(a, b) a##b
#define FG_JOIN(a, b) FG_JOIN_(a, b)

namespace FG_ISA {
namespace linear {
#include "linear_formats.h"
#include "linear_layer.h"
#include "linear_pack.cpp"
#include "linear.cpp"
}  // namespace linear
using linear::linear_forward, linear::linear_num_scales, linear::linear_pack, linear::linear_panel_bytes,
    linear::linear_unpack_row;

#include "embedding.cpp"
#include "norm.cpp"
#include "activation.cpp"
#include "rope_store.cpp"
#include "attention.cpp"
namespace sampling {
#include "logits.h"
#include "selection.h"
#include "sampling.cpp"
}  // namespace sampling
using sampling::beam_candidates, sampling::sample;
}  // namespace FG_ISA

extern const KernelTable FG_JOIN(fg_table_, FG_ISA);
const KernelTable FG_JOIN(fg_table_, FG_ISA) = {
    FG_ISA::linear_panel_bytes, FG_ISA::linear_num_scales, FG_ISA::linear_pack,    FG_ISA::linear_unpack_row,
    FG_ISA::linear_forward,     FG_ISA::embed,             FG_ISA::rms_norm,       FG_ISA::layer_norm,
    FG_ISA::gated_activation,   FG_ISA::activate,          FG_ISA::rope_angles,    FG_ISA::rope_and_store,
    FG_ISA::store_kv,           FG_ISA::kv_tile_bytes,     FG_ISA::copy_blocks,    FG_ISA::paged_attention,
    FG_ISA::sample,             FG_ISA::beam_candidates,
};
