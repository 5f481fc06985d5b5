// Attention on tensor cores for float16 and bfloat16.
//
// A group of four warps, 16 query rows each, walks over tiles of 64 keys. Two groups take turns at the tiles, and the
// second hands its sums to the first at the end: half as many steps, for calls with too few blocks to fill a GPU.
// Matmuls run on mma.sync with float32 sums; the softmax is the online one (running maximum and sum), so no N x N array
// exists. Tiles lie in shared memory as 16-byte chunks whose position is permuted within each row, so that the eight rows
// of an ldmatrix phase, and the eight chunks of a store, fall into different banks. Where cp.async exists, the next tile
// travels while this one is multiplied.
#pragma once
#include "cuda/attention_score.cuh"

namespace ostf {

constexpr int kTile = 64;  // query rows of a block, and keys of a step
constexpr int kWarpRows = kTile / kAttentionWarps;
static_assert(kWarpRows == 16, "an mma.sync has 16 rows");
constexpr int kMostKept = 1024;  // keys whose logits are kept for the score

// Logits of the block's one chosen row, and its softmax as in sum_chosen_rows.
struct ChosenRow {
  float logit[kMostKept];
  float2 softmax;
};

// What the second group hands over beside its sums of values.
struct Handed {
  float top[2][kAttentionThreads], sum[2][kAttentionThreads];
};

// Pairs of key and value tiles of a group in shared memory, for code compiled for `arch`.
__host__ __device__ constexpr int attention_stages(int arch) { return arch >= 800 ? 2 : 1; }

template <class T, int D, int kGroups>
constexpr size_t attention_shared_bytes(int arch) {
  return sizeof(T) * kTile * D * (1 + 2 * attention_stages(arch) * kGroups) + sizeof(float2) * kTile;
}

// Rows of 64 or 192 bytes: two neighbours share the 128 bytes of all banks, or half of them. Others start at bank 0.
template <class T, int D>
__device__ __forceinline__ T* chunk_at(T* tile, int row, int chunk) {
  const int flip = D % 64 ? row / 2 % 4 : row % 8;
  return tile + row * D + (chunk ^ flip) * 8;
}

// Rows [first, first + 64) of an (N, D) array into a tile, by one group; rows from N on become zeros.
template <class T, int D>
__device__ __forceinline__ void load_tile(T* tile, const T* source, int first, int N, int64_t stride) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int step = 0; step < kTile * kChunks / kAttentionThreads; ++step) {
    const int item = step * kAttentionThreads + threadIdx.x % kAttentionThreads;
    const int row = item / kChunks, chunk = item % kChunks;
    const bool valid = first + row < N;
    copy_async_16(chunk_at<T, D>(tile, row, chunk), source + (valid ? first + row : 0) * stride + chunk * 8, valid);
  }
}

// The 16x16 fragment of query rows [row, row + 16), columns [16 k, 16 k + 16).
template <class T, int D>
__device__ __forceinline__ void load_query(uint32_t (&fragment)[4], T* tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_x4<false>(fragment, chunk_at<T, D>(tile, row + lane % 16, 2 * k + lane / 16));
}

// Keys [key, key + 16), the same columns: words 0 and 1 serve the first eight keys, words 2 and 3 the others.
template <class T, int D>
__device__ __forceinline__ void load_key(uint32_t (&fragment)[4], T* tile, int key, int k) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_x4<false>(fragment, chunk_at<T, D>(tile, key + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
}

// Values of keys [key, key + 16), columns [16 n, 16 n + 16), transposed: words 0 and 1 serve the first eight columns.
template <class T, int D>
__device__ __forceinline__ void load_value(uint32_t (&fragment)[4], T* tile, int key, int n) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_x4<true>(fragment, chunk_at<T, D>(tile, key + lane % 16, 2 * n + lane / 16));
}

// A lane's rows of a fragment are lane / 4 and lane / 4 + 8; four lanes share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

// 2^(scaled logit relative to the largest). The difference comes before the scale, or rounding the scaled logit would
// show: the largest weighs exactly 1.
__device__ __forceinline__ float softmax_weight(float logit, float top, float scale) {
  return ptx::exp2_approx((logit - top) * scale);
}

// One step of the online softmax: the logits of 64 keys (`keys` of them real) become weights relative to `top`, the
// largest logit so far; what was summed before is scaled to it.
template <int D>
__device__ __forceinline__ void softmax_step(float (&p)[kTile / 8][4], float (&out)[D / 8][4], float (&top)[2],
                                             float (&sum)[2], int keys, float scale) {
  if (keys < kTile) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n * 8 + column + i % 2 >= keys) p[n][i] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float here = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) here = fmaxf(here, fmaxf(p[n][2 * r], p[n][2 * r + 1]));
    const float before = top[r];
    top[r] = fmaxf(before, row_max(here));
    const float decay = softmax_weight(before, top[r], scale);
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        p[n][i] = softmax_weight(p[n][i], top[r], scale);
        total += p[n][i];
      }
    }
    sum[r] = sum[r] * decay + total;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      out[n][2 * r] *= decay;
      out[n][2 * r + 1] *= decay;
    }
  }
}

// Logits of 64 keys from `first` on, of the lane's row r.
__device__ __forceinline__ void keep_logits(ChosenRow& kept, const float (&p)[kTile / 8][4], int r, int first, int N) {
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = first + n * 8 + threadIdx.x % 4 * 2 + i;
      if (key < N) kept.logit[key] = p[n][2 * r + i];
    }
  }
}

// Sums over the chosen rows of this block's tile of their probabilities of every search key. Each warp takes 16 of a
// tile's 64 keys and all row groups with a chosen row. rows has each row's largest logit and the inverse of its sum, 0
// where the row is not chosen. The first key tile is on its way. A second group comes along for the barriers.
template <class T, int D, int kGroups>
__device__ __forceinline__ void sum_chosen_rows(const AttentionArgs& a, float* sums, T* query, T* stage_0,
                                                const T* keys, int64_t stride, const float2* rows) {
  constexpr int kStages = attention_stages(OSTF_ARCH);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool works = threadIdx.x < kAttentionThreads;
  const int S = a.N - a.T;
  for (int first = 0; first < S; first += kTile) {
    copy_async_wait();
    __syncthreads();
    T* tile = stage_0 + (first / kTile % kStages) * 2 * kGroups * kTile * D;
    if (kStages > 1 && works && first + kTile < S) {
      T* next = stage_0 + ((first / kTile + 1) % kStages) * 2 * kGroups * kTile * D;
      load_tile<T, D>(next, keys, first + kTile, S, stride);
      copy_async_commit();
    }
    float sum[2][2] = {};
#pragma unroll 1
    for (int row = 0; works && row < kTile; row += 16) {
      const float2 softmax[2] = {rows[row + lane / 4], rows[row + lane / 4 + 8]};
      if (!__any_sync(0xFFFFFFFFu, softmax[0].y != 0.0f || softmax[1].y != 0.0f)) continue;
      float logit[2][4] = {};
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t q[4], key[4];
        load_query<T, D>(q, query, row, k);
        load_key<T, D>(key, tile, warp * 16, k);
        mma_16x8x16<T>(logit[0], q, key[0], key[1]);
        mma_16x8x16<T>(logit[1], q, key[2], key[3]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (softmax[r].y == 0.0f) continue;  // not 0 times a probability, which may be NaN
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            sum[n][i] += softmax[r].y * softmax_weight(logit[n][2 * r + i], softmax[r].x, a.scale);
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        for (int distance = 4; distance < 32; distance *= 2) {
          sum[n][i] += __shfl_xor_sync(0xFFFFFFFFu, sum[n][i], distance);
        }
        const int key = first + warp * 16 + n * 8 + lane * 2 + i;
        if (works && lane < 4 && key < S) sums[key] = sum[n][i];
      }
    }
    if (kStages == 1 && first + kTile < S) {
      __syncthreads();
      if (works) load_tile<T, D>(stage_0, keys, first + kTile, S, stride);
    }
  }
}

// Adds what the second group found to the first group's softmax and sums of values. `values` is room for 64 rows of
// float32, which no warp uses any more.
template <int D>
__device__ __forceinline__ void merge_groups(float* values, float (&out)[D / 8][4], float (&top)[2], float (&sum)[2],
                                             float scale) {
  Handed& handed = block_shared<Handed>();
  const int t = threadIdx.x % kAttentionThreads;
  const bool gives = threadIdx.x >= kAttentionThreads;
  if (gives) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      handed.top[r][t] = top[r];
      handed.sum[r][t] = sum[r];
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[(n * 4 + i) * kAttentionThreads + t] = out[n][i];
    }
  }
  __syncthreads();
  if (gives) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = handed.top[r][t], both = fmaxf(top[r], other);
    const float own_decay = softmax_weight(top[r], both, scale), other_decay = softmax_weight(other, both, scale);
    top[r] = both;
    sum[r] = sum[r] * own_decay + handed.sum[r][t] * other_decay;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        out[n][i] = out[n][i] * own_decay + values[(n * 4 + i) * kAttentionThreads + t] * other_decay;
      }
    }
  }
}

template <class T, int D, int kGroups>
__global__ void __launch_bounds__(kAttentionThreads* kGroups, 2 / kGroups) attention_mma(AttentionArgs a) {
#if OSTF_ARCH < 800
  if constexpr (!std::is_same_v<T, __half>) {
    __trap();  // the host never launches this
  } else
#endif
  {
    ptx::wait_for_inputs();
    constexpr int kStages = attention_stages(OSTF_ARCH);
    T* query = reinterpret_cast<T*>(dynamic_shared());
    T* stages = query + kTile * D;  // of each stage and group: key tile, value tile
    float2* softmax = reinterpret_cast<float2*>(stages + 2 * kStages * kGroups * kTile * D);  // see sum_chosen_rows
    ChosenRow& kept = block_shared<ChosenRow>();

    const int group = threadIdx.x / kAttentionThreads;
    const int warp = threadIdx.x % kAttentionThreads / 32, lane = threadIdx.x % 32;
    const int tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const int64_t C = static_cast<int64_t>(a.H) * D, stride = 3 * C;
    const T* q = static_cast<const T*>(a.qkv) + b * a.N * stride + h * D;
    const T* k = q + C;
    const T* v = k + C;

    // This group's tiles of a stage.
    const auto tiles_of = [&](int stage) { return stages + (stage % kStages * kGroups + group) * 2 * kTile * D; };
    if (group == 0) load_tile<T, D>(query, q, tile * kTile, a.N, stride);
    load_tile<T, D>(tiles_of(0), k, group * kTile, a.N, stride);
    load_tile<T, D>(tiles_of(0) + kTile * D, v, group * kTile, a.N, stride);
    copy_async_commit();

    // A row chosen alone keeps its logits, so that its score needs no second look at the keys.
    const bool meets_template = a.mask && tile * kTile < a.T;
    int chosen_rows = 0;
    bool keeps[2] = {};
    if (meets_template) {
      const int token = tile * kTile + threadIdx.x;
      chosen_rows = __syncthreads_count(threadIdx.x < kTile && is_chosen(a, b, token));
    }
    const bool one_row = chosen_rows == 1 && a.N <= kMostKept;
    if (one_row) {
#pragma unroll
      for (int r = 0; r < 2; ++r) keeps[r] = is_chosen(a, b, tile * kTile + warp * kWarpRows + lane / 4 + 8 * r);
    }

    uint32_t fragment[D / 16][4];
    float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int step = 0; step * kGroups * kTile < a.N; ++step) {
      const int first = (step * kGroups + group) * kTile, next = first + kGroups * kTile;
      copy_async_wait();
      __syncthreads();  // the tiles have arrived, and no warp is still at those before
      T* keys = tiles_of(step);
      T* values = keys + kTile * D;
      if (step == 0) {
#pragma unroll
        for (int i = 0; i < D / 16; ++i) load_query<T, D>(fragment[i], query, warp * kWarpRows, i);
      }
      if (kStages > 1 && next < a.N) {
        load_tile<T, D>(tiles_of(step + 1), k, next, a.N, stride);
        load_tile<T, D>(tiles_of(step + 1) + kTile * D, v, next, a.N, stride);
        copy_async_commit();
      }

      if (first < a.N) {  // the second group may have a tile less
        float p[kTile / 8][4] = {};
#pragma unroll
        for (int n = 0; n < kTile / 16; ++n) {
#pragma unroll
          for (int i = 0; i < D / 16; ++i) {
            uint32_t key[4];
            load_key<T, D>(key, keys, n * 16, i);
            mma_16x8x16<T>(p[2 * n], fragment[i], key[0], key[1]);
            mma_16x8x16<T>(p[2 * n + 1], fragment[i], key[2], key[3]);
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (keeps[r]) keep_logits(kept, p, r, first, a.N);
        }
        softmax_step<D>(p, out, top, sum, a.N - first, a.scale);
#pragma unroll
        for (int n = 0; n < kTile / 16; ++n) {
          const float(&left)[4] = p[2 * n], (&right)[4] = p[2 * n + 1];
          const uint32_t weight[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]),
                                      pack<T>(right[0], right[1]), pack<T>(right[2], right[3])};
#pragma unroll
          for (int i = 0; i < D / 16; ++i) {
            uint32_t value[4];
            load_value<T, D>(value, values, n * 16, i);
            mma_16x8x16<T>(out[2 * i], weight, value[0], value[1]);
            mma_16x8x16<T>(out[2 * i + 1], weight, value[2], value[3]);
          }
        }
      }

      if (kStages == 1 && (step + 1) * kGroups * kTile < a.N) {
        __syncthreads();
        load_tile<T, D>(keys, k, next, a.N, stride);
        load_tile<T, D>(values, v, next, a.N, stride);
      }
    }

    const bool second_look = chosen_rows > 0 && !one_row;
    __syncthreads();  // from here on the key and value tiles are free
    if constexpr (kGroups > 1) {
      merge_groups<D>(reinterpret_cast<float*>(stages + 2 * kTile * D), out, top, sum, a.scale);
    }
    if (second_look && group == 0) {
      load_tile<T, D>(stages, k + a.T * stride, 0, a.N - a.T, stride);
      copy_async_commit();
    }

    // Rows leave through shared memory (the first value tile): 16 bytes a lane, whole lines of out.
    T* staged = stages + kTile * D;
    if (group == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp * kWarpRows + lane / 4 + 8 * r, token = tile * kTile + row;
        const float total = row_sum(sum[r]);
        const float inverse = 1.0f / total;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          *reinterpret_cast<uint32_t*>(chunk_at<T, D>(staged, row, n) + lane % 4 * 2) =
              pack<T>(out[n][2 * r] * inverse, out[n][2 * r + 1] * inverse);
        }
        if (lane % 4 == 0) {
          if (a.lse && token < a.N) {
            a.lse[(static_cast<int64_t>(b) * a.H + h) * a.N + token] = natural_lse(a, top[r], total);
          }
          if (keeps[r]) kept.softmax = make_float2(top[r], inverse);
          if (second_look) softmax[row] = make_float2(top[r], is_chosen(a, b, token) ? inverse : 0.0f);
        }
      }
      __syncwarp();
      constexpr int kChunks = D / 8;
      T* rows = static_cast<T*>(a.out) + b * a.N * C + h * D;
#pragma unroll
      for (int step = 0; step < kWarpRows * kChunks / 32; ++step) {
        const int item = step * 32 + lane;
        const int row = warp * kWarpRows + item / kChunks, token = tile * kTile + row;
        if (token < a.N) {
          *reinterpret_cast<uint4*>(rows + token * C + item % kChunks * 8) =
              *reinterpret_cast<const uint4*>(chunk_at<T, D>(staged, row, item % kChunks));
        }
      }
    }

    if (!meets_template) return;
    float* sums = score_sums(a, b, (a.T + kTile - 1) / kTile, tile, h);
    if (one_row) {
      __syncthreads();  // the logits are there, of both groups, and the softmax
      const float2 softmax_of_row = kept.softmax;
      for (int key = a.T + threadIdx.x; key < a.N; key += kAttentionThreads * kGroups) {
        sums[key - a.T] = softmax_of_row.y * softmax_weight(kept.logit[key], softmax_of_row.x, a.scale);
      }
    } else if (second_look) {
      sum_chosen_rows<T, D, kGroups>(a, sums, query, stages, k + a.T * stride, stride, softmax);
    }
    finish_score<kTile, kAttentionThreads * kGroups>(a, b);
  }
}

}  // namespace ostf
