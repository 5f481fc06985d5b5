// AVX-512 vectors for attention_kernel.h; included inside a region whose target has avx512f, bw, dq, vl and f16c.

namespace {

// 2^(j/steps) times the coefficients of a parabola through 1 that approximates 2^f, |f| <= 1/2 / steps.
template <int steps>
struct Exp2Table {
  float start[steps], slope[steps], curve[steps];
};

constexpr Exp2Table<32> kExp2 = {  // to a relative 5.4e-8
    {1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f, 1.1892071f, 1.2152474f,
     1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f, 1.4142135f, 1.4451808f, 1.4768262f,
     1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f, 1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f,
     1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f},
    {0.6931573f, 0.7083355f, 0.723846f, 0.7396962f, 0.75589347f, 0.7724454f, 0.7893597f, 0.80664444f, 0.8243076f,
     0.84235764f, 0.8608029f, 0.87965196f, 0.89891386f, 0.9185975f, 0.9387122f, 0.9592673f, 0.98027253f, 1.0017377f,
     1.0236729f, 1.0460885f, 1.0689948f, 1.0924027f, 1.1163232f, 1.1407675f, 1.165747f, 1.1912736f, 1.2173591f,
     1.2440158f, 1.2712562f, 1.299093f, 1.3275394f, 1.3566089f},
    {0.24022827f, 0.24548858f, 0.2508641f, 0.25635728f, 0.2619708f, 0.2677072f, 0.27356923f, 0.2795596f, 0.28568116f,
     0.29193676f, 0.29832935f, 0.3048619f, 0.31153753f, 0.31835932f, 0.32533047f, 0.33245426f, 0.33973408f, 0.34717327f,
     0.3547754f, 0.36254397f, 0.37048262f, 0.37859514f, 0.38688532f, 0.39535698f, 0.40401417f, 0.41286093f, 0.4219014f,
     0.43113986f, 0.44058058f, 0.45022804f, 0.46008676f, 0.47016135f},
};

struct Avx512 {
  static constexpr int kWidth = 16;
  static constexpr int kMaxVectors = 4;
  static constexpr int kSums = 24;
  static constexpr int kStep = 1;
  static constexpr bool kOverlap = true;
  static constexpr bool kHasExp2 = true;
  static constexpr int rows(int vectors) { return vectors >= 4 ? 4 : 8; }  // at most 24 of the 32 registers accumulate

  using Vec = __m512;
  using KGroup = float;
  using KGroups = __m512;

  static OSTF_INLINE Vec zero() { return _mm512_setzero_ps(); }
  static OSTF_INLINE Vec set(float a) { return _mm512_set1_ps(a); }
  static OSTF_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
  static OSTF_INLINE void store(float* to, Vec a) { _mm512_storeu_ps(to, a); }
  static OSTF_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static OSTF_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static OSTF_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static OSTF_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static OSTF_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static OSTF_INLINE Vec keep(Vec a, const uint32_t* bits) { return _mm512_and_ps(a, load_bits(bits)); }
  static OSTF_INLINE float across(Vec a) { return _mm512_reduce_add_ps(a); }

  static OSTF_INLINE Vec exp2(Vec t) { return exp2(t, kExp2); }

  static OSTF_INLINE KGroups load_groups(const KGroup* from) { return _mm512_loadu_ps(from); }
  static OSTF_INLINE KGroups broadcast_group(const KGroup* from) { return _mm512_set1_ps(*from); }
  // In assembly, since GCC 12 copies sums from register to register around the intrinsic.
  static OSTF_INLINE void dot(KGroups a, KGroups b, Vec& sum) {
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  static OSTF_INLINE void store_pair(KGroup* to, ptrdiff_t row, Vec first, Vec second) {
    store(to, first);
    store(to + row, second);
  }

  static void pack_row(int dtype, const void* from, int D, KGroup* to) {
    const auto* half = static_cast<const uint16_t*>(from);
    if (dtype == OSTF_F32) {
      std::memcpy(to, from, sizeof(float) * D);
      return;
    }
    for (int d = 0; d < D; d += 16) {
      const __mmask16 lanes = D - d >= 16 ? 0xffff : (1u << (D - d)) - 1;
      const __m256i raw = _mm256_maskz_loadu_epi16(lanes, half + d);
      const __m512 wide = dtype == OSTF_F16 ? _mm512_cvtph_ps(raw)
                                            : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
      _mm512_mask_storeu_ps(to + d, lanes, wide);
    }
  }
  static void pack_values(int dtype, const void* even, const void*, int D, KGroup* to) { pack_row(dtype, even, D, to); }

  static void unpack_row(int dtype, const float* from, float factor, int D, void* to) {
    for (int d = 0; d < D; d += 16) {
      const __mmask16 lanes = D - d >= 16 ? 0xffff : (1u << (D - d)) - 1;
      const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + d), _mm512_set1_ps(factor));
      if (dtype == OSTF_F32) {
        _mm512_mask_storeu_ps(static_cast<float*>(to) + d, lanes, x);
      } else if (dtype == OSTF_F16) {
        const __m256i y = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + d, lanes, y);
      } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + d, lanes, round_to_bf16(x));
      }
    }
  }

  static void transpose_tile(const KGroup* from, ptrdiff_t from_stride, KGroup* to, ptrdiff_t to_stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // now 128-bit lane L of a[4g + j] is column 4L + j of rows 4g to 4g + 3
      a[i] = unpack_pairs<0>(b[i], b[i + 2]);
      a[i + 1] = unpack_pairs<1>(b[i], b[i + 2]);
      a[i + 2] = unpack_pairs<0>(b[i + 1], b[i + 3]);
      a[i + 3] = unpack_pairs<1>(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
      const __m512 low0 = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x44);
      const __m512 low1 = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x44);
      const __m512 high0 = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xee);
      const __m512 high1 = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xee);
      _mm512_storeu_ps(to + j * to_stride, _mm512_shuffle_f32x4(low0, low1, 0x88));
      _mm512_storeu_ps(to + (j + 4) * to_stride, _mm512_shuffle_f32x4(low0, low1, 0xdd));
      _mm512_storeu_ps(to + (j + 8) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0x88));
      _mm512_storeu_ps(to + (j + 12) * to_stride, _mm512_shuffle_f32x4(high0, high1, 0xdd));
    }
  }

 protected:
  // A table replaces multiply-adds, because those compete with the matmuls for execution ports.
  template <int steps>
  static OSTF_INLINE Vec exp2(Vec t, const Exp2Table<steps>& table) {
    t = max(set(-160.0f), t);  // whose result is 0; NaN stays NaN
    const Vec shift = set(0x1.8p23f / steps);  // the last bit of a sum with it is 1 / steps
    const Vec z = add(t, shift);
    const Vec n = sub(z, shift), f = sub(t, n);
    const __m512i j = _mm512_castps_si512(z);
    const auto pick = [j](const float* from) OSTF_INLINED {
      if constexpr (steps == 16) return _mm512_permutexvar_ps(j, load(from));
      return _mm512_permutex2var_ps(load(from), j, load(from + 16));
    };
    const Vec y = fma(fma(pick(table.curve), f, pick(table.slope)), f, pick(table.start));
    return _mm512_scalef_ps(y, n);  // which rounds n down
  }

 private:
  static OSTF_INLINE Vec load_bits(const uint32_t* bits) { return _mm512_castsi512_ps(_mm512_loadu_si512(bits)); }

  template <int high>
  static OSTF_INLINE __m512 unpack_pairs(__m512 a, __m512 b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  }

  static OSTF_INLINE __m256i round_to_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));  // cut bits must not turn NaN into inf
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }
};

}  // namespace
