// The product of packed rows and packed weights, written once over the unit S and compiled once per instruction set.
//
// A tile's sums stay in registers over a slice of the summed dimension: each unit of a row is broadcast and multiplied
// with the vectors of the panel. Everything after the sum (bias, activation, residual, rounding) happens once per tile,
// during the sums of the next.
//
// The multiply-add is written in assembly, since GCC 12 turns the intrinsics for it into code that copies sums from
// register to register, which costs up to a quarter of the speed (seen on Zen 5).
//
// Everything is in an unnamed namespace, and this file is included after the including file has switched the target
// instruction set on: with external linkage the linker could keep the AVX-512 copy of a helper for every caller.
#define OSTF_IN_PLACE(instruction, a, b, sum) __asm__(#instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))

namespace {

using ostf::GeluTable;
using ostf::kLinearRows;
using ostf::kLinearVectors;
using ostf::kLinearWidth;
using ostf::LinearPending;
using ostf::LinearResult;
using ostf::LinearTile;

constexpr __mmask16 kAllLanes = 0xffff;

OSTF_INLINE __mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << (count > 0 ? count : 0)) - 1);
}

OSTF_INLINE __m512 widen_bf16(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Sums of floats over a slice of units.
struct FloatSlice {
  FloatSlice(const LinearTile&, ptrdiff_t, int, int) {}
  static OSTF_INLINE __m512 begin(int) { return _mm512_setzero_ps(); }
  static OSTF_INLINE __m512 end(int, int, __m512 sum, bool more, const float* before) {
    return more ? _mm512_add_ps(_mm512_load_ps(before), sum) : sum;
  }
};

// For processors without an instruction for it.
[[maybe_unused]] OSTF_INLINE __m256i software_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));  // cut bits must not turn NaN into inf
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

// Rows come as float32 or bfloat16. 16 elements of one; zeros in the lanes that are not wanted.
OSTF_INLINE __m512 load_lanes(const float* row, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, row); }
OSTF_INLINE __m512 load_lanes(const uint16_t* row, __mmask16 lanes) {
  return widen_bf16(_mm256_maskz_loadu_epi16(lanes, row));
}
OSTF_INLINE __m512 load_full(const float* row) { return _mm512_loadu_ps(row); }
OSTF_INLINE __m512 load_full(const uint16_t* row) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
}

// Stores of all lanes go without a mask, which makes a store several times slower on some processors.
OSTF_INLINE void store_lanes(float* to, __mmask16 lanes, __m512 x) {
  if (lanes == kAllLanes) return _mm512_storeu_ps(to, x);
  _mm512_mask_storeu_ps(to, lanes, x);
}
OSTF_INLINE void store_lanes(uint16_t* to, __mmask16 lanes, __m256i x) {
  if (lanes == kAllLanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
  _mm256_mask_storeu_epi16(to, lanes, x);
}
[[maybe_unused]] OSTF_INLINE void store_lanes(uint8_t* to, __mmask16 lanes, __m128i x) {
  if (lanes == kAllLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x);
  _mm_mask_storeu_epi8(to, lanes, x);
}

// Calls body(at, x - mean, lanes, accumulator) for every 16 elements, 4 accumulators in turn; those not wanted are 0.
template <class T, class F>
OSTF_INLINE void each_vector(const T* row, int count, float mean, F body) {
  const __m512 middle = _mm512_set1_ps(mean);
  int at = 0;
  for (; at + 64 <= count; at += 64) {
    OSTF_UNROLL for (int j = 0; j < 4; ++j) {
      body(at + 16 * j, _mm512_sub_ps(load_full(row + at + 16 * j), middle), kAllLanes, j);
    }
  }
  for (; at < count; at += 16) {
    const __mmask16 lanes = first_lanes(count - at);
    body(at, _mm512_maskz_sub_ps(lanes, load_lanes(row + at, lanes), middle), lanes, 0);
  }
}

// (x - mean) * factor is the row that is packed: mean 0 and factor 1, or LayerNorm's.
struct Norm {
  float mean, factor;
};

template <class T>
Norm statistics(const T* row, int count, float eps) {
  const auto average = [count](const __m512 (&sum)[4]) {
    const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
    return _mm512_reduce_add_ps(all) / static_cast<float>(count);
  };
  __m512 sum[4] = {}, square[4] = {};
  each_vector(row, count, 0.0f, [&](int, __m512 x, __mmask16, int j) OSTF_INLINED {
    sum[j] = _mm512_add_ps(sum[j], x);
  });
  const float mean = average(sum);
  each_vector(row, count, mean, [&](int, __m512 x, __mmask16, int j) OSTF_INLINED {
    square[j] = _mm512_fmadd_ps(x, x, square[j]);
  });
  return {mean, 1.0f / std::sqrt(average(square) + eps)};
}

template <class S, class T>
void pack_elements(const T* row, int count, float norm_eps, void* units, float* scale) {
  const Norm norm = norm_eps < 0 ? Norm{0.0f, 1.0f} : statistics(row, count, norm_eps);
  // Bytes have a scale for every slice of a row, other units none.
  const int slice = S::kStep == 4 ? S::kStep * S::kSlice : count;
  for (int first = 0; first < count; first += slice) {
    const int length = count - first < slice ? count - first : slice;
    const int padded = (length + S::kStep - 1) / S::kStep * S::kStep;
    const __m512 factor = _mm512_set1_ps(S::factor(row + first, length, norm, scale++));
    each_vector(row + first, length, norm.mean, [&](int at, __m512 x, __mmask16 lanes, int) OSTF_INLINED {
      if (lanes != kAllLanes) lanes = first_lanes(padded - at);
      S::store(units, first + at, lanes, _mm512_mul_ps(x, factor));
    });
  }
}

template <class S>
void pack_row(int dtype, const void* row, int count, float norm_eps, void* units, float* scale) {
  if (dtype == OSTF_F32) return pack_elements<S>(static_cast<const float*>(row), count, norm_eps, units, scale);
  pack_elements<S>(static_cast<const uint16_t*>(row), count, norm_eps, units, scale);
}

OSTF_INLINE __m512 gelu(__m512 x) {
  const GeluTable& table = ostf::gelu_table;
  const __m512 y = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(GeluTable::kScale)),
                                 _mm512_set1_ps(GeluTable::kLast));
  const __m512i piece = _mm512_cvtps_epi32(y);
  const __m512 t = _mm512_sub_ps(y, _mm512_cvtepi32_ps(piece));
  __m512 p = _mm512_permutexvar_ps(piece, _mm512_load_ps(table.coefficient[GeluTable::kDegree]));
  OSTF_UNROLL for (int i = GeluTable::kDegree - 1; i >= 0; --i) {
    p = _mm512_fmadd_ps(p, t, _mm512_permutexvar_ps(piece, _mm512_load_ps(table.coefficient[i])));
  }
  return _mm512_sub_ps(_mm512_max_ps(_mm512_setzero_ps(), x), p);  // this order of operands passes NaN on
}

// One vector of the pending tile, from the sums to the result.
template <class S>
OSTF_INLINE void finish_vector(LinearPending& pending) {
  LinearResult& to = pending.result;
  const int column = pending.vector * kLinearWidth;
  const __mmask16 lanes = first_lanes(to.columns - column);
  __m512 y = _mm512_add_ps(_mm512_load_ps(pending.sums), _mm512_loadu_ps(to.bias + column));
  if (to.activation == ostf::kGelu) y = gelu(y);
  if (to.activation == ostf::kRelu) y = _mm512_max_ps(_mm512_setzero_ps(), y);
  if (to.residual) y = _mm512_add_ps(load_lanes(to.residual + column, lanes), y);
  if (to.out_bf16) {
    store_lanes(static_cast<uint16_t*>(to.out) + column, lanes, S::round_to_bf16(y));
  } else {
    store_lanes(static_cast<float*>(to.out) + column, lanes, y);
  }
  pending.sums += kLinearWidth;
  --pending.left;
  if (++pending.vector < pending.vectors) return;
  pending.vector = 0;
  to.out = static_cast<char*>(to.out) + to.width * (to.out_bf16 ? 2 : 4);
  if (to.residual) to.residual += to.width;
}

template <class S>
void finish(LinearPending& pending) {
  while (pending.left > 0) finish_vector<S>(pending);
}

// acc[r][v] += unit of row r times vector v of weights.
template <class S, int R, int V>
OSTF_INLINE void multiply_unit(const char* const (&base)[3], ptrdiff_t pitch, int offset, const uint32_t* b,
                               typename S::Sum (&acc)[R][V]) {
  typename S::Units right[V];
  OSTF_UNROLL for (int v = 0; v < V; ++v) right[v] = S::load(b + v * kLinearWidth);
  OSTF_UNROLL for (int r = 0; r < R; ++r) {
    static_assert(R <= 9, "three addresses serve three rows each");
    const typename S::Units left = S::broadcast(base[r / 3] + (r % 3) * pitch + offset);
    OSTF_UNROLL for (int v = 0; v < V; ++v) S::dot(left, right[v], acc[r][v]);
  }
}

// total (R,V) vectors = what was there, unless tap is 0, + sum over the units of a tap of row r times the panel's
// vector v, slice by slice. Weights of the next panel are fetched into the L2 cache meanwhile: they come from memory, since
// those of a whole network exceed any cache. This panel's go on to the L1 cache some units ahead, which gains up to a
// tenth where a panel is long or few rows pass by. Every few units a vector of the pending tile is finished. A function
// of its own, so that the compiler keeps all sums in registers.
template <class S, int R, int V>
OSTF_NOINLINE const char* multiply(const LinearTile& tile, int tap, const char* prefetch, float* total,
                                   LinearPending& pending) {
  constexpr int kUnroll = 4, kAhead = 64;
  constexpr int kFetched = 16;  // by then what the pending tile's results need has come to the cache
  const ptrdiff_t pitch = tile.pitch;
  const ptrdiff_t place = tile.taps > 1 ? static_cast<ptrdiff_t>(tap / 3) * tile.line + tap % 3 : 0;
  const char* rows = tile.rows + place * pitch;
  const char* base[3] = {rows, rows + 3 * pitch, rows + 6 * pitch};
  const uint32_t* b = tile.weights + static_cast<ptrdiff_t>(tap) * tile.units * V * kLinearWidth;
  for (int done = 0; done < tile.units; done += S::kSlice) {
    const int units = tile.units - done < S::kSlice ? tile.units - done : S::kSlice;
    const typename S::Slice slice(tile, place, tap, done);
    typename S::Sum acc[R][V];
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = slice.begin(v);
    }
    int k = 0;
    for (; k + kUnroll <= units; k += kUnroll) {
      _mm_prefetch(prefetch, _MM_HINT_T1);
      prefetch += 64;
      OSTF_UNROLL for (int u = 0; u < kUnroll; ++u) {
        OSTF_UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(b + ((u + kAhead) * V + v) * kLinearWidth);
        multiply_unit<S, R, V>(base, pitch, 4 * u, b + u * V * kLinearWidth, acc);
      }
      b += kUnroll * V * kLinearWidth;
      for (const char*& each : base) each += 4 * kUnroll;
      if (pending.left > 0 && done + k >= kFetched) finish_vector<S>(pending);
    }
    for (; k < units; ++k, b += V * kLinearWidth) {
      multiply_unit<S, R, V>(base, pitch, 0, b, acc);
      for (const char*& each : base) each += 4;
    }
    const bool more = tap + done > 0;
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) {
        float* at = total + (r * V + v) * kLinearWidth;
        _mm512_store_ps(at, slice.end(r, v, acc[r][v], more, at));
      }
    }
  }
  return prefetch;
}

// Where the pending tile's results will go, and its residual, on their way to the cache.
OSTF_INLINE void fetch_results(const LinearPending& pending) {
  const LinearResult& to = pending.result;
  const int rows = pending.left > 0 ? pending.left / pending.vectors : 0;
  const ptrdiff_t row = to.out_bf16 ? 2 * to.width : 4 * to.width;
  const int bytes = pending.vectors * kLinearWidth * (to.out_bf16 ? 2 : 4);
  const auto* out = static_cast<const char*>(to.out);
  for (int r = 0; r < rows; ++r, out += row) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(out + at, 1);
  }
  if (!to.residual || to.residual == to.out) return;
  const float* residual = to.residual;
  for (int r = 0; r < rows; ++r, residual += to.width) {
    for (int v = 0; v < pending.vectors; ++v) __builtin_prefetch(residual + v * kLinearWidth);
  }
}

template <class S, int R, int V>
void run_tile(const LinearTile& tile, LinearPending& pending) {
  pending.turn ^= 1;
  float* total = pending.buffer[pending.turn];
  const char* prefetch = tile.prefetch;
  fetch_results(pending);
  for (int tap = 0; tap < tile.taps; ++tap) prefetch = multiply<S, R, V>(tile, tap, prefetch, total, pending);
  finish<S>(pending);
  pending.result = tile.result;
  pending.sums = total;
  pending.left = R * V;
  pending.vector = 0;
  pending.vectors = V;
}

template <class S, int V, int... R>
constexpr void set_tiles(ostf::LinearKernel& kernel, std::integer_sequence<int, R...>) {
  ((kernel.tile[V - 1][R] = run_tile<S, R + 1, V>), ...);
}

template <class S>
constexpr ostf::LinearKernel make_kernel() {
  static_assert(kLinearVectors == 3, "a line for every number of vectors");
  constexpr std::make_integer_sequence<int, kLinearRows> rows{};
  ostf::LinearKernel kernel = {pack_row<S>, {}, finish<S>};
  set_tiles<S, 1>(kernel, rows);
  set_tiles<S, 2>(kernel, rows);
  set_tiles<S, 3>(kernel, rows);
  return kernel;
}

}  // namespace
