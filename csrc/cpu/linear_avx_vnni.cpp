// Linear layers in int8 with AVX-VNNI, which processors without AVX-512 have since 2021.
#include "cpu/linear_target.h"

#if defined(OSTF_AVX_VNNI)
OSTF_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#include "cpu/linear_simd_avx2.h"

#include "cpu/linear_kernel.h"

namespace {

struct Int8Quad {
  static constexpr ostf::Encoding kEncoding = ostf::kInt8;
  static constexpr bool kQuantized = true;
  static constexpr int kGroupInputs = 4;
  static constexpr int kChain = ostf::kMaxQuantizedInputs / kGroupInputs;
  static constexpr int kTileVectors = 3, kTileRows = 4;
  static constexpr int kZero = 128;  // the instruction takes unsigned activations
  static constexpr int kSteps = 1;  // multiply-adds for a K-group
  static constexpr int kRowDtype = -1;
  using Sum = Ints;
  using Chain = QuantizedChain;
  using Group = Ints;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return load_ints(from); }
  static OSTF_INLINE Group broadcast(const char* from) { return broadcast_group(from); }
  static OSTF_INLINE void multiply_add(Group a, Group b, Sum& sum) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));  // in assembly as OSTF_MULTIPLY_ADD
  }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    store_bytes(static_cast<char*>(row) + at, lanes, x, kZero);
  }
  static OSTF_INLINE Halves to_bf16(Vec x) { return round_to_bf16(x); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx_vnni = make_kernel<Int8Quad>();
OSTF_TARGET_END
#endif
