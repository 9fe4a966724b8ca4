// A pool of threads that share one job at a time. The caller works too. A worker without work spins for a moment,
// because the next kernel of a step comes within microseconds, and then sleeps.
//
// A job is a range, taken piece by piece from a counter: a thread that is disturbed takes fewer pieces. Who comes late
// to a job finds it closed and does not hold it up:
//
//   caller:  write the job, open = 1, generation + 1, wake | work | open = 0 | wait until active == 0
//   worker:  wait for another generation | active + 1 | if open: work | active - 1
//
// Either the worker sees open == 0, or the caller sees its active + 1: both are sequentially consistent.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"
#include "parallel.h"

namespace {

constexpr int64_t MAX_THREADS = 256;

// Longer than what lies between two kernels of a step, far below what a scheduler calls a time slice.
constexpr int64_t SPIN_NANOSECONDS = 100000;

// Reading the clock costs as much as this many pauses.
constexpr int PAUSES_PER_LOOK = 32;

struct alignas(64) {
  fg_task task;
  void* argument;
  int64_t count;
  int64_t grain;
} job;
alignas(64) int64_t next_piece;
alignas(64) uint32_t generation;
alignas(64) int open;
alignas(64) int active;
alignas(64) int sleeping;
int stopping;

// Guards everything above and below: one job at a time, no job during a change.
pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
pthread_once_t once = PTHREAD_ONCE_INIT;
int64_t num_threads = 1;
int64_t num_started = 0;  // workers; they start with the first job that needs them
pthread_t workers[MAX_THREADS];

thread_local bool is_working = false;
thread_local int64_t own_index = 0;

template <typename T>
T get(const T* from) {
  return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}
template <typename T>
void set(T* to, T value) {
  __atomic_store_n(to, value, __ATOMIC_SEQ_CST);
}
template <typename T>
T add(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_SEQ_CST);
}

void pause_briefly() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000 + now.tv_nsec;
}

// Spins until `condition` holds; false when that takes too long.
template <typename F>
bool spin(F condition) {
  const int64_t end = nanoseconds() + SPIN_NANOSECONDS;
  do {
    for (int i = 0; i < PAUSES_PER_LOOK; ++i) {
      if (condition()) return true;
      pause_briefly();
    }
  } while (nanoseconds() < end);
  return false;
}

void work() {
  is_working = true;
  for (;;) {
    const int64_t first = add(&next_piece, job.grain);
    if (first >= job.count) break;
    const int64_t last = first + job.grain < job.count ? first + job.grain : job.count;
    job.task(job.argument, first, last, own_index);
  }
  is_working = false;
}

void wait_for_another(uint32_t seen) {
  auto has_come = [&] { return get(&generation) != seen; };
  while (!spin(has_come)) {
    add(&sleeping, 1);
    while (!has_come()) syscall(SYS_futex, &generation, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    add(&sleeping, -1);
  }
}

struct WorkerStart {
  int64_t index;
  uint32_t seen;
};

void* run_worker(void* argument) {
  const WorkerStart start = *static_cast<WorkerStart*>(argument);
  free(argument);
  own_index = start.index;
  for (uint32_t seen = start.seen; !get(&stopping);) {
    wait_for_another(seen);
    seen = get(&generation);
    add(&active, 1);
    if (get(&open)) work();
    add(&active, -1);
  }
  return nullptr;
}

void announce() {
  add(&generation, 1u);
  if (get(&sleeping)) syscall(SYS_futex, &generation, FUTEX_WAKE_PRIVATE, MAX_THREADS, nullptr, nullptr, 0);
}

// Signals are for the process's own threads. Where no more threads can be had, fewer work.
void start_workers() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (num_started < num_threads - 1) {
    auto* start = static_cast<WorkerStart*>(malloc(sizeof(WorkerStart)));
    *start = {num_started + 1, get(&generation)};
    if (pthread_create(&workers[num_started], nullptr, run_worker, start) != 0) {
      free(start);
      break;
    }
    ++num_started;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void stop_workers() {
  set(&stopping, 1);
  announce();
  for (int64_t i = 0; i < num_started; ++i) pthread_join(workers[i], nullptr);
  num_started = 0;
  set(&stopping, 0);
}

// A child of fork has the forking thread only. It comes between two jobs, and starts workers of its own when it needs
// them.
void before_fork() { pthread_mutex_lock(&turn); }
void after_fork_in_parent() { pthread_mutex_unlock(&turn); }
void after_fork_in_child() {
  num_started = 0;
  active = sleeping = 0;
  pthread_mutex_init(&turn, nullptr);
}

// --- scratch memory --------------------------------------------------------------------------------------------------

struct Scratch {
  void* memory[FG_SCRATCH_SLOTS];
  int64_t bytes[FG_SCRATCH_SLOTS];
};
thread_local Scratch scratch;
pthread_key_t scratch_key;  // frees the memory of a thread that ends

void free_scratch(void* own) {
  for (void* memory : static_cast<Scratch*>(own)->memory) free(memory);
}

void set_up() {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  pthread_key_create(&scratch_key, free_scratch);
}

}  // namespace

extern "C" {

void fg_parallel(int64_t count, int64_t grain, fg_task task, void* argument) {
  if (count <= 0) return;
  if (is_working) return task(argument, 0, count, own_index);
  pthread_once(&once, set_up);
  pthread_mutex_lock(&turn);
  if (count <= grain || num_threads == 1) {
    is_working = true;
    task(argument, 0, count, 0);
    is_working = false;
  } else {
    if (num_started < num_threads - 1) start_workers();
    job = {task, argument, count, grain};
    set(&next_piece, int64_t{0});
    set(&open, 1);
    announce();
    work();
    set(&open, 0);
    // A worker that lost its core in the middle of a piece: let it have this one.
    while (!spin([] { return get(&active) == 0; })) sched_yield();
  }
  pthread_mutex_unlock(&turn);
}

void fg_set_num_threads(int64_t count) {
  pthread_once(&once, set_up);
  pthread_mutex_lock(&turn);
  count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  if (count < num_threads) stop_workers();
  num_threads = count;
  pthread_mutex_unlock(&turn);
}

int64_t fg_num_threads(void) { return get(&num_threads); }

void* fg_scratch(int64_t slot, int64_t bytes) {
  if (scratch.bytes[slot] < bytes) {
    pthread_once(&once, set_up);
    pthread_setspecific(scratch_key, &scratch);
    free(scratch.memory[slot]);
    scratch.bytes[slot] = (bytes + 63) / 64 * 64;
    scratch.memory[slot] = aligned_alloc(64, scratch.bytes[slot]);
    if (!scratch.memory[slot]) abort();  // as malloc's callers in torch: no result can be given
  }
  return scratch.memory[slot];
}

}  // extern "C"
