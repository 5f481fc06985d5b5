// What both attention kernels share: arguments, the choice of template rows, and the mean of their probabilities.
//
// A thread block owns one (batch item, head, tile of query rows). A block whose tile meets the template adds up, for
// every search key, the probabilities of its chosen rows and writes the sums to `partial`. The last such block of a
// batch item adds the heads' sums in a fixed order, so the score is the same bits on every run.
#pragma once
#include "cuda/common.cuh"

namespace ostf {

constexpr int kAttentionThreads = 128;  // of a group: a block has one or two
constexpr int kAttentionWarps = kAttentionThreads / 32;

struct AttentionArgs {
  const void* qkv;
  const uint8_t* mask;  // or null: no score
  int mask_stride;      // 0 where one mask serves every batch item, else T
  void* out;
  float* score;
  float* lse;  // or null
  float* partial;
  uint32_t* arrivals;
  int N, H, T;
  float scale, scale_rest;  // log2(e) / sqrt(D), which makes logits exponents of two; and what its rounding left out
};

__device__ __forceinline__ bool is_chosen(const AttentionArgs& a, int b, int row) {
  return row < a.T && a.mask[static_cast<int64_t>(b) * a.mask_stride + row] != 0;
}

// Natural log of the sum of e^(scaled logit), from the largest logit and the sum of 2^(the others relative to it).
__device__ __forceinline__ float natural_lse(const AttentionArgs& a, float top, float sum) {
  return (fmaf(top, a.scale_rest, top * a.scale) + log2f(sum)) * 0.693147180559945309f;
}

// The sums of one (batch item, template tile, head); heads are innermost, as the last block reads them.
__device__ __forceinline__ float* score_sums(const AttentionArgs& a, int b, int tiles, int tile, int head) {
  return a.partial + ((static_cast<int64_t>(b) * tiles + tile) * a.H + head) * (a.N - a.T);
}

// True in every thread of the last block of batch item b to come here; that block sees what all the others wrote.
__device__ __forceinline__ bool is_last_block(const AttentionArgs& a, int b, int blocks) {
  struct Last {
    bool value;
  };
  Last& last = block_shared<Last>();
  __syncthreads();  // this block's sums are written, as far as thread 0 can tell
  if (threadIdx.x == 0) {
    __threadfence();  // ... and, before the arrival is counted, as far as any thread can tell
    // Counts up and, at the last block, back to zero: ready for the next launch, a replayed graph's too.
    last.value = atomicInc(&a.arrivals[b], blocks - 1) == static_cast<uint32_t>(blocks - 1);
    __threadfence();
  }
  __syncthreads();
  return last.value;
}

// Called by all blocks of the template tiles. kRows is the tile height.
template <int kRows, int kThreads>
__device__ __forceinline__ void finish_score(const AttentionArgs& a, int b) {
  const int tiles = (a.T + kRows - 1) / kRows;
  if (!is_last_block(a, b, tiles * a.H)) return;
  const int S = a.N - a.T;
  int rows = 0;
  for (int first = 0; first < a.T; first += kThreads) {
    rows += __syncthreads_count(is_chosen(a, b, first + static_cast<int>(threadIdx.x)));
  }
  const float weight = rows ? 1.0f / (static_cast<float>(rows) * static_cast<float>(a.H)) : 0.0f;
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < S; base += kThreads) {
    const int key = base + threadIdx.x;
    float sum = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
      // A tile without a chosen row wrote nothing.
      bool any = false;
      for (int row = lane; row < kRows; row += 32) any |= is_chosen(a, b, tile * kRows + row);
      if (!__any_sync(0xFFFFFFFFu, any)) continue;
      const float* sums = score_sums(a, b, tiles, tile, 0) + key;
      if (key < S) {
#pragma unroll 4
        for (int head = 0; head < a.H; ++head) sum += __ldcg(sums + static_cast<int64_t>(head) * S);
      }
    }
    if (key < S) a.score[static_cast<int64_t>(b) * S + key] = sum * weight;
  }
}

}  // namespace ostf
