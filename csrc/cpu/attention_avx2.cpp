// Attention in float32 with AVX2 and FMA; float16 and bfloat16 are widened while packing.
#include "cpu/attention_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx2,fma,f16c")
#include "cpu/attention_kernel.h"
#include "cpu/attention_gradient.h"

namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr int kMaxVectors = 3;
  static constexpr int kSums = 12;  // registers that a tile of the gradient's products sums in
  static constexpr int kStep = 1;
  static constexpr bool kOverlap = false;
  static constexpr bool kHasExp2 = false;
  static constexpr int rows(int vectors) { return vectors >= 2 ? 4 : 8; }  // at most 12 of the 16 registers accumulate

  using Vec = __m256;
  using KGroup = float;
  using KGroups = __m256;

  static OSTF_INLINE Vec zero() { return _mm256_setzero_ps(); }
  static OSTF_INLINE Vec set(float a) { return _mm256_set1_ps(a); }
  static OSTF_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
  static OSTF_INLINE void store(float* to, Vec a) { _mm256_storeu_ps(to, a); }
  static OSTF_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static OSTF_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static OSTF_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static OSTF_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static OSTF_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // b where either is NaN
  static OSTF_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static OSTF_INLINE Vec keep(Vec a, const uint32_t* bits) {
    return _mm256_and_ps(a, _mm256_loadu_ps(reinterpret_cast<const float*>(bits)));
  }
  static OSTF_INLINE float across(Vec a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static OSTF_INLINE Vec round(Vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^whole for -127 <= whole <= 0; an exponent of -127 stands for 0
  static OSTF_INLINE Vec scale(Vec a, Vec whole) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }

  static OSTF_INLINE KGroups load_groups(const KGroup* from) { return _mm256_loadu_ps(from); }
  static OSTF_INLINE KGroups broadcast_group(const KGroup* from) { return _mm256_broadcast_ss(from); }
  // In assembly, since GCC 12 copies sums from register to register around the intrinsic.
  static OSTF_INLINE void dot(KGroups a, KGroups b, Vec& sum) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }

  static OSTF_INLINE void store_pair(KGroup* to, ptrdiff_t row, Vec first, Vec second) {
    store(to, first);
    store(to + row, second);
  }

  static void pack_row(int dtype, const void* from, int D, KGroup* to) {
    const auto* half = static_cast<const uint16_t*>(from);
    if (dtype == OSTF_F32) {
      std::memcpy(to, from, sizeof(float) * D);
    } else if (dtype == OSTF_F16) {
      int d = 0;
      for (; d + 8 <= D; d += 8) {
        _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + d))));
      }
      for (; d < D; ++d) to[d] = _cvtsh_ss(half[d]);
    } else {
      int d = 0;
      for (; d + 8 <= D; d += 8) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + d)));
        _mm256_storeu_ps(to + d, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
      }
      for (; d < D; ++d) to[d] = ostf::bf16_to_float(half[d]);
    }
  }
  static void pack_values(int dtype, const void* even, const void*, int D, KGroup* to) { pack_row(dtype, even, D, to); }

  static void unpack_row(int dtype, const float* from, float factor, int D, void* to) {
    auto* half = static_cast<uint16_t*>(to);
    if (dtype == OSTF_F32) {
      for (int d = 0; d < D; ++d) static_cast<float*>(to)[d] = from[d] * factor;
    } else if (dtype == OSTF_F16) {
      for (int d = 0; d < D; ++d) half[d] = _cvtss_sh(from[d] * factor, _MM_FROUND_TO_NEAREST_INT);
    } else {
      int d = 0;
      for (; d + 8 <= D; d += 8) {
        const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(from + d), _mm256_set1_ps(factor));
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));  // cut bits must not make NaN infinite
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(half + d), halves);
      }
      for (; d < D; ++d) half[d] = ostf::float_to_bf16(from[d] * factor);
    }
  }

  static void transpose_tile(const KGroup* from, ptrdiff_t from_stride, KGroup* to, ptrdiff_t to_stride) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // now 128-bit half L of a[4g + j] is column 4L + j of rows 4g to 4g + 3
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(to + j * to_stride, _mm256_permute2f128_ps(a[j], a[j + 4], 0x20));
      _mm256_storeu_ps(to + (j + 4) * to_stride, _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
    }
  }
};

}  // namespace

const ostf::AttentionKernel ostf::attention_avx2 = make_kernel<Avx2>();
const ostf::GradientKernel ostf::gradient_avx2 = make_gradient<Avx2>();
OSTF_TARGET_END
#endif
