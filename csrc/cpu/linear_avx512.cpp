// Linear layers in float32 with AVX-512.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/linear_kernel.h"

namespace {

struct Float {
  static constexpr int kStep = 1;
  static constexpr int kSlice = 192;  // units summed in one chain: shorter ones round less
  using Sum = __m512;
  using Slice = FloatSlice;
  using Units = __m512;

  static OSTF_INLINE Units load(const uint32_t* from) { return _mm512_loadu_ps(from); }
  static OSTF_INLINE Units broadcast(const char* from) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return _mm512_set1_ps(value);
  }
  static OSTF_INLINE void dot(Units a, Units b, Sum& sum) { OSTF_IN_PLACE(vfmadd231ps, a, b, sum); }
  template <class T>
  static float factor(const T*, int, const Norm& norm, float*) {
    return norm.factor;
  }

  static OSTF_INLINE void store(void* row, int at, __mmask16 lanes, __m512 x) {
    store_lanes(static_cast<float*>(row) + at, lanes, x);
  }

  static OSTF_INLINE __m256i round_to_bf16(__m512 x) { return software_bf16(x); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512 = make_kernel<Float>();
OSTF_TARGET_END
#endif
