// GELU with AVX2 and FMA.
#include "cpu/gelu.h"

#include "cpu/gelu_table.h"
#include "cpu/target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx2,fma,f16c")
#include "cpu/linear_simd_avx2.h"

#include "cpu/gelu_kernel.h"

const ostf::GeluKernel ostf::gelu_avx2 = {gelu_of<float>, gelu_of<uint16_t>};
OSTF_TARGET_END
#endif
