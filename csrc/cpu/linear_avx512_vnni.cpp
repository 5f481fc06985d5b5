// Linear layers of bytes with AVX-512 VNNI: rows are quantized as they are packed, slice by slice, and the sums of
// products over a slice are exact.
#include "cpu/linear_target.h"

#if defined(OSTF_X86)
OSTF_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "cpu/linear_kernel.h"

namespace {

// Sums of bytes over a slice, which has a scale for each row and one for each column.
class ByteSlice {
 public:
  OSTF_INLINE ByteSlice(const LinearTile& tile, ptrdiff_t place, int tap, int unit)
      : row_scale_(tile.row_scale + place * tile.scale_pitch + unit / ostf::kLinearByteSlice),
        pitch_(tile.scale_pitch) {
    const int slice = tap * tile.slices + unit / ostf::kLinearByteSlice;
    column_scale_ = tile.column_scale + static_cast<ptrdiff_t>(slice) * tile.column_pitch;
    offset_ = tile.offset + static_cast<ptrdiff_t>(slice) * tile.column_pitch;
  }

  OSTF_INLINE __m512i begin(int v) const { return _mm512_loadu_si512(offset_ + v * kLinearWidth); }
  OSTF_INLINE __m512 end(int r, int v, __m512i sum, bool more, const float* before) const {
    const __m512 column_scale = _mm512_loadu_ps(column_scale_ + v * kLinearWidth);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row_scale_[r * pitch_]), column_scale);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, more ? _mm512_load_ps(before) : _mm512_setzero_ps());
  }

 private:
  const float* row_scale_;
  const float* column_scale_;
  const int32_t* offset_;
  int pitch_;
};

struct ByteQuad {
  static constexpr int kStep = 4;
  static constexpr int kSlice = ostf::kLinearByteSlice;
  using Sum = __m512i;
  using Slice = ByteSlice;
  using Units = __m512i;

  static OSTF_INLINE Units load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static OSTF_INLINE Units broadcast(const char* from) {
    int value;
    std::memcpy(&value, from, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static OSTF_INLINE void dot(Units a, Units b, Sum& sum) { OSTF_IN_PLACE(vpdpbusd, a, b, sum); }

  // What to multiply the (normalized) elements of a slice with so that the largest magnitude becomes 127. *scale undoes
  // it; NaN where they hold NaN or infinity.
  template <class T>
  static float factor(const T* row, int count, const Norm& norm, float* scale) {
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
