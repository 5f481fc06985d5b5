// Put tokens back on their grid on the CPU: transposed into channel planes, or row by row with their LayerNorm applied.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/cells.h"
#include "cpu/transpose.h"
#include "tensor.h"

namespace {

constexpr int kCells = 16;    // grid cells in a tile: a row of a tile is written as one or two cache lines
constexpr int kChannels = 32;  // channels in a tile

template <class E>
void to_planes(const E* tokens, const std::vector<int32_t>& token_at, E* map, int B, int K, int C, int cells,
               int threads) {
  const int64_t strips = (C + kChannels - 1) / kChannels;
  ostf::parallel_for(B * strips, threads, [&](int64_t begin, int64_t end) {
    static const E nothing[kChannels] = {};
    constexpr int side = ostf::TransposedBlock<E>::B;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / strips;
      const int first = static_cast<int>(item % strips) * kChannels;
      const int channels = std::min(kChannels, C - first);
      const E* entry = tokens + b * K * C + first;
      E* out = map + (b * C + first) * cells;
      for (int p = 0; p < cells; p += kCells) {
        const int count = std::min(kCells, cells - p);
        const E* rows[kCells];
        for (int j = 0; j < count; ++j) {
          const int32_t token = token_at[b * cells + p + j];
          rows[j] = token < 0 ? nothing : entry + static_cast<int64_t>(token) * C;
        }
        const int whole_cells = count - count % side, whole_channels = channels - channels % side;
        for (int c = 0; c < whole_channels; c += side) {
          for (int j = 0; j < whole_cells; j += side) {
            const E* block[side];
            for (int i = 0; i < side; ++i) block[i] = rows[j + i] + c;
            ostf::TransposedBlock<E>::transpose(block, out + static_cast<int64_t>(c) * cells + p + j, cells);
          }
        }
        for (int c = 0; c < channels; ++c) {
          for (int j = c < whole_channels ? whole_cells : 0; j < count; ++j) {
            out[static_cast<int64_t>(c) * cells + p + j] = rows[j][c];
          }
        }
      }
    }
  });
}

float widen(float value, int) { return value; }
float widen(uint16_t value, int dtype) {
  return dtype == OSTF_F16 ? ostf::f16_to_float(value) : ostf::bf16_to_float(value);
}
void narrow(float value, int, float* to) { *to = value; }
void narrow(float value, int dtype, uint16_t* to) {
  *to = dtype == OSTF_F16 ? ostf::float_to_f16(value) : ostf::float_to_bf16(value);
}

// The sum of term(c) over c in [0, C), in as many independent partial sums as make whole vectors.
template <class Term>
double sum_of(int C, Term term) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int c = 0;
  for (; c + kSums <= C; c += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += term(c + i);
  }
  for (; c < C; ++c) sums[0] += term(c);
  double sum = 0.0;
  for (const double partial : sums) sum += partial;
  return sum;
}

// LayerNorm of one row: two passes over values that lie in the cache. Statistics are float64, because the square of a
// large float32 is not a float32.
template <class From, class To>
void norm_row(int from_dtype, const From* from, const float* weight, const float* bias, double eps, int to_dtype,
              To* to, int C) {
  const double mean = sum_of(C, [&](int c) { return static_cast<double>(widen(from[c], from_dtype)); }) / C;
  const double squares = sum_of(C, [&](int c) {
    const double distance = widen(from[c], from_dtype) - mean;
    return distance * distance;
  });
  const double scale = 1.0 / std::sqrt(squares / C + eps);
  for (int c = 0; c < C; ++c) {
    const auto normed = static_cast<float>((widen(from[c], from_dtype) - mean) * scale);
    narrow(normed * weight[c] + bias[c], to_dtype, to + c);
  }
}

template <class From, class To>
void to_rows(int from_dtype, const From* tokens, const std::vector<int32_t>& token_at, const float* weight,
             const float* bias, double eps, int to_dtype, To* map, int B, int K, int C, int cells, int threads) {
  ostf::parallel_for(static_cast<int64_t>(B) * cells, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int32_t token = token_at[at];
      To* to = map + at * C;
      if (token < 0) {
        std::memset(to, 0, sizeof(To) * C);
      } else {
        norm_row(from_dtype, tokens + (at / cells * K + token) * C, weight, bias, eps, to_dtype, to, C);
      }
    }
  });
}

}  // namespace

int ostf_cpu_restore(const ostf_tensor* tokens, const ostf_tensor* ids, const ostf_tensor* norm_weight,
                     const ostf_tensor* norm_bias, const ostf_tensor* map, double eps, int threads) {
  if (!ostf::has_rank(tokens, 3) || !ostf::has_rank(map, 4) || threads < 1) return OSTF_EINVAL;
  const int B = static_cast<int>(tokens->shape[0]), K = static_cast<int>(tokens->shape[1]);
  const int C = static_cast<int>(tokens->shape[2]), F = static_cast<int>(map->shape[3]);
  const int dtype = tokens->dtype, map_dtype = map->dtype;
  if (C < 1 || F < 1 || F > 4096 || !ostf::is(tokens, dtype, {B, K, C}) || !ostf::is(ids, OSTF_I64, {B, K})) {
    return OSTF_EINVAL;
  }
  const bool normed = norm_weight || norm_bias;
  if (normed) {
    ostf_tensor rows = *map;  // the map channels last, (B,F,F,C)
    rows.shape[1] = map->shape[2], rows.stride[1] = map->stride[2];
    rows.shape[2] = map->shape[3], rows.stride[2] = map->stride[3];
    rows.shape[3] = map->shape[1], rows.stride[3] = map->stride[1];
    if (!ostf::is(&rows, map_dtype, {B, F, F, C}) || !ostf::is(norm_weight, OSTF_F32, {C}) ||
        !ostf::is(norm_bias, OSTF_F32, {C}) || !(eps >= 0.0)) {
      return OSTF_EINVAL;
    }
    if (!ostf::is_float(dtype) || !ostf::is_float(map_dtype)) return OSTF_EDTYPE;
  } else if (!ostf::is(map, dtype, {B, C, F, F})) {
    return OSTF_EINVAL;
  }
  const int cells = F * F;
  std::vector<int32_t> token_at;
  if (const int status = ostf::find_tokens_of_cells(ostf::data<const int64_t>(ids), B, K, cells, token_at)) {
    return status;
  }
  const auto planes = [&](auto element) {
    using E = decltype(element);
    to_planes(ostf::data<const E>(tokens), token_at, ostf::data<E>(map), B, K, C, cells, threads);
    return OSTF_OK;
  };
  const auto rows = [&](auto from, auto to) {
    to_rows(dtype, ostf::data<const decltype(from)>(tokens), token_at, ostf::data<const float>(norm_weight),
            ostf::data<const float>(norm_bias), eps, map_dtype, ostf::data<decltype(to)>(map), B, K,
            C, cells, threads);
    return OSTF_OK;
  };
  if (normed) {
    if (dtype == OSTF_F32) return map_dtype == OSTF_F32 ? rows(0.0f, 0.0f) : rows(0.0f, uint16_t{});
    return map_dtype == OSTF_F32 ? rows(uint16_t{}, 0.0f) : rows(uint16_t{}, uint16_t{});
  }
  switch (ostf::element_size(dtype)) {
    case 2:
      return planes(uint16_t{});
    case 4:
      return planes(uint32_t{});
    case 8:
      return planes(uint64_t{});
    default:
      return OSTF_EDTYPE;
  }
}
