// What gelu.cpp and its per-instruction-set kernels share.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace ostf {

// to = gelu(x), or, with a gradient, grad * gelu'(x): one function for float32 and one for bfloat16.
struct GeluKernel {
  void (*single)(const void* x, const void* grad, void* to, int64_t count);
  void (*half)(const void* x, const void* grad, void* to, int64_t count);
};

// That of this machine (or OSTRACK_FAST_CPU_CAPABILITY), or null where there is none.
const GeluKernel* gelu_kernel();

#if defined(OSTF_X86)
extern const GeluKernel gelu_avx2;
extern const GeluKernel gelu_avx512;
#endif

}  // namespace ostf
