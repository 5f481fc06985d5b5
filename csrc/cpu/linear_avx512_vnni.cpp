// Linear layers of bytes with AVX-512 VNNI: rows are quantized as they are packed, sums of products are exact.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "cpu/linear_kernel.h"

namespace {

struct ByteQuad {
  static constexpr int kStep = 4;
  using Sum = __m512i;
  using Units = __m512i;

  static OSTF_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static OSTF_INLINE Units load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static OSTF_INLINE Units broadcast(const char* from) {
    int value;
    std::memcpy(&value, from, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static OSTF_INLINE void dot(Units a, Units b, Sum& sum) { OSTF_IN_PLACE(vpdpbusd, a, b, sum); }
  static OSTF_INLINE Sum plus(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static OSTF_INLINE Sum load_sum(const char* from) { return _mm512_load_si512(from); }
  static OSTF_INLINE void store_sum(char* to, Sum sum) { _mm512_store_si512(to, sum); }

  // total (rows, vectors), set by the first tap, += the sums of a tap, less what the packed rows' offset adds to them.
  static void add_scaled(const LinearTile& tile, ptrdiff_t place, int tap, int rows, int vectors, const int32_t* sums,
                         float* total) {
    for (int v = 0; v < vectors; ++v) {
      const int column = v * kLinearWidth;
      const int32_t* correction = tile.correction + static_cast<ptrdiff_t>(tap) * tile.correction_pitch + column;
      const __m512i offset = _mm512_loadu_si512(correction);
      const __m512 column_scale = _mm512_loadu_ps(tile.column_scale + column);
      for (int r = 0; r < rows; ++r) {
        const int at = (r * vectors + v) * kLinearWidth;
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + at), offset));
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(tile.row_scale[(place + r) * tile.groups]), column_scale);
        const __m512 before = tap == 0 ? _mm512_setzero_ps() : _mm512_load_ps(total + at);
        _mm512_store_ps(total + at, _mm512_fmadd_ps(whole, scale, before));
      }
    }
  }

  // What to multiply the (normalized) row with so that its largest magnitude becomes 127. *scale undoes it; NaN where
  // the row holds NaN or infinity.
  template <class T>
  static float quantize(const T* row, int count, const Norm& norm, float* scale) {
    __m512i most[4] = {};  // the bits of magnitudes order as integers, infinity and NaN highest
    each_vector(row, count, norm.mean, [&](int, __m512 x, __mmask16, int j) OSTF_INLINED {
      most[j] = _mm512_max_epi32(most[j], _mm512_castps_si512(_mm512_abs_ps(x)));
    });
    const __m512i all = _mm512_max_epi32(_mm512_max_epi32(most[0], most[1]), _mm512_max_epi32(most[2], most[3]));
    const float largest = ostf::bits_float(static_cast<uint32_t>(_mm512_reduce_max_epi32(all)));
    if (!(largest <= 3.402823466e38f)) {
      *scale = ostf::bits_float(0x7fc00000);
      return 0.0f;
    }
    *scale = largest * norm.factor / 127.0f;
    return largest > 1e-30f ? 127.0f / largest : 0.0f;  // below, the quotient would overflow
  }

  static OSTF_INLINE void store(void* row, int at, __mmask16 lanes, __m512 x) {
    const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
    store_lanes(static_cast<uint8_t*>(row) + at, lanes, _mm512_cvtepi32_epi8(shifted));
  }

  static OSTF_INLINE __m256i round_to_bf16(__m512 x) { return software_bf16(x); }
};

}  // namespace

const ostf::LinearKernel ostf::linear_avx512_vnni = make_kernel<ByteQuad>();
OSTF_TARGET_END
#endif
