// From the box found in the crop to the box in the frame: a thread a target, so that a captured graph can follow it.
// Intrinsics keep multiplications from being fused with additions: the CPU's boxes, to the last bit.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kThreads = 64;

__global__ void __launch_bounds__(kThreads) update_box(const float* found, const double* box, int height, int width,
                                                    double factor, double margin, double* moved, int B) {
  ptx::wait_for_inputs();
  const int b = blockIdx.x * kThreads + threadIdx.x;
  if (b >= B) return;
  found += 4 * static_cast<int64_t>(b);
  box += 4 * static_cast<int64_t>(b);
  moved += 4 * static_cast<int64_t>(b);
  const double side = ceil(__dmul_rn(sqrt(__dmul_rn(box[2], box[3])), factor));
#pragma unroll
  for (int axis = 0; axis < 2; ++axis) {
    const double edge = axis == 0 ? width : height;
    const double extent = __dmul_rn(found[2 + axis], side);
    double corner = __dadd_rn(__dadd_rn(box[axis], __dmul_rn(0.5, box[2 + axis])), -0.5 * side);
    corner = __dadd_rn(__dadd_rn(corner, __dmul_rn(found[axis], side)), -0.5 * extent);
    // Compared this way round, so that NaN stays NaN and is seen by the caller.
    double low = corner < 0.0 ? 0.0 : corner, high = __dadd_rn(corner, extent);
    low = low > edge - margin ? edge - margin : low;
    high = high < margin ? margin : high;
    high = high > edge ? edge : high;
    moved[axis] = low;
    moved[2 + axis] = high - low < margin ? margin : high - low;
  }
}

}  // namespace
}  // namespace ostf

int ostf_cuda_update_box(const ostf_tensor* found, const ostf_tensor* box, const ostf_tensor* moved, int64_t height,
                         int64_t width, double factor, double margin, void* stream) {
  using namespace ostf;
  if (height < 1 || height > INT_MAX || width < 1 || width > INT_MAX || !(factor > 0.0) || !(margin >= 0.0)) {
    return OSTF_EINVAL;
  }
  if (!has_rank(box, 2)) return OSTF_EINVAL;
  const int64_t B = box->shape[0];
  if (!is(found, OSTF_F32, {B, 4}) || !is(box, OSTF_F64, {B, 4}) || !is(moved, OSTF_F64, {B, 4})) return OSTF_EINVAL;
  if (B == 0) return OSTF_OK;
  return launch(update_box, dim3(blocks_for(B, kThreads)), dim3(kThreads), 0, stream, data<const float>(found),
                data<const double>(box), static_cast<int>(height), static_cast<int>(width), factor, margin,
                data<double>(moved), static_cast<int>(B));
}
