// Linear layers in int8 with AVX-VNNI, which processors without AVX-512 have since 2021.
#include "cpu/linear_target.h"

#if defined(OSTF_AVX_VNNI)
OSTF_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#include "cpu/linear_simd_avx2.h"

#include "cpu/linear_kernel.h"

namespace {

struct Int8Quad : Int8Encoding {
  static constexpr int kTileVectors = 3, kTileRows = 4;

  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));  // in assembly as OSTF_MULTIPLY_ADD
  }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx_vnni = make_kernel<Int8Quad>();
OSTF_TARGET_END
#endif
