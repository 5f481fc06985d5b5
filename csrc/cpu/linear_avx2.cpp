// Linear layers with AVX2 and FMA.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx2,fma,f16c")
#include "cpu/linear_simd_avx2.h"

#include "cpu/linear_kernel.h"

namespace {

struct Float {
  static constexpr ostf::Encoding kEncoding = ostf::kFloat;
  static constexpr bool kQuantized = false;
  static constexpr int kGroupInputs = 1;
  static constexpr int kChain = 96;  // K-groups summed in one chain: shorter ones round less
  static constexpr int kTileVectors = 3, kTileRows = 4;  // 4% faster in the mean than 2 by 6 (Zen 3)
  static constexpr int kZero = 0;
  static constexpr int kSteps = 1, kRowBytes = 4, kGroupWords = 1;
  static constexpr int kRowDtype = OSTF_F32;
  using Sum = Vec;
  using Chain = FloatChain;
  using Group = Vec;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return load(reinterpret_cast<const float*>(from)); }
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

// bf16 for processors without bf16 instructions: weights stay in pairs of bf16, which halves their memory, and are
// widened when they are loaded; activations are rounded to bf16 and widened once, when they are packed.
struct WidenedBf16 : Float {
  static constexpr ostf::Encoding kEncoding = ostf::kBf16;
  static constexpr int kGroupInputs = 2;
  static constexpr int kChain = 96;
  static constexpr int kSteps = 2, kRowBytes = 8;
  static constexpr int kRowDtype = -1;

  static OSTF_INLINE Group load_group(const uint32_t* from, int step) {
    const __m256i pair = load_ints(from);
    return _mm256_castsi256_ps(step == 0 ? _mm256_slli_epi32(pair, 16)
                                         : _mm256_and_si256(pair, _mm256_set1_epi32(0xffff0000)));
  }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    store_lanes(static_cast<float*>(row) + at, lanes, widen(round_to_bf16(x)));
  }
};

// int8 without VNNI. vpmaddubsw adds two products of unsigned activations and signed weights in 16 bits. Four such sums
// are added up before they are widened, which leaves five multiplications for 16 products instead of eight. They may
// wrap around, as activations have 128 added: the last word of a K-group of weights, -128 times the eight weights, takes
// that off, and weights are quantized so that what remains fits 16 bits (pack_weights). The sums are exact, as with VNNI.
struct Int8Eights : Int8Encoding {
  static constexpr ostf::Encoding kEncoding = ostf::kInt8Eights;
  static constexpr int kGroupInputs = 16;
  static constexpr int kChain = ostf::kMaxQuantizedInputs / kGroupInputs;
  static constexpr int kTileVectors = 1, kTileRows = 8;  // so that weights have registers; reading rows costs no port
  static constexpr int kRowBytes = 16, kGroupWords = 5;
  using Group = const int*;
  struct Weights {
    Ints word[4], start;
  };

  static OSTF_INLINE Weights load_group(const uint32_t* from, int) {
    const auto word = [&](int i) OSTF_INLINED { return load_ints(from + i * kWidth); };
    return {{word(0), word(1), word(2), word(3)}, word(4)};
  }
  static OSTF_INLINE Group broadcast(const char* from) { return reinterpret_cast<Group>(from); }
  static OSTF_INLINE void multiply_add(Group a, const Weights& b, Sum& sum) {
    Ints products, more;
    __asm__(  // GCC 12 reorders the additions of intrinsics and then spills all sums
        "vpbroadcastd %3, %1\n\tvpmaddubsw %7, %1, %1\n\tvpaddw %11, %1, %1\n\t"
        "vpbroadcastd %4, %2\n\tvpmaddubsw %8, %2, %2\n\tvpaddw %2, %1, %1\n\t"
        "vpbroadcastd %5, %2\n\tvpmaddubsw %9, %2, %2\n\tvpaddw %2, %1, %1\n\t"
        "vpbroadcastd %6, %2\n\tvpmaddubsw %10, %2, %2\n\tvpaddw %2, %1, %1\n\t"
        "vpmaddwd %12, %1, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(products), "=&x"(more)
        : "m"(a[0]), "m"(a[1]), "m"(a[2]), "m"(a[3]), "x"(b.word[0]), "x"(b.word[1]), "x"(b.word[2]), "x"(b.word[3]),
          "x"(b.start), "x"(_mm256_set1_epi16(1)));
  }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx2 = make_kernel<Float>();
const ostf::LinearKernel ostf::linear_avx2_bf16 = make_kernel<WidenedBf16>();
const ostf::LinearKernel ostf::linear_avx2_int8 = make_kernel<Int8Eights>();
OSTF_TARGET_END
#endif
