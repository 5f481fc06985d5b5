// Attention on bfloat16 tensors with AVX-512 BF16: products of bf16 pairs, everything else in float32.
#include "cpu/attention_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "cpu/attention_avx512.h"
#include "cpu/attention_kernel.h"

namespace {

struct Avx512Bf16 : Avx512 {
  static constexpr int kStep = 2;
  using Unit = uint32_t;  // two bf16, the earlier one in the low half
  using Units = __m512i;

  static OSTF_INLINE Units load_units(const Unit* from) { return _mm512_loadu_si512(from); }
  static OSTF_INLINE Units broadcast_unit(const Unit* from) { return _mm512_set1_epi32(static_cast<int>(*from)); }
  static OSTF_INLINE Vec dot(Units a, Units b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static OSTF_INLINE void store_pair(Unit* to, Vec first, Vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, both));
  }

  static void pack_row(int, const void* from, int D, Unit* to) {
    to[(D - 1) / 2] = 0;  // the missing half of an odd D
    std::memcpy(to, from, sizeof(uint16_t) * D);
  }

  static void pack_values(int, const void* even, const void* odd, int D, Unit* to) {
    const auto* a = static_cast<const uint16_t*>(even);
    const auto* b = static_cast<const uint16_t*>(odd);
    for (int d = 0; d < D; d += 16) {
      const __mmask16 lanes = D - d >= 16 ? 0xffff : (1u << (D - d)) - 1;
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, a + d));
      const __m512i high = b ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, b + d)) : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + d, lanes, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }

  static void transpose_tile(const Unit* from, ptrdiff_t from_stride, Unit* to, ptrdiff_t to_stride) {
    Avx512::transpose_tile(reinterpret_cast<const float*>(from), from_stride, reinterpret_cast<float*>(to), to_stride);
  }
};

}  // namespace

const ostf::AttentionKernel ostf::attention_avx512_bf16 = make_kernel<Avx512Bf16>();
OSTF_TARGET_END
#endif
