// GELU with AVX-512.
#include "cpu/gelu.h"

#include "cpu/gelu_table.h"
#include "cpu/target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/linear_simd_avx512.h"

#include "cpu/gelu_kernel.h"

const ostf::GeluKernel ostf::gelu_avx512 = {gelu_of<float>, gelu_of<uint16_t>};
OSTF_TARGET_END
#endif
