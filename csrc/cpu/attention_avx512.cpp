// Attention in float32 with AVX-512; float16 and bfloat16 are widened while packing.
#include "cpu/attention_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/attention_avx512.h"
#include "cpu/attention_kernel.h"
#include "cpu/attention_gradient.h"

const ostf::AttentionKernel ostf::attention_avx512 = make_kernel<Avx512>();
const ostf::GradientKernel ostf::gradient_avx512 = make_gradient<Avx512>();
OSTF_TARGET_END
#endif
