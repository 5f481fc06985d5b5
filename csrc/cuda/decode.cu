// Head maps to boxes in one launch: a block finds the arg-max of one batch item and reads the box there.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Orders cells by response, the first of equals ahead. NaN is never ahead of a number.
__device__ __forceinline__ uint64_t candidate(float response, int cell) {
  return static_cast<uint64_t>(order_key(response)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(cell));
}

__device__ __forceinline__ uint64_t warp_best(uint64_t best) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, best, distance);
    best = other > best ? other : best;
  }
  return best;
}

struct Best {
  uint64_t of_warp[kWarps];
};

template <class E>
__global__ void __launch_bounds__(kThreads) decode(const E* score, const E* size, const E* offset, const float* window,
                                                   float* box, float* best_score, int F) {
  ptx::wait_for_inputs();
  Best& shared = block_shared<Best>();
  const int cells = F * F;
  const int64_t b = blockIdx.x;
  score += b * cells;
  uint64_t best = 0;
  for (int cell = threadIdx.x; cell < cells; cell += kThreads) {
    const float response = to_float(score[cell]) * (window ? window[cell] : 1.0f);
    const uint64_t own = candidate(response, cell);
    best = own > best ? own : best;
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = warp_best(threadIdx.x < kWarps ? shared.of_warp[threadIdx.x] : 0);
  if (threadIdx.x != 0) return;

  const int cell = static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(best));
  const E* offsets = offset + b * 2 * cells + cell;
  const E* sizes = size + b * 2 * cells + cell;
  const float side = static_cast<float>(F);
  box[b * 4 + 0] = (static_cast<float>(cell % F) + to_float(offsets[0])) / side;
  box[b * 4 + 1] = (static_cast<float>(cell / F) + to_float(offsets[cells])) / side;
  box[b * 4 + 2] = to_float(sizes[0]);
  box[b * 4 + 3] = to_float(sizes[cells]);
  best_score[b] = to_float(score[cell]);
}

template <class E>
int run(const ostf_tensor* score, const ostf_tensor* size, const ostf_tensor* offset, const ostf_tensor* window,
        const ostf_tensor* box, const ostf_tensor* best, void* stream) {
  return launch(decode<E>, dim3(static_cast<unsigned>(score->shape[0])), dim3(kThreads), 0, stream,
                data<const E>(score), data<const E>(size), data<const E>(offset), data<const float>(window),
                data<float>(box), data<float>(best), static_cast<int>(score->shape[3]));
}

}  // namespace
}  // namespace ostf

int ostf_cuda_decode(const ostf_tensor* score, const ostf_tensor* size, const ostf_tensor* offset,
                     const ostf_tensor* window, const ostf_tensor* box, const ostf_tensor* best, void* stream) {
  using namespace ostf;
  if (!has_rank(score, 4)) return OSTF_EINVAL;
  const int dtype = score->dtype;
  const int64_t B = score->shape[0], F = score->shape[3];
  if (F < 1 || F > 4096 || !is(score, dtype, {B, 1, F, F}) || !is(size, dtype, {B, 2, F, F}) ||
      !is(offset, dtype, {B, 2, F, F}) || (window && !is(window, OSTF_F32, {F, F})) || !is(box, OSTF_F32, {B, 4}) ||
      !is(best, OSTF_F32, {B})) {
    return OSTF_EINVAL;
  }
  if (B == 0) return OSTF_OK;
  switch (dtype) {
    case OSTF_F32: return run<float>(score, size, offset, window, box, best, stream);
    case OSTF_F16: return run<__half>(score, size, offset, window, box, best, stream);
    case OSTF_BF16: return run<__nv_bfloat16>(score, size, offset, window, box, best, stream);
    default: return OSTF_EDTYPE;
  }
}
