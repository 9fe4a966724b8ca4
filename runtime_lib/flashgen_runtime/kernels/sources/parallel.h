// Shares a range among the threads of the pool, and memory that a thread keeps (thread_pool.cpp).
#pragma once
#include <stdint.h>

#pragma GCC visibility push(default)
extern "C" {
typedef void (*fg_task)(void* argument, int64_t first, int64_t last, int64_t thread);
// Runs task over 0 .. count in pieces of `grain`, each exactly once, in any order and on any thread; 0 <= thread <
// fg_num_threads(). Returns when all are done. A call from within a task runs alone on its thread.
void fg_parallel(int64_t count, int64_t grain, fg_task task, void* argument);

// Memory of the calling thread, 64-byte aligned, not cleared; valid until the thread asks for the same slot again.
// Who needs memory in the calling thread and in the tasks that it starts takes one slot for each.
void* fg_scratch(int64_t slot, int64_t bytes);
}
#pragma GCC visibility pop

// A slot per use, so that no kernel takes what its caller still reads.
enum fg_scratch_slot { FG_SCRATCH_INPUT, FG_SCRATCH_SUMS, FG_SCRATCH_WEIGHTS, FG_SCRATCH_OTHER, FG_SCRATCH_SLOTS };

namespace {
template <typename F>
inline void parallel_for(int64_t count, int64_t grain, F&& body) {
  fg_parallel(
      count, grain,
      [](void* argument, int64_t first, int64_t last, int64_t thread) {
        (*static_cast<__typeof__(&body)>(argument))(first, last, thread);
      },
      (void*)&body);
}
}  // namespace
