// Vectors of 16 floats for linear_kernel.h, with AVX-512.
namespace {

using Vec = __m512;
using Ints = __m512i;
using Halves = __m256i;   // 16 bf16
using Lanes = __mmask16;  // which elements of a vector exist

constexpr int kWidth = 16;
constexpr bool kInterleave = true;  // 27 sums leave registers for the epilogue of another tile
constexpr int kAhead = 64;          // K-groups between the weights in use and those on their way to the L1 cache
constexpr Lanes kAllLanes = 0xffff;

OSTF_INLINE Lanes first_lanes(int count) {
  return static_cast<Lanes>(count >= 16 ? 0xffff : (1u << (count > 0 ? count : 0)) - 1);
}

OSTF_INLINE Vec zero() { return _mm512_setzero_ps(); }
OSTF_INLINE Vec set(float a) { return _mm512_set1_ps(a); }
OSTF_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
OSTF_INLINE void store(float* to, Vec a) { _mm512_store_ps(to, a); }
OSTF_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
OSTF_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
OSTF_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
OSTF_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }  // b where either is NaN
OSTF_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // likewise
OSTF_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
OSTF_INLINE Vec by_sign(Vec sign, Vec positive, Vec negative) {
  return _mm512_mask_mov_ps(positive, _mm512_movepi32_mask(_mm512_castps_si512(sign)), negative);
}
OSTF_INLINE Vec keep(Lanes lanes, Vec a) { return _mm512_maskz_mov_ps(lanes, a); }
OSTF_INLINE float sum_of(Vec a) { return _mm512_reduce_add_ps(a); }

[[maybe_unused]] OSTF_INLINE Ints load_ints(const void* from) { return _mm512_loadu_si512(from); }
[[maybe_unused]] OSTF_INLINE Vec to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
[[maybe_unused]] OSTF_INLINE Ints max_bits(Ints a, Vec b) { return _mm512_max_epi32(a, _mm512_castps_si512(b)); }
[[maybe_unused]] OSTF_INLINE int largest_of(Ints a) { return _mm512_reduce_max_epi32(a); }
[[maybe_unused]] OSTF_INLINE Ints max_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
[[maybe_unused]] OSTF_INLINE Ints broadcast_group(const char* from) {
  int value;
  std::memcpy(&value, from, sizeof value);
  return _mm512_set1_epi32(value);
}

// Rows come as float32 or bfloat16; absent lanes read as zeros.
OSTF_INLINE Vec widen(Halves half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
OSTF_INLINE Vec load_lanes(const float* row, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, row); }
OSTF_INLINE Vec load_lanes(const uint16_t* row, Lanes lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, row)); }
OSTF_INLINE Vec load_full(const float* row) { return _mm512_loadu_ps(row); }
OSTF_INLINE Vec load_full(const uint16_t* row) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
}

// Full stores go without a mask, which makes a store several times slower on some processors.
OSTF_INLINE void store_lanes(float* to, Lanes lanes, Vec x) {
  if (lanes == kAllLanes) return _mm512_storeu_ps(to, x);
  _mm512_mask_storeu_ps(to, lanes, x);
}
OSTF_INLINE void store_lanes(uint16_t* to, Lanes lanes, Halves x) {
  if (lanes == kAllLanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
  _mm256_mask_storeu_epi16(to, lanes, x);
}
[[maybe_unused]] OSTF_INLINE void store_lanes(uint8_t* to, Lanes lanes, __m128i x) {
  if (lanes == kAllLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x);
  _mm_mask_storeu_epi8(to, lanes, x);
}

// The numbers plus `zero`, rounded, as unsigned bytes.
[[maybe_unused]] OSTF_INLINE void store_bytes(char* to, Lanes lanes, Vec x, int zero) {
  const Ints shifted = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
  store_lanes(reinterpret_cast<uint8_t*>(to), lanes, _mm512_cvtepi32_epi8(shifted));
}

// For processors without an instruction for it.
[[maybe_unused]] OSTF_INLINE Halves round_to_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));  // cut bits must not turn NaN into inf
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

OSTF_INLINE const auto& gelu_values() { return ostf::gelu_values_16; }
OSTF_INLINE const auto& gelu_slopes() { return ostf::gelu_slopes_16; }

// The piece of each element, for gelu_coefficient, and the argument of its polynomial.
OSTF_INLINE Ints gelu_piece(Vec y, Vec* t) {
  const Ints piece = _mm512_cvtps_epi32(y);
  *t = _mm512_sub_ps(y, _mm512_cvtepi32_ps(piece));
  return piece;
}
OSTF_INLINE Vec gelu_coefficient(const float* pieces, Ints piece) {
  return _mm512_permutexvar_ps(piece, _mm512_load_ps(pieces));
}

}  // namespace
