// Early candidate elimination in one launch: one warp moves one token.
//
// The warp of search token i counts the tokens ranked before it (a higher score, or the same score at a lower
// position). The count is its rank, so it can write its own row, id, or removal. Every warp works alone:
// no sort, no barrier, any number of tokens, and the same result on every run.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kWarps = 4;  // few per block: one frame alone has only a few hundred tokens to spread over the device
constexpr int kAhead = 4;  // accesses of a row that are in flight while the warp counts: 2 KiB at 16 bytes a lane

struct Args {
  const void* tokens;
  const float* score;
  const int64_t* ids;
  void* out;
  int64_t* out_ids;
  int64_t* removed;
  int T, S, K;
  int width;  // accesses of a row
};

__device__ __forceinline__ int rank_of(const float* score, int S, int i) {
  const int lane = threadIdx.x % 32;
  const uint32_t own = order_key(score[i]);
  int before = 0;
#pragma unroll 4
  for (int j = lane; j < S; j += 32) {
    const uint32_t other = order_key(score[j]);
    before += other > own || (other == own && j < i);
  }
  for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(0xFFFFFFFFu, before, distance);
  return before;
}

template <class Access>
__global__ void __launch_bounds__(kWarps * 32) eliminate(Args a) {
  ptx::wait_for_inputs();
  const int lane = threadIdx.x % 32;
  const int token = blockIdx.x * kWarps + threadIdx.x / 32;
  const int64_t b = blockIdx.y;
  if (token >= a.T + a.S) return;  // the whole warp

  const Access* row = static_cast<const Access*>(a.tokens) + (b * (a.T + a.S) + token) * a.width;
  Access ahead[kAhead];
#pragma unroll
  for (int n = 0; n < kAhead; ++n) {
    if (lane + n * 32 < a.width) ahead[n] = row[lane + n * 32];
  }

  int64_t row_of_out = token;
  if (token >= a.T) {
    const int i = token - a.T;
    const int rank = rank_of(a.score + b * a.S, a.S, i);
    if (lane == 0) {
      const int64_t id = a.ids[b * a.S + i];
      if (rank < a.K) {
        a.out_ids[b * a.K + rank] = id;
      } else {
        a.removed[b * (a.S - a.K) + rank - a.K] = id;
      }
    }
    if (rank >= a.K) return;
    row_of_out = a.T + rank;
  }

  Access* to = static_cast<Access*>(a.out) + (b * (a.T + a.K) + row_of_out) * a.width;
#pragma unroll
  for (int n = 0; n < kAhead; ++n) {
    if (lane + n * 32 < a.width) to[lane + n * 32] = ahead[n];
  }
  for (int n = lane + kAhead * 32; n < a.width; n += 32) to[n] = row[n];
}

template <class Access>
int run(Args args, int64_t row_bytes, int B, void* stream) {
  args.width = static_cast<int>(row_bytes / sizeof(Access));
  const dim3 grid(blocks_for(int64_t{args.T} + args.S, kWarps), B);
  return launch(eliminate<Access>, grid, dim3(kWarps * 32), 0, stream, args);
}

}  // namespace
}  // namespace ostf

int ostf_cuda_eliminate(const ostf_tensor* tokens, const ostf_tensor* score, const ostf_tensor* ids,
                        const ostf_tensor* out, const ostf_tensor* out_ids, const ostf_tensor* removed, void* stream) {
  using namespace ostf;
  if (!has_rank(tokens, 3) || !has_rank(score, 2) || !has_rank(out_ids, 2)) return OSTF_EINVAL;
  const int B = static_cast<int>(tokens->shape[0]), C = static_cast<int>(tokens->shape[2]);
  const int S = static_cast<int>(score->shape[1]), K = static_cast<int>(out_ids->shape[1]);
  const int T = static_cast<int>(tokens->shape[1]) - S;
  const int dtype = tokens->dtype;
  const int64_t elem_size = element_size(dtype);
  if (elem_size != 2 && elem_size != 4 && elem_size != 8) return OSTF_EDTYPE;
  if (B > 65535 || T < 0 || K > S || C < 1) return OSTF_EINVAL;
  if (!is(tokens, dtype, {B, T + S, C}) || !is(out, dtype, {B, T + K, C}) || !is(score, OSTF_F32, {B, S}) ||
      !is(ids, OSTF_I64, {B, S}) || !is(out_ids, OSTF_I64, {B, K}) || !is(removed, OSTF_I64, {B, S - K})) {
    return OSTF_EINVAL;
  }
  if (B == 0 || T + S == 0) return OSTF_OK;
  const Args args = {tokens->data, data<float>(score), data<int64_t>(ids), out->data, data<int64_t>(out_ids),
                     data<int64_t>(removed), T, S, K, 0};
  const int64_t row_bytes = C * elem_size;
  const auto fits = [&](int bytes) { return row_bytes % bytes == 0 && aligned(tokens->data, bytes) && aligned(out->data, bytes); };
  if (fits(16)) return run<uint4>(args, row_bytes, B, stream);
  if (fits(8)) return run<uint2>(args, row_bytes, B, stream);
  if (fits(4)) return run<uint32_t>(args, row_bytes, B, stream);
  return run<uint16_t>(args, row_bytes, B, stream);
}
