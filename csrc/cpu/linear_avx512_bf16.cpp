// Linear layers with AVX-512 BF16: products of bf16 pairs, everything else in float32.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "cpu/linear_kernel.h"

namespace {

struct Bf16Pair {
  static constexpr int kStep = 2;
  static constexpr int kSlice = 768;  // units summed in one chain: shorter ones round less
  using Sum = __m512;
  using Slice = FloatSlice;
  using Units = __m512i;

  static OSTF_INLINE Units load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static OSTF_INLINE Units broadcast(const char* from) {
    int value;
    std::memcpy(&value, from, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static OSTF_INLINE void dot(Units a, Units b, Sum& sum) { OSTF_IN_PLACE(vdpbf16ps, a, b, sum); }
  template <class T>
  static float factor(const T*, int, const Norm& norm, float*) {
    return norm.factor;
  }

  static OSTF_INLINE void store(void* row, int at, __mmask16 lanes, __m512 x) {
    store_lanes(static_cast<uint16_t*>(row) + at, lanes, round_to_bf16(x));
  }

  static OSTF_INLINE __m256i round_to_bf16(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512_bf16 = make_kernel<Bf16Pair>();
OSTF_TARGET_END
#endif
