// The CUDA that the kernels use, for a host compiler: every CUDA thread is a fiber on one OS thread.
//
// What is modelled: barriers, warp collectives (shuffles, votes, ldmatrix, mma.sync), cp.async as copies that happen at
// the time of issue, at the time of the wait or anywhere between, shared memory that starts as NaN, the order of blocks
// and of threads (in turn, reversed, random), and, for ThreadSanitizer, exactly the orderings that CUDA promises. What
// is not: the inline PTX text, the rounding inside a tensor core, speed, streams.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <tuple>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#ifndef CUEMU_ARCH
#define CUEMU_ARCH 900
#endif
#define OSTF_ARCH CUEMU_ARCH

#define CUEMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUEMU_PASS file, line

namespace cuemu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const char* format, ...);

const uint3& thread_index();
const uint3& block_index();
int lane();

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);
void set_error(const char* text);
void* dynamic_shared();
void* static_shared(const void* key, size_t bytes);
bool shared_size_allowed(const void* kernel, size_t bytes);
void allow_shared_size(const void* kernel, size_t bytes);

// All threads of the block meet; returns how many came with a true predicate.
int barrier(bool predicate, CUEMU_HERE);

// All lanes of the mask meet. The last to come runs `exchange` once, on every lane's input and output. `fence` says
// whether the meeting also orders memory, which a shuffle does not.
struct LaneData {
  const void* in;
  void* out;
};
using Exchange = void (*)(uint32_t mask, LaneData* lanes);
void collective(uint32_t mask, const char* name, bool fence, Exchange exchange, const void* in, void* out,
                const char* file, int line);

void fence(CUEMU_HERE);
void wait_for_kernel_before(CUEMU_HERE);
void before_atomic(const void* address);
void after_atomic(const void* address);

struct Copy {
  void* to;
  const void* from;
  bool valid;
  int group;
};
bool copy_is_due(const Copy& copy);  // else it was put off to the wait
void copy_commit();
bool next_waited_copy(Copy* copy);  // the next of this thread's committed copies that has not happened

struct Counts {
  uint64_t barriers, mma, shared_phases, bank_conflicts;
};
extern Counts counts;
void count_phase(const uintptr_t* address);  // eight addresses, 0 for a lane without

void exchange_none(uint32_t, LaneData*);
void exchange_vote(uint32_t mask, LaneData* lanes);
void exchange_ldmatrix(uint32_t mask, LaneData* lanes);
void exchange_ldmatrix_transposed(uint32_t mask, LaneData* lanes);
template <class T, int kDepth>
void exchange_mma(uint32_t mask, LaneData* lanes);

struct MatrixRow {
  const void* address;
  uint16_t element[8];
};
struct MmaOperands {
  uint32_t a[4], b[2];
  float c[4];
};

template <class T>
struct Shuffled {
  T value;
  int source;
};
template <class T>
void exchange_shuffle(uint32_t mask, LaneData* lanes) {
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const int source = static_cast<const Shuffled<T>*>(lanes[i].in)->source;
    if (source < 0 || source > 31 || !(mask >> source & 1)) {
      fail("shuffle reads lane %d, not in mask %08x", source, mask);
    }
    *static_cast<T*>(lanes[i].out) = static_cast<const Shuffled<T>*>(lanes[source].in)->value;
  }
}

// Here, and not in the runtime, so that sanitizers watch the bytes.
inline void perform(const Copy& copy) {
  if (reinterpret_cast<uintptr_t>(copy.to) % 16) fail("cp.async to a misaligned address");
  if (copy.valid && reinterpret_cast<uintptr_t>(copy.from) % 16) fail("cp.async from a misaligned address");
  auto* to = static_cast<volatile uint32_t*>(copy.to);
  auto* from = static_cast<const volatile uint32_t*>(copy.from);
  for (int i = 0; i < 4; ++i) to[i] = copy.valid ? from[i] : 0u;
}

}  // namespace cuemu

#define threadIdx (cuemu::thread_index())
#define blockIdx (cuemu::block_index())

inline void __syncthreads(CUEMU_HERE) { cuemu::barrier(false, CUEMU_PASS); }
inline int __syncthreads_count(int predicate, CUEMU_HERE) { return cuemu::barrier(predicate != 0, CUEMU_PASS); }
inline int __syncthreads_or(int predicate, CUEMU_HERE) { return cuemu::barrier(predicate != 0, CUEMU_PASS) > 0; }
inline void __syncwarp(uint32_t mask = ~0u, CUEMU_HERE) {
  cuemu::collective(mask, "syncwarp", true, cuemu::exchange_none, nullptr, nullptr, CUEMU_PASS);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, CUEMU_HERE) {
  uint32_t votes = 0;
  cuemu::collective(mask, "vote", false, cuemu::exchange_vote, &predicate, &votes, CUEMU_PASS);
  return votes;
}
inline int __any_sync(uint32_t mask, int predicate, CUEMU_HERE) {
  return __ballot_sync(mask, predicate, CUEMU_PASS) != 0;
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, CUEMU_HERE) {
  const cuemu::Shuffled<T> in = {value, source};
  T out = value;
  cuemu::collective(mask, "shuffle", false, cuemu::exchange_shuffle<T>, &in, &out, CUEMU_PASS);
  return out;
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int distance, CUEMU_HERE) {
  return __shfl_sync(mask, value, cuemu::lane() ^ distance, CUEMU_PASS);
}
inline void __threadfence(CUEMU_HERE) { cuemu::fence(CUEMU_PASS); }
inline void __trap() { cuemu::fail("trap"); }

template <class T, class Update>
T cuemu_atomic(T* address, Update update) {
  cuemu::before_atomic(address);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, update(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  cuemu::after_atomic(address);
  return old;
}
inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
  return cuemu_atomic(address, [&](uint32_t old) { return old + value; });
}
inline uint32_t atomicInc(uint32_t* address, uint32_t limit) {
  return cuemu_atomic(address, [&](uint32_t old) { return old >= limit ? 0 : old + 1; });
}
inline int atomicMax(int* address, int value) {
  return cuemu_atomic(address, [&](int old) { return std::max(old, value); });
}

template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class To, class From>
To cuemu_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline uint32_t __float_as_uint(float x) { return cuemu_bits<uint32_t>(x); }
inline double __dmul_rn(double a, double b) { return a * b; }  // this file is compiled with -ffp-contract=off
inline double __dadd_rn(double a, double b) { return a + b; }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
using std::max;
using std::min;

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  cuemu::allow_shared_size(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}
template <class... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Params...)) {
  *attributes = {};
  attributes->ptxVersion = CUEMU_ARCH / 10;
  return cudaSuccess;
}

namespace ostf {

inline unsigned char* dynamic_shared() { return static_cast<unsigned char*>(cuemu::dynamic_shared()); }

template <class S>
S& block_shared() {
  static const char key = 0;
  return *static_cast<S*>(cuemu::static_shared(&key, sizeof(S)));
}

template <class... Params, class... Args>
int launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, void* /*stream*/, Args&&... args) {
  if (!cuemu::shared_size_allowed(reinterpret_cast<const void*>(kernel), shared)) return cudaErrorInvalidValue;
  const std::tuple<Params...> stored(static_cast<Args&&>(args)...);
  try {
    cuemu::run(grid, block, shared, [&] { std::apply(kernel, stored); });
  } catch (const cuemu::Error& error) {
    cuemu::set_error(error.what());
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

namespace ptx {

inline void wait_for_inputs(CUEMU_HERE) { cuemu::wait_for_kernel_before(CUEMU_PASS); }

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

template <bool kTranspose>
void ldmatrix_x4(uint32_t (&r)[4], const void* row, CUEMU_HERE) {
  if (reinterpret_cast<uintptr_t>(row) % 16) cuemu::fail("ldmatrix row is misaligned (%s:%d)", file, line);
  cuemu::MatrixRow in;
  in.address = row;
  for (int i = 0; i < 8; ++i) in.element[i] = static_cast<const volatile uint16_t*>(row)[i];
  cuemu::collective(~0u, "ldmatrix", false,
                    kTranspose ? cuemu::exchange_ldmatrix_transposed : cuemu::exchange_ldmatrix, &in, r, CUEMU_PASS);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CUEMU_HERE) {
  const cuemu::MmaOperands in = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  cuemu::collective(~0u, "mma.m16n8k16", false, cuemu::exchange_mma<T, 16>, &in, d, CUEMU_PASS);
}
inline void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, CUEMU_HERE) {
  const cuemu::MmaOperands in = {{a0, a1, 0, 0}, {b, 0}, {d[0], d[1], d[2], d[3]}};
  cuemu::collective(~0u, "mma.m16n8k8", false, cuemu::exchange_mma<__half, 8>, &in, d, CUEMU_PASS);
}

inline void cp_async_16(void* to, const void* from, bool valid) {
  const cuemu::Copy copy = {to, from, valid, 0};
  if (cuemu::copy_is_due(copy)) cuemu::perform(copy);
}
inline void cp_async_commit() { cuemu::copy_commit(); }
inline void cp_async_wait_all() {
  for (cuemu::Copy copy; cuemu::next_waited_copy(&copy);) cuemu::perform(copy);
}

}  // namespace ptx
}  // namespace ostf
