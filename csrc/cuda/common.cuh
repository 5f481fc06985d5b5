// What every CUDA kernel here includes: types, launches, shared memory, and the few PTX instructions that C++ lacks.
//
// Under nvcc the wrappers are inline PTX. Under a host compiler the same names come from "cuda_emulation.h" (found with
// the tests), which runs each CUDA thread as a fiber: the kernels' own source is executed, checked and raced without a
// GPU.
#pragma once
#include <cstdint>
#include <type_traits>

#include "tensor.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#ifdef __CUDA_ARCH__
#define OSTF_ARCH __CUDA_ARCH__
#else
#define OSTF_ARCH 0
#endif

namespace ostf {

// Dynamic shared memory of the block.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char buffer[];
  return buffer;
}

// Static shared memory of the block: one object of each type a kernel names.
template <class S>
__device__ __forceinline__ S& block_shared() {
  __shared__ S object;
  return object;
}

// Programmatic dependent launch: a kernel may be put on the multiprocessors while the one before it in the stream still
// ends. It waits for its results itself (ptx::wait_for_inputs), if it is compiled for compute capability 9.0 or later.
template <class... Params, class... Args>
int launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, void* stream, Args&&... args) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  config.attrs = &early;
  config.numAttrs = attributes.ptxVersion >= 90;  // code for older GPUs does not wait
  return cudaLaunchKernelEx(&config, kernel, static_cast<Args&&>(args)...);
}

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Wait for the kernels before, then let the next one come: the first thing that every kernel does, because nothing that
// a kernel writes may be touched earlier. Without a launch that begins early neither takes time.
__device__ __forceinline__ void wait_for_inputs() {
#if OSTF_ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 2^x within 2^-22 relative, results below 2^-126 flushed to zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + r names row r of matrix i.
template <bool kTranspose>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t address = shared_address(row);
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

#if OSTF_ARCH >= 800
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// A `valid` of false writes zeros and reads nothing.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
#else
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
#if OSTF_ARCH >= 750
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
#endif
}
#endif

}  // namespace ptx
}  // namespace ostf
#else
#include "cuda_emulation.h"
#endif

namespace ostf {

// d += a b: a 16x16 row-major, b 16x8 column-major. Turing multiplies eight deep at a time, and has no bfloat16.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if OSTF_ARCH >= 800
  ptx::mma_m16n8k16<T>(d, a, b0, b1);
#else
  ptx::mma_m16n8k8(d, a[0], a[1], b0);
  ptx::mma_m16n8k8(d, a[2], a[3], b1);
#endif
}

// Sixteen bytes from global to shared memory, in the background where the hardware can (8.0 and later).
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
#if OSTF_ARCH >= 800
  ptx::cp_async_16(to, from, valid);
#else
  *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void copy_async_commit() {
#if OSTF_ARCH >= 800
  ptx::cp_async_commit();
#endif
}
__device__ __forceinline__ void copy_async_wait() {
#if OSTF_ARCH >= 800
  ptx::cp_async_wait_all();
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Two floats rounded to T, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  union {
    T value[2];
    uint32_t word;
  } u;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 h = __floats2half2_rn(low, high);
    u.value[0] = h.x;
    u.value[1] = h.y;
  } else {
    const __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
    u.value[0] = h.x;
    u.value[1] = h.y;
  }
  return u.word;
}

// Unsigned keys in the order of floats; -0 equals +0, and NaN comes before everything (0 is the key of no other float).
__device__ __forceinline__ uint32_t order_key(float x) {
  if (x != x) return 0;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline int blocks_for(int64_t items, int per_block) { return static_cast<int>((items + per_block - 1) / per_block); }

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace ostf
