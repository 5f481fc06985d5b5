// Linear layers in float32 with AVX-512.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/linear_simd_avx512.h"

#include "cpu/linear_kernel.h"

namespace {

struct Float {
  static constexpr ostf::Encoding kEncoding = ostf::kFloat;
  static constexpr bool kQuantized = false;
  static constexpr int kGroupInputs = 1;
  static constexpr int kChain = 192;  // K-groups summed in one chain: shorter ones round less
  static constexpr int kTileVectors = 3, kTileRows = 9;
  static constexpr int kZero = 0;
  static constexpr int kSteps = 1, kRowBytes = 4, kGroupWords = 1;
  static constexpr int kRowDtype = OSTF_F32;
  using Sum = Vec;
  using Chain = FloatChain;
  using Group = Vec;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return _mm512_loadu_ps(from); }
  static OSTF_INLINE Group broadcast(const char* from) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return set(value);
  }
  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) { OSTF_MULTIPLY_ADD(vfmadd231ps, a, b, sum); }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    store_lanes(static_cast<float*>(row) + at, lanes, x);
  }
  static OSTF_INLINE Halves to_bf16(Vec x) { return round_to_bf16(x); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512 = make_kernel<Float>();
OSTF_TARGET_END
#endif
