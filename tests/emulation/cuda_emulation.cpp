// The runtime of cuda_emulation.h: fibers, their schedule, barriers and warp collectives.
//
// Compiled without -fsanitize=thread even where the kernels have it: the runtime tells ThreadSanitizer which orderings
// the emulated program has, and must not appear in it itself.
#include "cuda_emulation.h"

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "fiber_switch.h"

namespace cuemu {
namespace {

enum Order { kInTurn, kReversed, kRandom };
enum Copies { kAtWait, kAtIssue, kAnytime };

// Shared memory of a block: Turing's, or the least among the devices since.
constexpr size_t kSharedLimit = (CUEMU_ARCH >= 800 ? 99 : 64) * 1024;

struct Options {
  int order = kInTurn;
  int copies = kAtWait;
  uint64_t seed = 0;
  std::string unordered;  // "file:line" of a barrier or fence that meets but orders nothing: an injected bug
};

struct Warp;

struct Thread {
  Fiber fiber;
  uint3 index;
  int linear, lane;
  Warp* warp;
  bool done, ready, fenced;
  const char *waits_for, *file;
  int line;
  std::vector<Copy> copies;
  int group;
  size_t issued;
  std::vector<const void*> acquired;  // atomics read since the last fence
};

struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char *name = nullptr, *file = nullptr;
  int line = 0, id = 0;
  LaneData lanes[32];
};

struct Warp {
  Thread* threads[32] = {};
  uint32_t exists = 0, exited = 0;
  int meetings_held = 0;
  Meeting meetings[8];
  char* order_keys;  // ThreadSanitizer's names for meetings
  std::vector<std::array<uintptr_t, 32>> copies;
};

Options options;
std::string error_text;
uint64_t random_state;
std::map<const void*, size_t> allowed_shared;

std::vector<Thread*> pool;
Thread* current;
std::vector<Thread*> ready;
std::vector<Warp> warps;
const std::function<void()>* body;
std::exception_ptr failure;
dim3 grid, block;
uint3 block_at;
int threads, alive;
void* dynamic_memory;
size_t shared_used;
std::map<const void*, void*> static_memory;

struct {
  int arrived, trues, result, generation;
  const char* file;
  int line;
} gate;
// ThreadSanitizer's names for what orders threads: two for the block's barriers (by turns, or the next barrier's
// arrivals would leak into this one's departures), then 256 for each warp's meetings. New ones for each block: what
// free() takes back is forgotten, and so no block is ordered after another.
char* order_keys;
char launch_key, finish_key;
// The kernel before this one in the stream, whose end only the wait for it orders. It writes all arguments of the call.
// It is a thread of its own, because the main one's writes come before every thread that it starts later.
char before_key;
std::vector<std::pair<void*, size_t>> written_before;

void write_arguments() {
  for (const auto& [address, bytes] : written_before) tsan_write(address, bytes);
  tsan_release(&before_key);
}

void run_kernel_before() {
  static Fiber fiber;
  fiber.start(write_arguments);
  fiber.enter();
  fiber.finish();
  written_before.clear();
}

uint64_t random_bits() {
  uint64_t z = (random_state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

bool orders_memory(const char* file, int line) {
  if (options.unordered.empty()) return true;
  const char* slash = strrchr(file, '/');
  return options.unordered != std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}

void make_ready(Thread* thread) {
  if (thread->ready || thread->done) return;
  thread->ready = true;
  thread->waits_for = nullptr;
  ready.push_back(thread);
}

void pause(const char* why, const char* file, int line) {
  Thread* me = current;
  me->waits_for = why;
  me->file = file;
  me->line = line;
  me->fiber.leave();
}

Thread* next_thread() {
  size_t i = 0;
  if (options.order == kReversed) i = ready.size() - 1;
  if (options.order == kRandom) i = random_bits() % ready.size();
  Thread* thread = ready[i];
  ready.erase(ready.begin() + i);
  thread->ready = false;
  return thread;
}

void note_failure() {
  if (!failure) failure = std::current_exception();
}

void thread_main() {
  tsan_acquire(&launch_key);
  if (CUEMU_ARCH < 900) tsan_acquire(&before_key);
  try {
    (*body)();
    if (!current->copies.empty()) fail("the thread ends while its cp.async copies are on their way");
  } catch (const Error&) {
    note_failure();
  }
  tsan_release(&finish_key);
  const TsanIgnore ignore;
  current->done = true;
  current->warp->exited |= 1u << current->lane;
  --alive;
  if (gate.arrived) {
    try {
      fail("the thread ends while others wait at __syncthreads %s:%d", gate.file, gate.line);
    } catch (const Error&) {
      note_failure();
    }
  }
}

void* new_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<size_t>(bytes, 1))) throw std::bad_alloc();
  memset(memory, 0xFF, bytes);  // NaN in every floating type
  return memory;
}

void start_threads() {
  warps.assign((threads + 31) / 32, Warp{});
  order_keys = static_cast<char*>(malloc(2 + 256 * warps.size()));
  for (size_t i = 0; i < warps.size(); ++i) warps[i].order_keys = order_keys + 2 + 256 * i;
  for (int i = 0; i < threads; ++i) {
    Thread& t = *pool[i];
    t.linear = i;
    t.lane = i % 32;
    t.warp = &warps[i / 32];
    t.warp->threads[t.lane] = &t;
    t.warp->exists |= 1u << t.lane;
    t.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    t.done = t.ready = t.fenced = false;
    t.copies.clear();
    t.acquired.clear();
    t.group = 0;
    t.issued = 0;
    t.fiber.start(thread_main);
    make_ready(&t);
  }
}

std::string waiting_threads() {
  std::string text;
  int named = 0;
  for (int i = 0; i < threads && named < 8; ++i) {
    if (pool[i]->done) continue;
    char one[200];
    const Thread& t = *pool[i];
    snprintf(one, sizeof one, "\n  thread %d waits in %s at %s:%d", i, t.waits_for, t.file, t.line);
    text += one;
    ++named;
  }
  return text;
}

void run_block() {
  ready.clear();
  failure = nullptr;
  alive = threads;
  gate = {};
  start_threads();
  while (!ready.empty() && !failure) {
    current = next_thread();
    current->fiber.enter();
    current = nullptr;
  }
  for (const Warp& warp : warps) {
    for (const auto& copies : warp.copies) {
      for (int phase = 0; phase < 4; ++phase) count_phase(copies.data() + 8 * phase);
    }
  }
  for (int i = 0; i < threads; ++i) pool[i]->fiber.finish();
  free(order_keys);
  for (const auto& entry : static_memory) free(entry.second);
  static_memory.clear();
  if (failure) std::rethrow_exception(failure);
  if (alive) throw Error("deadlock:" + waiting_threads());
}

}  // namespace

const uint3& thread_index() { return current->index; }
const uint3& block_index() { return block_at; }
int lane() { return current->lane; }
void* dynamic_shared() { return dynamic_memory; }
void set_error(const char* text) { error_text = text; }

void fail(const char* format, ...) {
  const TsanIgnore ignore;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string full = text;
  if (current) {
    char where[96];
    snprintf(where, sizeof where, " [block %u,%u,%u thread %d]", block_at.x, block_at.y, block_at.z, current->linear);
    full += where;
  }
  throw Error(full);
}

bool shared_size_allowed(const void* kernel, size_t bytes) {
  const auto found = allowed_shared.find(kernel);
  return bytes <= (found == allowed_shared.end() ? 48 * 1024 : found->second);
}
void allow_shared_size(const void* kernel, size_t bytes) { allowed_shared[kernel] = bytes; }

void* static_shared(const void* key, size_t bytes) {
  const TsanIgnore ignore;
  void*& memory = static_memory[key];
  if (!memory) {
    memory = new_shared(bytes);
    shared_used += bytes;
    if (shared_used > kSharedLimit) fail("the block has %zu bytes of shared memory", shared_used);
  }
  return memory;
}

int barrier(bool predicate, const char* file, int line) {
  const TsanIgnore ignore;
  if (alive != threads) fail("__syncthreads %s:%d after %d threads ended", file, line, threads - alive);
  if (gate.arrived == 0) {
    gate.file = file;
    gate.line = line;
  } else if (gate.line != line || strcmp(gate.file, file)) {
    fail("divergent __syncthreads: %s:%d and %s:%d", file, line, gate.file, gate.line);
  }
  const bool ordered = orders_memory(file, line);
  void* key = order_keys + gate.generation % 2;
  if (ordered) tsan_release(key);
  current->fenced = false;  // what other threads wrote is ordered now, but not fenced
  gate.trues += predicate;
  if (++gate.arrived == threads) {
    gate.result = gate.trues;
    gate.arrived = gate.trues = 0;
    ++gate.generation;
    ++counts.barriers;
    for (int i = 0; i < threads; ++i) make_ready(pool[i]);
    pause("schedule", file, line);
  } else {
    pause("__syncthreads", file, line);
  }
  if (ordered) tsan_acquire(key);
  return gate.result;
}

void collective(uint32_t mask, const char* name, bool fence, Exchange exchange, const void* in, void* out,
                const char* file, int line) {
  const TsanIgnore ignore;
  Warp& warp = *current->warp;
  const uint32_t me = 1u << current->lane;
  mask &= warp.exists;
  if (!(mask & me)) fail("%s %s:%d: the lane is not in its own mask %08x", name, file, line, mask);
  if (mask & warp.exited) fail("%s %s:%d: mask %08x names lanes that ended", name, file, line, mask);
  Meeting* meeting = nullptr;
  Meeting* unused = nullptr;
  for (Meeting& m : warp.meetings) {
    if (!m.arrived) {
      unused = &m;
    } else if (m.mask == mask && m.line == line && !strcmp(m.name, name) && !strcmp(m.file, file)) {
      meeting = &m;
    } else if (m.mask & mask) {
      fail("divergent warp: %s %s:%d (mask %08x) and %s %s:%d (mask %08x)", name, file, line, mask, m.name, m.file,
           m.line, m.mask);
    }
  }
  if (!meeting) {
    meeting = unused;  // there always is one: masks of waiting lanes are disjoint, and eight are enough for our kernels
    if (!meeting) fail("more than eight warp collectives wait at once");
    meeting->mask = mask;
    meeting->name = name;
    meeting->file = file;
    meeting->line = line;
    meeting->id = warp.meetings_held++ % 256;
  }
  meeting->lanes[current->lane] = {in, out};
  meeting->arrived |= me;
  void* key = &warp.order_keys[meeting->id];
  const bool ordered = fence && orders_memory(file, line);
  if (ordered) tsan_release(key);
  if (meeting->arrived == mask) {
    exchange(mask, meeting->lanes);
    meeting->arrived = 0;
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) make_ready(warp.threads[i]);
    }
    pause("schedule", file, line);
  } else {
    pause(name, file, line);
  }
  if (ordered) tsan_acquire(key);
}

void fence(const char* file, int line) {
  if (!orders_memory(file, line)) return;
  const TsanIgnore ignore;
  current->fenced = true;
  for (const void* address : current->acquired) tsan_acquire(const_cast<void*>(address));
  current->acquired.clear();
}
void wait_for_kernel_before(const char* file, int line) {
  if (orders_memory(file, line)) tsan_acquire(&before_key);
}
void before_atomic(const void* address) {
  if (current->fenced) tsan_release(const_cast<void*>(address));
}
void after_atomic(const void* address) {
  const TsanIgnore ignore;
  current->acquired.push_back(address);
}

bool copy_is_due(const Copy& copy) {
  const TsanIgnore ignore;
  auto& seen = current->warp->copies;
  if (seen.size() <= current->issued) seen.push_back({});
  seen[current->issued++][current->lane] = reinterpret_cast<uintptr_t>(copy.to);
  if (options.copies == kAtIssue || (options.copies == kAnytime && random_bits() % 2)) return true;
  current->copies.push_back(copy);
  current->copies.back().group = current->group;
  return false;
}
void copy_commit() { ++current->group; }
bool next_waited_copy(Copy* copy) {
  const TsanIgnore ignore;
  auto& waiting = current->copies;
  if (waiting.empty() || waiting.front().group == current->group) return false;
  *copy = waiting.front();
  waiting.erase(waiting.begin());
  return true;
}

void run(dim3 grid_dim, dim3 block_dim, size_t shared, const std::function<void()>& thread) {
  tsan_release(&launch_key);
  run_kernel_before();
  const TsanIgnore ignore;
  const int64_t n = int64_t{block_dim.x} * block_dim.y * block_dim.z;
  const int64_t blocks = int64_t{grid_dim.x} * grid_dim.y * grid_dim.z;
  if (shared > kSharedLimit) throw Error("more dynamic shared memory than a device has");
  if (n < 1 || n > 1024 || blocks < 1 || grid_dim.y > 65535 || grid_dim.z > 65535) throw Error("bad launch size");
  threads = static_cast<int>(n);
  while (static_cast<int64_t>(pool.size()) < n) pool.push_back(new Thread);
  grid = grid_dim;
  block = block_dim;
  body = &thread;
  random_state = options.seed * 7919 + 1;
  std::vector<int64_t> order(blocks);
  for (int64_t i = 0; i < blocks; ++i) order[i] = options.order == kReversed ? blocks - 1 - i : i;
  if (options.order == kRandom) {
    for (int64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
  }
  for (const int64_t i : order) {
    block_at = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    dynamic_memory = new_shared(shared);
    shared_used = shared;
    try {
      run_block();
    } catch (const Error&) {
      free(dynamic_memory);
      throw;
    }
    free(dynamic_memory);
  }
  tsan_acquire(&finish_key);
}

}  // namespace cuemu

extern "C" {
#define EXPORT __attribute__((visibility("default")))
EXPORT void cuemu_configure(int order, int copies, uint64_t seed, const char* unordered) {
  cuemu::options = {order, copies, seed, unordered};
}
// The memory of an argument of the next kernel, see `written_before`.
EXPORT void cuemu_written_before(void* address, size_t bytes) { cuemu::written_before.emplace_back(address, bytes); }
EXPORT const char* cuemu_error() { return cuemu::error_text.c_str(); }
// barriers, mma, 16-byte shared memory phases, bank conflicts since the last call
EXPORT void cuemu_counts(uint64_t* out) {
  const cuemu::Counts& counts = cuemu::counts;
  const uint64_t values[] = {counts.barriers, counts.mma, counts.shared_phases, counts.bank_conflicts};
  memcpy(out, values, sizeof values);
  cuemu::counts = {};
}
}
