// Attention in float32, exactly: IEEE multiply-adds, no tf32. A block of 128 threads owns 32 query rows; a thread owns
// four of them and every sixteenth key or column pair.
#pragma once
#include <cfloat>

#include "cuda/attention_score.cuh"

namespace ostf {

constexpr int kRows = 32;        // query rows of a block
constexpr int kThreadRows = 4;   // ... and of a thread
constexpr int kColumns = 16;     // threads that share a row: half a warp
static_assert(kRows / kThreadRows * kColumns == kAttentionThreads, "");

// Rows are padded by one access so that a quarter warp's 16-byte reads of eight rows touch all banks once.
template <int D>
struct Fp32Tiles {
  static constexpr int kKeys = D <= 64 ? 64 : 32;  // all tiles together fit the 64 KiB of Turing
  float query[kRows][D];
  float key[kKeys][D + 4];
  float value[kKeys][D];
  float weight[kRows][kKeys + 4];
  float2 softmax[kRows];  // largest logit, and the inverse of the sum or 0 where the row is not chosen
};

// Rows [first, first + count) of an (N, D) array; rows from N on become zeros.
template <int D, int kCount, int kStride>
__device__ __forceinline__ void load_rows(float (&tile)[kCount][kStride], const float* source, int first, int N,
                                          int64_t stride) {
#pragma unroll 4
  for (int item = threadIdx.x; item < kCount * D / 4; item += kAttentionThreads) {
    const int row = item / (D / 4), column = item % (D / 4) * 4;
    const bool valid = first + row < N;
    copy_async_16(&tile[row][column], source + (valid ? first + row : 0) * stride + column, valid);
  }
}

// Logits of this thread's four rows and every sixteenth key.
template <int D, int kCount>
__device__ __forceinline__ void multiply_keys(float (&logit)[kThreadRows][kCount], const Fp32Tiles<D>& tiles) {
  const int row = threadIdx.x / kColumns * kThreadRows, column = threadIdx.x % kColumns;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) logit[i][j] = 0.0f;
  }
#pragma unroll 2
  for (int d = 0; d < D; d += 4) {
    float4 q[kThreadRows];
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) q[i] = *reinterpret_cast<const float4*>(&tiles.query[row + i][d]);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float4 k = *reinterpret_cast<const float4*>(&tiles.key[column + j * kColumns][d]);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        logit[i][j] = fmaf(q[i].x, k.x, logit[i][j]);
        logit[i][j] = fmaf(q[i].y, k.y, logit[i][j]);
        logit[i][j] = fmaf(q[i].z, k.z, logit[i][j]);
        logit[i][j] = fmaf(q[i].w, k.w, logit[i][j]);
      }
    }
  }
}

// 2^(scaled logit relative to the largest). The difference comes before the scale, or rounding the scaled logit would
// show: the largest weighs exactly 1. Large logits would show the rounding of the scale too. One of -inf must not meet
// the rest, whose sign may turn it. NaN fails the comparison, and stays.
__device__ __forceinline__ float softmax_weight(const AttentionArgs& a, float logit, float top) {
  const float difference = logit - top, below = difference < -FLT_MAX ? -FLT_MAX : difference;
  return exp2f(fmaf(below, a.scale_rest, below * a.scale));
}

__device__ __forceinline__ float half_warp_max(float x) {
  for (int distance = 1; distance < kColumns; distance *= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, distance));
  }
  return x;
}
__device__ __forceinline__ float half_warp_sum(float x) {
  for (int distance = 1; distance < kColumns; distance *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
  return x;
}

// Sums over the chosen rows of this block's tile of their probabilities of every search key.
template <int D>
__device__ __forceinline__ void sum_chosen_rows(const AttentionArgs& a, float* sums, Fp32Tiles<D>& tiles,
                                                const float* keys, int64_t stride) {
  constexpr int kKeys = Fp32Tiles<D>::kKeys, kCount = kKeys / kColumns;
  const int row = threadIdx.x / kColumns * kThreadRows, column = threadIdx.x % kColumns, warp = threadIdx.x / 32;
  const int S = a.N - a.T;
  for (int first = 0; first < S; first += kKeys) {
    load_rows<D>(tiles.key, keys, first, S, stride);
    copy_async_commit();
    copy_async_wait();
    __syncthreads();
    float logit[kThreadRows][kCount];
    multiply_keys<D>(logit, tiles);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const float2 softmax = tiles.softmax[row + i];
        if (softmax.y != 0.0f) sum += softmax.y * softmax_weight(a, logit[i][j], softmax.x);
      }
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, kColumns);
      if (threadIdx.x % 32 < kColumns) tiles.weight[warp][column + j * kColumns] = sum;
    }
    __syncthreads();
    const int key = threadIdx.x;
    if (key < kKeys && first + key < S) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) sum += tiles.weight[w][key];
      sums[first + key] = sum;
    }
  }
}

// Four blocks a multiprocessor: shared memory admits hardly more, and a compiler left to aim higher spills on some
// targets.
template <int D>
__global__ void __launch_bounds__(kAttentionThreads, 4) attention_fp32(AttentionArgs a) {
  ptx::wait_for_inputs();
  constexpr int kKeys = Fp32Tiles<D>::kKeys, kCount = kKeys / kColumns, kPairs = D / (2 * kColumns);
  auto& tiles = *reinterpret_cast<Fp32Tiles<D>*>(dynamic_shared());
  const int row = threadIdx.x / kColumns * kThreadRows, column = threadIdx.x % kColumns;
  const int tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
  const int64_t C = static_cast<int64_t>(a.H) * D, stride = 3 * C;
  const float* q = static_cast<const float*>(a.qkv) + b * a.N * stride + h * D;
  const float* k = q + C;
  const float* v = k + C;

  load_rows<D>(tiles.query, q, tile * kRows, a.N, stride);
  float2 out[kThreadRows][kPairs] = {};
  float top[kThreadRows], sum[kThreadRows];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    top[i] = -INFINITY;
    sum[i] = 0.0f;
  }
  for (int first = 0; first < a.N; first += kKeys) {
    load_rows<D>(tiles.key, k, first, a.N, stride);
    load_rows<D>(tiles.value, v, first, a.N, stride);
    copy_async_commit();
    copy_async_wait();
    __syncthreads();
    float logit[kThreadRows][kCount];
    multiply_keys<D>(logit, tiles);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      float here = -INFINITY;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (first + column + j * kColumns >= a.N) logit[i][j] = -INFINITY;
        here = fmaxf(here, logit[i][j]);
      }
      const float before = top[i];
      top[i] = fmaxf(before, half_warp_max(here));
      const float decay = softmax_weight(a, before, top[i]);
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float weight = softmax_weight(a, logit[i][j], top[i]);
        tiles.weight[row + i][column + j * kColumns] = weight;
        total += weight;
      }
      sum[i] = sum[i] * decay + total;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        out[i][j].x *= decay;
        out[i][j].y *= decay;
      }
    }
    __syncwarp();  // a row's weights come from its own half warp
#pragma unroll 2
    for (int n = 0; n < kKeys; n += 4) {
      float4 weight[kThreadRows];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) weight[i] = *reinterpret_cast<const float4*>(&tiles.weight[row + i][n]);
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        float2 value[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          value[m] = *reinterpret_cast<const float2*>(&tiles.value[n + m][(column + j * kColumns) * 2]);
        }
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const float w[4] = {weight[i].x, weight[i].y, weight[i].z, weight[i].w};
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            out[i][j].x = fmaf(w[m], value[m].x, out[i][j].x);
            out[i][j].y = fmaf(w[m], value[m].y, out[i][j].y);
          }
        }
      }
    }
    __syncthreads();  // before the next tiles overwrite these
  }

  const bool meets_template = a.mask && tile * kRows < a.T;
  bool chosen = false;
  float* rows = static_cast<float*>(a.out) + b * a.N * C + h * D;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int token = tile * kRows + row + i;
    const float total = half_warp_sum(sum[i]), inverse = 1.0f / total;
    if (token < a.N) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        *reinterpret_cast<float2*>(rows + token * C + (column + j * kColumns) * 2) =
            make_float2(out[i][j].x * inverse, out[i][j].y * inverse);
      }
    }
    if (column == 0) {
      if (a.lse && token < a.N) {
        a.lse[(static_cast<int64_t>(b) * a.H + h) * a.N + token] = natural_lse(a, top[i], total);
      }
      if (meets_template) {
        const bool choose = is_chosen(a, b, token);
        chosen |= choose;
        tiles.softmax[row + i] = make_float2(top[i], choose ? inverse : 0.0f);
      }
    }
  }
  if (!meets_template) return;
  if (__syncthreads_or(chosen)) {
    float* sums = score_sums(a, b, (a.T + kRows - 1) / kRows, tile, h);
    sum_chosen_rows<D>(a, sums, tiles, k + a.T * stride, stride);
  }
  finish_score<kRows, kAttentionThreads>(a, b);
}

}  // namespace ostf
