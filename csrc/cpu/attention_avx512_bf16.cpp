// Attention on bfloat16 tensors with AVX-512 BF16: products of bf16 pairs, everything else in float32.
#include "cpu/attention_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "cpu/attention_avx512.h"
#include "cpu/attention_kernel.h"
#include "cpu/attention_gradient.h"

namespace {

constexpr Exp2Table<16> kCoarseExp2 = {  // to a relative 4.2e-7
    {1.0f, 1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
     1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f},
    {0.693187833f, 0.72387788f, 0.755926692f, 0.789394426f, 0.824343903f, 0.860840726f, 0.898953401f, 0.938753468f,
     0.980315635f, 1.02371792f, 1.06904178f, 1.1163723f, 1.16579833f, 1.21741263f, 1.27131209f, 1.32759789f},
    {0.240226507f, 0.250862243f, 0.261968863f, 0.273567216f, 0.285679071f, 0.298327164f, 0.311535236f, 0.32532808f,
     0.339731584f, 0.354772786f, 0.37047992f, 0.386882467f, 0.404011217f, 0.421898322f, 0.440577356f, 0.460083382f},
};

struct Avx512Bf16 : Avx512 {
  static constexpr int kStep = 2;
  using KGroup = uint32_t;  // two bf16, the earlier one in the low half
  using KGroups = __m512i;

  static OSTF_INLINE KGroups load_groups(const KGroup* from) { return _mm512_loadu_si512(from); }
  static OSTF_INLINE KGroups broadcast_group(const KGroup* from) { return _mm512_set1_epi32(static_cast<int>(*from)); }
  static OSTF_INLINE void dot(KGroups a, KGroups b, Vec& sum) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  static OSTF_INLINE Vec exp2(Vec t) { return Avx512::exp2(t, kCoarseExp2); }

  static OSTF_INLINE void store_pair(KGroup* to, ptrdiff_t, Vec first, Vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, both));
  }

  static OSTF_INLINE void store_row(KGroup* to, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  }

  static void pack_row(int, const void* from, int D, KGroup* to) {
    const auto* half = static_cast<const uint16_t*>(from);
    int d = 0;
    for (; d + 32 <= D; d += 32) _mm512_storeu_si512(to + d / 2, _mm512_loadu_si512(half + d));
    const __mmask32 lanes = (1u << (D - d)) - 1;
    // Where D is odd, its last pair is completed by a zero.
    if (lanes) _mm512_mask_storeu_epi16(to + d / 2, lanes | lanes << 1, _mm512_maskz_loadu_epi16(lanes, half + d));
  }

  static void pack_values(int, const void* even, const void* odd, int D, KGroup* to) {
    const auto* a = static_cast<const uint16_t*>(even);
    const auto* b = static_cast<const uint16_t*>(odd);
    for (int d = 0; d < D; d += 16) {
      const __mmask16 lanes = D - d >= 16 ? 0xffff : (1u << (D - d)) - 1;
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, a + d));
      const __m512i high = b ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, b + d)) : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + d, lanes, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }

  static void unpack_row(int, const float* from, float factor, int D, void* to) {
    for (int d = 0; d < D; d += 16) {
      const __mmask16 lanes = D - d >= 16 ? 0xffff : (1u << (D - d)) - 1;
      const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + d), _mm512_set1_ps(factor));
      const __m256i y = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
      _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + d, lanes, y);
    }
  }

  static void transpose_tile(const KGroup* from, ptrdiff_t from_stride, KGroup* to, ptrdiff_t to_stride) {
    Avx512::transpose_tile(reinterpret_cast<const float*>(from), from_stride, reinterpret_cast<float*>(to), to_stride);
  }
};

}  // namespace

const ostf::AttentionKernel ostf::attention_avx512_bf16 = make_kernel<Avx512Bf16>();
const ostf::GradientKernel ostf::gradient_avx512_bf16 = make_gradient<Avx512Bf16>();
OSTF_TARGET_END
#endif
