// Vectors of 8 floats for linear_kernel.h, with AVX2 and FMA.
namespace {

using Vec = __m256;
using Ints = __m256i;
using Halves = __m128i;  // 8 bf16 or int16
using Lanes = int;       // how many elements of a vector exist: the first ones

constexpr int kWidth = 8;
constexpr bool kInterleave = false;  // 12 sums and their operands leave no register of the 16
constexpr int kAhead = 0;            // the hardware prefetcher suffices (measured on Zen 3)
constexpr Lanes kAllLanes = 8;

OSTF_INLINE Lanes first_lanes(int count) { return count < 0 ? 0 : count < 8 ? count : 8; }

OSTF_INLINE __m256i mask(Lanes lanes) {
  alignas(32) static constexpr int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + 8 - lanes));
}

OSTF_INLINE Vec zero() { return _mm256_setzero_ps(); }
OSTF_INLINE Vec set(float a) { return _mm256_set1_ps(a); }
OSTF_INLINE Vec load(const float* from) { return _mm256_loadu_ps(from); }
OSTF_INLINE void store(float* to, Vec a) { _mm256_store_ps(to, a); }
OSTF_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
OSTF_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
OSTF_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
OSTF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
OSTF_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }  // b where either is NaN
OSTF_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // likewise
OSTF_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
OSTF_INLINE Vec by_sign(Vec sign, Vec positive, Vec negative) {
  return _mm256_blendv_ps(positive, negative, sign);
}
OSTF_INLINE Vec keep(Lanes lanes, Vec a) { return _mm256_and_ps(a, _mm256_castsi256_ps(mask(lanes))); }
OSTF_INLINE float sum_of(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

OSTF_INLINE Ints load_ints(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
OSTF_INLINE Vec to_float(Ints a) { return _mm256_cvtepi32_ps(a); }
OSTF_INLINE Ints max_bits(Ints a, Vec b) { return _mm256_max_epi32(a, _mm256_castps_si256(b)); }
OSTF_INLINE Ints max_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
OSTF_INLINE int largest_of(Ints a) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
OSTF_INLINE Ints broadcast_group(const char* from) {
  int value;
  std::memcpy(&value, from, sizeof value);
  return _mm256_set1_epi32(value);
}

// Rows come as float32 or bfloat16; absent lanes read as zeros.
OSTF_INLINE Vec widen(Halves half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
OSTF_INLINE Vec load_lanes(const float* row, Lanes lanes) { return _mm256_maskload_ps(row, mask(lanes)); }
OSTF_INLINE Vec load_lanes(const uint16_t* row, Lanes lanes) {
  uint16_t halves[8] = {};
  std::memcpy(halves, row, sizeof(uint16_t) * lanes);
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}
OSTF_INLINE Vec load_full(const float* row) { return _mm256_loadu_ps(row); }
OSTF_INLINE Vec load_full(const uint16_t* row) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
}

// Masked stores are several times slower than full ones on some processors.
OSTF_INLINE void store_lanes(float* to, Lanes lanes, Vec x) {
  if (lanes == kAllLanes) return _mm256_storeu_ps(to, x);
  _mm256_maskstore_ps(to, mask(lanes), x);
}
OSTF_INLINE void store_lanes(uint16_t* to, Lanes lanes, Halves x) {
  if (lanes == kAllLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x);
  uint16_t halves[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), x);
  std::memcpy(to, halves, sizeof(uint16_t) * lanes);
}

// The low halves of 8 integers.
OSTF_INLINE Halves low_halves(Ints a) {
  return _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
// The numbers plus `zero`, rounded, as unsigned bytes.
OSTF_INLINE void store_bytes(char* to, Lanes lanes, Vec x, int zero) {
  const Halves halves = low_halves(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero)));
  const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(halves, halves));
  std::memcpy(to, &bytes, lanes);
}
OSTF_INLINE Halves round_to_bf16(Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));  // cut bits must not turn NaN into inf
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return low_halves(_mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16));
}

OSTF_INLINE const auto& gelu_values() { return ostf::gelu_values_8; }
OSTF_INLINE const auto& gelu_slopes() { return ostf::gelu_slopes_8; }

// The piece of each element, for gelu_coefficient, and the argument of its polynomial.
OSTF_INLINE Ints gelu_piece(Vec y, Vec* t) {
  const Ints piece = _mm256_cvtps_epi32(y);
  *t = _mm256_sub_ps(y, _mm256_cvtepi32_ps(piece));
  return piece;
}
OSTF_INLINE Vec gelu_coefficient(const float* pieces, Ints piece) {
  return _mm256_permutevar8x32_ps(_mm256_load_ps(pieces), piece);
}

}  // namespace
