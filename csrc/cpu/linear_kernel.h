// The GEMM's micro-kernel, prologue and epilogue, written once over the vectors of one instruction set
// (linear_simd_*.h, included before) and over an encoding S, and compiled once for each pair.
//
// A tile's sums stay in registers over a part of the K dimension: each K-group of a row is broadcast and multiplied
// with the vectors of the panel. Everything after the sum (bias, activation, residual, rounding) is the epilogue, once
// per tile.
//
// The multiply-add is written in assembly, since GCC 12 turns the intrinsics for it into code that copies sums from
// register to register, which costs up to a quarter of the speed (seen on Zen 5).
//
// Everything is in an unnamed namespace, and this file is included after the including file has switched the target
// instruction set on: with external linkage the linker could keep the AVX-512 copy of a helper for every caller.
#include "cpu/gelu_simd.h"

#define OSTF_MULTIPLY_ADD(instruction, a, b, sum) __asm__(#instruction " %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))

namespace {

using ostf::Epilogue;
using ostf::PendingTile;
using ostf::Tile;

// Calls body(at, x - mean, lanes, accumulator) for every vector of a row, 4 accumulators in turn; absent lanes are 0.
template <class T, class F>
OSTF_INLINE void each_vector(const T* row, int count, float mean, F body) {
  const Vec middle = set(mean);
  int at = 0;
  for (; at + 4 * kWidth <= count; at += 4 * kWidth) {
    OSTF_UNROLL for (int j = 0; j < 4; ++j) {
      body(at + kWidth * j, sub(load_full(row + at + kWidth * j), middle), kAllLanes, j);
    }
  }
  for (; at < count; at += kWidth) {
    const Lanes lanes = first_lanes(count - at);
    body(at, keep(lanes, sub(load_lanes(row + at, lanes), middle)), lanes, 0);
  }
}

OSTF_INLINE float total(const Vec (&sum)[4]) { return sum_of(add(add(sum[0], sum[1]), add(sum[2], sum[3]))); }

template <class T>
float mean_of(const T* row, int count) {
  Vec sum[4] = {};
  each_vector(row, count, 0.0f, [&](int, Vec x, Lanes, int j) OSTF_INLINED { sum[j] = add(sum[j], x); });
  return total(sum) / static_cast<float>(count);
}

// The factor that makes the largest magnitude of a row's elements 127. *scale, which comes as their unit, is multiplied by
// its inverse, or becomes NaN if an element is NaN or infinite.
OSTF_INLINE float quantizing_factor(const Ints (&most)[4], float* scale) {
  const Ints all = max_ints(max_ints(most[0], most[1]), max_ints(most[2], most[3]));
  const float largest = ostf::bits_float(static_cast<uint32_t>(largest_of(all)));
  if (!(largest <= 3.402823466e38f)) {
    *scale = ostf::bits_float(0x7fc00000);
    return 0.0f;
  }
  *scale *= largest / 127.0f;
  return largest > 1e-30f ? 127.0f / largest : 0.0f;  // below, the quotient would overflow
}

template <class S, class T>
void pack_elements(const T* row, int count, float norm_eps, void* groups, float* scale) {
  const bool norm = norm_eps >= 0;
  const float mean = norm ? mean_of(row, count) : 0.0f;
  Vec square[4] = {};
  [[maybe_unused]] Ints most[4] = {};  // the bits of magnitudes order as integers, infinity and NaN highest
  if (norm || S::kQuantized) {
    each_vector(row, count, mean, [&](int, Vec x, Lanes, int j) OSTF_INLINED {
      square[j] = fma(x, x, square[j]);
      if constexpr (S::kQuantized) most[j] = max_bits(most[j], abs(x));
    });
  }
  float multiplier = norm ? 1.0f / std::sqrt(total(square) / static_cast<float>(count) + norm_eps) : 1.0f;
  if constexpr (S::kQuantized) {
    *scale = multiplier;
    multiplier = quantizing_factor(most, scale);
  }
  const int padded = (count + S::kGroupInputs - 1) / S::kGroupInputs * S::kGroupInputs;
  const Vec factor = set(multiplier);
  each_vector(row, count, mean, [&](int at, Vec x, Lanes lanes, int) OSTF_INLINED {
    if (lanes != kAllLanes) lanes = first_lanes(padded - at);
    S::encode(groups, at, lanes, mul(x, factor));
  });
  // What is left of the last K-group: its weights are zeros, but no byte may be read that was never written.
  for (int at = (count + kWidth - 1) / kWidth * kWidth; at < padded; at += kWidth) {
    S::encode(groups, at, first_lanes(padded - at), zero());
  }
}

template <class S>
void pack_row(int dtype, const void* row, int count, float norm_eps, void* groups, float* scale) {
  if (dtype == OSTF_F32) return pack_elements<S>(static_cast<const float*>(row), count, norm_eps, groups, scale);
  pack_elements<S>(static_cast<const uint16_t*>(row), count, norm_eps, groups, scale);
}

// The sums of one chain of K-groups in floating point: chains are added up in float32.
struct FloatChain {
  FloatChain(const Tile&, ptrdiff_t, int) {}
  static OSTF_INLINE Vec begin(int) { return zero(); }
  static OSTF_INLINE Vec end(int, int, Vec sum, bool more, const float* before) {
    return more ? add(load(before), sum) : sum;
  }
};

// The integer sums of one tap, which have a scale for each row and one for each column.
class QuantizedChain {
 public:
  OSTF_INLINE QuantizedChain(const Tile& tile, ptrdiff_t row, int tap)
      : row_scale_(tile.row_scale + row * tile.scale_pitch),
        column_scale_(tile.column_scale + static_cast<ptrdiff_t>(tap) * tile.column_pitch),
        offset_(tile.offset + static_cast<ptrdiff_t>(tap) * tile.column_pitch),
        pitch_(tile.scale_pitch) {}

  OSTF_INLINE Ints begin(int v) const { return load_ints(offset_ + v * kWidth); }
  OSTF_INLINE Vec end(int r, int v, Ints sum, bool more, const float* before) const {
    const Vec scale = mul(set(row_scale_[r * pitch_]), load(column_scale_ + v * kWidth));
    return fma(to_float(sum), scale, more ? load(before) : zero());
  }

 private:
  const float* row_scale_;
  const float* column_scale_;
  const int32_t* offset_;
  int pitch_;
};

// What the encodings in int8 share: four inputs of a row, unsigned, by four weights.
struct Int8Encoding {
  static constexpr ostf::Encoding kEncoding = ostf::kInt8;
  static constexpr bool kQuantized = true;
  static constexpr int kGroupInputs = 4;
  static constexpr int kChain = ostf::kMaxQuantizedInputs / kGroupInputs;
  static constexpr int kZero = 128;  // instructions take unsigned activations
  static constexpr int kSteps = 1, kRowBytes = 4, kGroupWords = 1;
  static constexpr int kRowDtype = -1;
  using Sum = Ints;
  using Chain = QuantizedChain;
  using Group = Ints;

  static OSTF_INLINE Group load_group(const uint32_t* from, int) { return load_ints(from); }
  static OSTF_INLINE Group broadcast(const char* from) { return broadcast_group(from); }
  static OSTF_INLINE void encode(void* row, int at, Lanes lanes, Vec x) {
    store_bytes(static_cast<char*>(row) + at, lanes, x, kZero);
  }
  static OSTF_INLINE Halves to_bf16(Vec x) { return round_to_bf16(x); }
};

// The epilogue of one vector of the pending tile.
template <class S>
OSTF_INLINE void finish_vector(PendingTile& pending) {
  Epilogue& to = pending.epilogue;
  const int column = pending.vector * kWidth;
  const Lanes lanes = first_lanes(to.columns - column);
  Vec y = add(load(pending.sums), load(to.bias + column));
  if (to.activation == OSTF_GELU) y = gelu(y);
  if (to.activation == OSTF_RELU) y = max(zero(), y);
  if (to.residual) y = add(load_lanes(to.residual + column, lanes), y);
  if (to.out_bf16) {
    store_lanes(static_cast<uint16_t*>(to.out) + column, lanes, S::to_bf16(y));
  } else {
    store_lanes(static_cast<float*>(to.out) + column, lanes, y);
  }
  pending.sums += kWidth;
  --pending.left;
  if (++pending.vector < pending.vectors) return;
  pending.vector = 0;
  to.out = static_cast<char*>(to.out) + to.row_stride * (to.out_bf16 ? 2 : 4);
  if (to.residual) to.residual += to.row_stride;
}

template <class S>
void flush(PendingTile& pending) {
  while (pending.left > 0) finish_vector<S>(pending);
}

// The epilogue of V vectors in each of R rows.
template <class S, int R, int V>
OSTF_INLINE void finish_rows(const Epilogue& to, const float* sums, char* out, const float* residual) {
  const Lanes last = first_lanes(to.columns - (V - 1) * kWidth);  // only a row's last vector may lack columns
  Vec y[R * V];
  OSTF_UNROLL for (int i = 0; i < R * V; ++i) y[i] = add(load(sums + i * kWidth), load(to.bias + i % V * kWidth));
  if (to.activation == OSTF_GELU) {
    OSTF_UNROLL for (int i = 0; i < R * V; ++i) y[i] = gelu(y[i]);
  } else if (to.activation == OSTF_RELU) {
    OSTF_UNROLL for (int i = 0; i < R * V; ++i) y[i] = max(zero(), y[i]);
  }
  OSTF_UNROLL for (int i = 0; i < R * V; ++i) {
    const bool full = i % V + 1 < V || last == kAllLanes;
    const ptrdiff_t at = static_cast<ptrdiff_t>(i / V) * to.row_stride + i % V * kWidth;
    if (residual) y[i] = add(full ? load_full(residual + at) : load_lanes(residual + at, last), y[i]);
    const Lanes lanes = full ? kAllLanes : last;
    if (to.out_bf16) {
      store_lanes(reinterpret_cast<uint16_t*>(out) + at, lanes, S::to_bf16(y[i]));
    } else {
      store_lanes(reinterpret_cast<float*>(out) + at, lanes, y[i]);
    }
  }
}

// The epilogue of a whole tile at once, where it is not interleaved: three vectors at a time, or as many as a row has.
template <class S, int V>
OSTF_NOINLINE void finish_tile(const Epilogue& to, const float* sums, int rows) {
  constexpr int kRows = V == 1 ? 3 : 1;
  auto* out = static_cast<char*>(to.out);
  const float* residual = to.residual;
  for (int done = 0; done < rows;) {
    const bool several = rows - done >= kRows;
    if (several) {
      finish_rows<S, kRows, V>(to, sums, out, residual);
    } else {
      finish_rows<S, 1, V>(to, sums, out, residual);
    }
    const int finished = several ? kRows : 1;
    const ptrdiff_t elements = static_cast<ptrdiff_t>(finished) * to.row_stride;
    done += finished;
    sums += finished * V * kWidth;
    out += elements * (to.out_bf16 ? 2 : 4);
    if (residual) residual += elements;
  }
}

// acc[r][v] += K-group of row r times vector v of weights, in S::kSteps multiply-adds. The K-group takes S::kRowBytes of a
// row, and S::kGroupWords words of weights in each lane.
template <class S, int R, int V>
OSTF_INLINE void multiply_group(const char* const (&base)[3], ptrdiff_t pitch, int offset, const uint32_t* b,
                                typename S::Sum (&acc)[R][V]) {
  static_assert(R <= 9, "three addresses serve three rows each");
  OSTF_UNROLL for (int step = 0; step < S::kSteps; ++step) {
    decltype(S::load_group(b, step)) right[V];
    OSTF_UNROLL for (int v = 0; v < V; ++v) right[v] = S::load_group(b + v * kWidth * S::kGroupWords, step);
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      const typename S::Group left = S::broadcast(base[r / 3] + (r % 3) * pitch + offset + 4 * step);
      OSTF_UNROLL for (int v = 0; v < V; ++v) S::multiply_add(left, right[v], acc[r][v]);
    }
  }
}

// The main loop over the K-groups of a tap: adds row r times the panel's vector v to total (R,V), which it sets if tap is
// 0, chain by chain. Weights of the next panel are prefetched into the L2 cache meanwhile: they come
// from memory, since those of a whole network exceed any cache. This panel's go on to the L1 cache kAhead groups ahead,
// which gains up to a tenth with AVX-512 where a panel is long or few rows pass by. Every few groups one vector of the
// pending tile gets its epilogue. A function of its own, so that the compiler keeps all sums in registers.
template <class S, int R, int V>
OSTF_NOINLINE const char* main_loop(const Tile& tile, int tap, const char* prefetch, float* total,
                                    PendingTile& pending) {
  constexpr int kUnroll = 4;
  constexpr int kStride = V * kWidth * S::kGroupWords;  // from one K-group of weights to the next
  constexpr int kFetched = 16;  // by then what the pending tile's epilogue reads has come to the cache
  const ptrdiff_t pitch = tile.pitch;
  const ptrdiff_t shift = tile.taps > 1 ? static_cast<ptrdiff_t>(tap / 3) * tile.line + tap % 3 : 0;
  const char* rows = tile.rows + shift * pitch;
  const char* base[3] = {rows, rows + 3 * pitch, rows + 6 * pitch};
  const uint32_t* b = tile.weights + static_cast<ptrdiff_t>(tap) * tile.groups * kStride;
  for (int done = 0; done < tile.groups; done += S::kChain) {
    const int groups = tile.groups - done < S::kChain ? tile.groups - done : S::kChain;
    const typename S::Chain chain(tile, shift, tap);
    typename S::Sum acc[R][V];
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = chain.begin(v);
    }
    int k = 0;
    for (; k + kUnroll <= groups; k += kUnroll) {
      _mm_prefetch(prefetch, _MM_HINT_T1);
      prefetch += 64;
      OSTF_UNROLL for (int u = 0; u < kUnroll; ++u) {
        if constexpr (kAhead > 0) {
          OSTF_UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(b + (u + kAhead) * kStride + v * kWidth);
        }
        multiply_group<S, R, V>(base, pitch, S::kRowBytes * u, b + u * kStride, acc);
      }
      b += kUnroll * kStride;
      for (const char*& each : base) each += S::kRowBytes * kUnroll;
      if constexpr (kInterleave) {
        if (pending.left > 0 && done + k >= kFetched) finish_vector<S>(pending);
      }
    }
    for (; k < groups; ++k, b += kStride) {
      multiply_group<S, R, V>(base, pitch, 0, b, acc);
      for (const char*& each : base) each += S::kRowBytes;
    }
    const bool more = tap + done > 0;
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) {
        float* at = total + (r * V + v) * kWidth;
        store(at, chain.end(r, v, acc[r][v], more, at));
      }
    }
  }
  return prefetch;
}

// Prefetches the rows of the result, and of the residual, that an epilogue will touch.
OSTF_INLINE void prefetch_epilogue(const Epilogue& to, int rows, int vectors) {
  const ptrdiff_t stride = static_cast<ptrdiff_t>(to.row_stride) * (to.out_bf16 ? 2 : 4);
  const int bytes = vectors * kWidth * (to.out_bf16 ? 2 : 4);
  const auto* out = static_cast<const char*>(to.out);
  for (int r = 0; r < rows; ++r, out += stride) {
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(out + at, 1);
  }
  if (!to.residual || to.residual == to.out) return;
  const float* residual = to.residual;
  for (int r = 0; r < rows; ++r, residual += to.row_stride) {
    for (int at = 0; at < vectors * kWidth; at += 16) __builtin_prefetch(residual + at);
  }
}

template <class S, int R, int V>
void run_tile(const Tile& tile, PendingTile& pending) {
  pending.turn ^= 1;
  float* total = pending.buffer[pending.turn];
  const char* prefetch = tile.prefetch;
  if constexpr (!kInterleave) {
    prefetch_epilogue(tile.epilogue, R, V);
  } else if (pending.left > 0) {
    prefetch_epilogue(pending.epilogue, pending.left / pending.vectors, pending.vectors);
  }
  for (int tap = 0; tap < tile.taps; ++tap) prefetch = main_loop<S, R, V>(tile, tap, prefetch, total, pending);
  if constexpr (!kInterleave) return finish_tile<S, V>(tile.epilogue, total, R);
  flush<S>(pending);
  pending.epilogue = tile.epilogue;
  pending.sums = total;
  pending.left = R * V;
  pending.vector = 0;
  pending.vectors = V;
}

template <class S, int V, int... R>
constexpr void set_tiles(ostf::LinearKernel& kernel, std::integer_sequence<int, R...>) {
  ((kernel.tile[V - 1][R] = run_tile<S, R + 1, V>), ...);
}

template <class S, int... V>
constexpr void set_panels(ostf::LinearKernel& kernel, std::integer_sequence<int, V...>) {
  (set_tiles<S, V + 1>(kernel, std::make_integer_sequence<int, S::kTileRows>{}), ...);
}

template <class S>
constexpr ostf::LinearKernel make_kernel() {
  static_assert(S::kTileVectors <= ostf::kMaxTileVectors && S::kTileRows <= ostf::kMaxTileRows);
  static_assert(S::kTileVectors * kWidth <= ostf::kMaxTileColumns);
  ostf::LinearKernel kernel = {S::kEncoding, kWidth, S::kTileVectors, S::kTileRows, S::kZero, S::kRowBytes,
                               S::kGroupWords, S::kRowDtype, pack_row<S>, {}, flush<S>};
  set_panels<S>(kernel, std::make_integer_sequence<int, S::kTileVectors>{});
  return kernel;
}

}  // namespace
