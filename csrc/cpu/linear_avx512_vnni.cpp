// Linear layers in int8 with AVX-512 VNNI: rows are quantized as they are packed, and the sums of a row's products are
// exact.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "cpu/linear_simd_avx512.h"

#include "cpu/linear_kernel.h"

namespace {

struct Int8Quad : Int8Encoding {
  static constexpr int kTileVectors = 3, kTileRows = 9;

  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) { OSTF_MULTIPLY_ADD(vpdpbusd, a, b, sum); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512_vnni = make_kernel<Int8Quad>();
OSTF_TARGET_END
#endif
