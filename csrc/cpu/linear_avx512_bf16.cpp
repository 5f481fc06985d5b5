// Linear layers with AVX-512 BF16: products of bf16 pairs, everything else in float32.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "cpu/linear_simd_avx512.h"

#include "cpu/linear_kernel.h"

namespace {

struct Bf16Pair {
  static constexpr ostf::Encoding kEncoding = ostf::kBf16;
  static constexpr bool kQuantized = false;
  static constexpr int kGroupInputs = 2;
  static constexpr int kChain = 768;  // K-groups summed in one chain: shorter ones round less
  static constexpr int kTileVectors = 3, kTileRows = 9;
  static constexpr int kZero = 0;
  static constexpr int kSteps = 1, kRowBytes = 4, kGroupWords = 1;
  static constexpr int kRowDtype = OSTF_BF16;
  using Sum = Vec;
  using Chain = FloatChain;
  using Group = Ints;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return load_ints(from); }
  static OSTF_INLINE Group broadcast(const char* from) { return broadcast_group(from); }
  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) { OSTF_MULTIPLY_ADD(vdpbf16ps, a, b, sum); }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    store_lanes(static_cast<uint16_t*>(row) + at, lanes, to_bf16(x));
  }
  static OSTF_INLINE Halves to_bf16(Vec x) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x)); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512_bf16 = make_kernel<Bf16Pair>();
OSTF_TARGET_END
#endif
