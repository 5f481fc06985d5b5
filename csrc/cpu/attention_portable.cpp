// Attention in float32 on vectors of four (GCC and Clang), which become SSE, NEON or whatever the machine has.
#include "cpu/attention_target.h"
#include "cpu/attention_kernel.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#if !defined(__GNUC__) && !defined(__clang__)
#error "attention_portable.cpp needs vector extensions: build with GCC or Clang (on Windows, clang-cl)"
#endif

namespace {

typedef float Vec4 __attribute__((vector_size(16)));
typedef uint32_t UInt4 __attribute__((vector_size(16)));

struct Portable {
  static constexpr int kWidth = 4;
#if defined(__aarch64__)
  static constexpr int kMaxVectors = 4;  // 16 of the 32 registers accumulate
#else
  static constexpr int kMaxVectors = 2;  // 8 of the 16 registers accumulate
#endif
  static constexpr int kStep = 1;
  static constexpr bool kOverlap = false;
  static constexpr bool kHasExp2 = false;
  static constexpr int rows(int) { return 4; }

  using Vec = Vec4;
  using KGroup = float;
  using KGroups = Vec4;

  static OSTF_INLINE Vec zero() { return Vec{}; }
  static OSTF_INLINE Vec set(float a) { return Vec{a, a, a, a}; }
  static OSTF_INLINE Vec load(const float* from) {
    Vec a;
    std::memcpy(&a, from, sizeof a);
    return a;
  }
  static OSTF_INLINE void store(float* to, Vec a) { std::memcpy(to, &a, sizeof a); }
  static OSTF_INLINE Vec add(Vec a, Vec b) { return a + b; }
  static OSTF_INLINE Vec sub(Vec a, Vec b) { return a - b; }
  static OSTF_INLINE Vec mul(Vec a, Vec b) { return a * b; }
  static OSTF_INLINE Vec div(Vec a, Vec b) { return a / b; }
#if defined(__aarch64__)  // the build forbids the compiler to fuse by itself
  static OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return reinterpret_cast<Vec>(vfmaq_f32(c, a, b)); }
#else
  static OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
  static OSTF_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where either is NaN
  static OSTF_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
  static OSTF_INLINE Vec keep(Vec a, const uint32_t* bits) {
    UInt4 mask;
    std::memcpy(&mask, bits, sizeof mask);
    return reinterpret_cast<Vec>(reinterpret_cast<UInt4>(a) & mask);
  }
  static OSTF_INLINE float across(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }

  // Adding 1.5 * 2^23 leaves no bit for a fraction.
  static OSTF_INLINE Vec round(Vec x) { return (x + set(0x1.8p23f)) - set(0x1.8p23f); }
  // a * 2^whole for -127 <= whole <= 0; an exponent of -127 stands for 0
  static OSTF_INLINE Vec scale(Vec a, Vec whole) {
    // whole + 127 + 1.5 * 2^23 has the exponent field in its low bits; where it is NaN so is a.
    return a * reinterpret_cast<Vec>(reinterpret_cast<UInt4>(whole + set(0x1.8p23f + 127)) << 23);
  }

  static OSTF_INLINE KGroups load_groups(const KGroup* from) { return load(from); }
  static OSTF_INLINE KGroups broadcast_group(const KGroup* from) { return set(*from); }
  static OSTF_INLINE void dot(KGroups a, KGroups b, Vec& sum) { sum = fma(a, b, sum); }

  static OSTF_INLINE void store_pair(KGroup* to, ptrdiff_t row, Vec first, Vec second) {
    store(to, first);
    store(to + row, second);
  }

  static void pack_row(int dtype, const void* from, int D, KGroup* to) {
    const auto* half = static_cast<const uint16_t*>(from);
    if (dtype == OSTF_F32) {
      std::memcpy(to, from, sizeof(float) * D);
    } else if (dtype == OSTF_F16) {
      for (int d = 0; d < D; ++d) to[d] = ostf::f16_to_float(half[d]);
    } else {
      for (int d = 0; d < D; ++d) to[d] = ostf::bf16_to_float(half[d]);
    }
  }
  static void pack_values(int dtype, const void* even, const void*, int D, KGroup* to) { pack_row(dtype, even, D, to); }

  static void unpack_row(int dtype, const float* from, float factor, int D, void* to) {
    auto* half = static_cast<uint16_t*>(to);
    if (dtype == OSTF_F32) {
      for (int d = 0; d < D; ++d) static_cast<float*>(to)[d] = from[d] * factor;
    } else if (dtype == OSTF_F16) {
      for (int d = 0; d < D; ++d) half[d] = ostf::float_to_f16(from[d] * factor);
    } else {
      for (int d = 0; d < D; ++d) half[d] = ostf::float_to_bf16(from[d] * factor);
    }
  }

  static void transpose_tile(const KGroup* from, ptrdiff_t from_stride, KGroup* to, ptrdiff_t to_stride) {
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < kWidth; ++j) to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
};

}  // namespace

const ostf::AttentionKernel ostf::attention_portable = make_kernel<Portable>();
