// Linear layers in int8 with AVX-512 VNNI: rows are quantized as they are packed, and the sums of a row's products are
// exact.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "cpu/linear_simd_avx512.h"

#include "cpu/linear_kernel.h"

namespace {

struct Int8Quad {
  static constexpr ostf::Encoding kEncoding = ostf::kInt8;
  static constexpr bool kQuantized = true;
  static constexpr int kGroupInputs = 4;
  static constexpr int kChain = ostf::kMaxQuantizedInputs / kGroupInputs;
  static constexpr int kTileVectors = 3, kTileRows = 9;
  static constexpr int kZero = 128;  // the instruction takes unsigned activations
  static constexpr int kSteps = 1;  // multiply-adds for a K-group
  static constexpr int kRowDtype = -1;
  using Sum = Ints;
  using Chain = QuantizedChain;
  using Group = Ints;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return load_ints(from); }
  static OSTF_INLINE Group broadcast(const char* from) { return broadcast_group(from); }
  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) { OSTF_MULTIPLY_ADD(vpdpbusd, a, b, sum); }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(kZero));
    store_lanes(static_cast<uint8_t*>(row) + at, lanes, _mm512_cvtepi32_epi8(shifted));
  }
  static OSTF_INLINE Halves to_bf16(Vec x) { return round_to_bf16(x); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512_vnni = make_kernel<Int8Quad>();
OSTF_TARGET_END
#endif
