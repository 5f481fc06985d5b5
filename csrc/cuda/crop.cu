// Square crops around boxes, resized and normalized, in one launch and without an intermediate image.
//
// The numbers are those of the published code on a CPU: the crop's side and corner in float64, then OpenCV's bilinear
// resize of uint8 images (weights of 11 bits, sums in integers). The box is read on the device, so a captured graph
// follows it. Multiplications whose rounding OpenCV sees use intrinsics, which the compiler may not fuse with an
// addition.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kWidth = 32, kHeight = 8;  // pixels of the patch that a block computes, one a thread
constexpr double kMaxSide = 1 << 28;     // beyond it integer pixel coordinates could overflow

struct Args {
  const uint8_t* frame;
  const double* box;
  void* patch;
  double* scale;
  int height, width, Z;
  double factor;
  float mean[3], inv_std[3];
};

struct Square {
  int left, top, side;  // side 0: the box has no crop, and the patch is all border
};

// Two neighbours on one axis of the crop and their weights, which add up to 2048.
struct Tap {
  int first, second, weight_first, weight_second;
};

struct Shared {
  Square square;
  Tap column[kWidth], row[kHeight];
};

__device__ __forceinline__ Square square_of(const double* box, double factor, int Z, double* scale) {
  const double x = box[0], y = box[1], w = box[2], h = box[3];
  const double side = ceil(__dmul_rn(sqrt(__dmul_rn(w, h)), factor));
  *scale = Z / side;
  const double left = rint(x + 0.5 * w - 0.5 * side), top = rint(y + 0.5 * h - 0.5 * side);
  const bool usable = side >= 1.0 && side <= kMaxSide && fabs(left) <= kMaxSide && fabs(top) <= kMaxSide;  // not NaN
  if (!usable) return {0, 0, 0};
  return {static_cast<int>(left), static_cast<int>(top), static_cast<int>(side)};
}

// OpenCV's table entry for coordinate `at` of the patch. Its columns drop the weight of a neighbour outside, its rows
// keep the weight and repeat the edge: that rounds differently.
__device__ __forceinline__ Tap tap_of(int at, int side, int Z, bool is_column) {
  const double step = 1.0 / (static_cast<double>(Z) / side);
  float fraction = static_cast<float>(__dadd_rn(__dmul_rn(at + 0.5, step), -0.5));
  int first = static_cast<int>(floorf(fraction));
  fraction -= static_cast<float>(first);
  if (is_column && (first < 0 || first >= side - 1)) {
    fraction = 0.0f;
    first = first < 0 ? 0 : side - 1;
  }
  Tap tap;
  tap.first = min(max(first, 0), side - 1);
  tap.second = min(max(first + 1, 0), side - 1);
  tap.weight_first = __float2int_rn((1.0f - fraction) * 2048.0f);
  tap.weight_second = __float2int_rn(fraction * 2048.0f);
  return tap;
}

// The byte of channel 0 at a pixel of the crop, or null on the border. The frame's last row and column count as border.
__device__ __forceinline__ const uint8_t* pixel_at(const Args& a, const Square& square, int row, int column) {
  const int y = square.top + row, x = square.left + column;
  if (y < 0 || x < 0 || y >= a.height - 1 || x >= a.width - 1) return nullptr;
  return a.frame + (static_cast<int64_t>(y) * a.width + x) * 3;
}

template <class T>
__global__ void __launch_bounds__(kWidth* kHeight) crop(Args a) {
  ptx::wait_for_inputs();
  Shared& shared = block_shared<Shared>();
  const int t = threadIdx.x;
  const int64_t b = blockIdx.z;
  const int first_column = blockIdx.x * kWidth, first_row = blockIdx.y * kHeight;
  if (t == 0) {
    double scale;
    shared.square = square_of(a.box + b * 4, a.factor, a.Z, &scale);
    if (blockIdx.x == 0 && blockIdx.y == 0) a.scale[b] = scale;
  }
  __syncthreads();
  const Square square = shared.square;
  if (square.side > 0) {
    if (t < kWidth) {
      shared.column[t] = tap_of(first_column + t, square.side, a.Z, true);
    } else if (t < kWidth + kHeight) {
      shared.row[t - kWidth] = tap_of(first_row + t - kWidth, square.side, a.Z, false);
    }
  }
  __syncthreads();

  const int column = first_column + t % kWidth, row = first_row + t / kWidth;
  if (column >= a.Z || row >= a.Z) return;
  int value[3] = {};
  if (square.side > 0) {
    const Tap x = shared.column[t % kWidth], y = shared.row[t / kWidth];
    // At exactly half the size OpenCV means four pixels instead of interpolating.
    const bool halves = square.side == 2 * a.Z;
    const int columns[2] = {halves ? 2 * column : x.first, halves ? 2 * column + 1 : x.second};
    const int rows[2] = {halves ? 2 * row : y.first, halves ? 2 * row + 1 : y.second};
    const uint8_t* pixel[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pixel[i] = pixel_at(a, square, rows[i / 2], columns[i % 2]);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      int p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] = pixel[i] ? pixel[i][c] : 0;
      if (halves) {
        value[c] = (p[0] + p[1] + p[2] + p[3] + 2) >> 2;
      } else {
        const int upper = p[0] * x.weight_first + p[1] * x.weight_second;
        const int lower = p[2] * x.weight_first + p[3] * x.weight_second;
        value[c] = ((((upper >> 4) * y.weight_first) >> 16) + (((lower >> 4) * y.weight_second) >> 16) + 2) >> 2;
      }
    }
  }
  T* patch = static_cast<T*>(a.patch) + b * 3 * a.Z * a.Z + static_cast<int64_t>(row) * a.Z + column;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float normalized = (static_cast<float>(value[c]) / 255.0f - a.mean[c]) * a.inv_std[c];
    patch[static_cast<int64_t>(c) * a.Z * a.Z] = from_float<T>(normalized);
  }
}

}  // namespace
}  // namespace ostf

int ostf_cuda_crop(const ostf_tensor* frame, const ostf_tensor* box, const ostf_tensor* mean,
                   const ostf_tensor* inv_std, const ostf_tensor* patch, const ostf_tensor* scale, double factor,
                   void* stream) {
  using namespace ostf;
  if (!has_rank(frame, 3) || !has_rank(patch, 4)) return OSTF_EINVAL;
  const int height = static_cast<int>(frame->shape[0]), width = static_cast<int>(frame->shape[1]);
  const int B = static_cast<int>(patch->shape[0]), Z = static_cast<int>(patch->shape[3]);
  const int dtype = patch->dtype;
  if (B > 65535 || height < 1 || width < 1 || Z < 1 || Z > 65535 || !(factor > 0.0)) return OSTF_EINVAL;
  if (!is(frame, OSTF_U8, {height, width, 3}) || !is(box, OSTF_F64, {B, 4}) || !is(mean, OSTF_F32, {3}) ||
      !is(inv_std, OSTF_F32, {3}) || !is(patch, dtype, {B, 3, Z, Z}) || !is(scale, OSTF_F64, {B})) {
    return OSTF_EINVAL;
  }
  if (B == 0) return OSTF_OK;
  Args args = {data<const uint8_t>(frame), data<const double>(box), patch->data, data<double>(scale), height, width, Z,
               factor, {}, {}};
  for (int c = 0; c < 3; ++c) {
    args.mean[c] = data<const float>(mean)[c];
    args.inv_std[c] = data<const float>(inv_std)[c];
  }
  const dim3 grid(blocks_for(Z, kWidth), blocks_for(Z, kHeight), B), block(kWidth * kHeight);
  switch (dtype) {
    case OSTF_F32: return launch(crop<float>, grid, block, 0, stream, args);
    case OSTF_F16: return launch(crop<__half>, grid, block, 0, stream, args);
    case OSTF_BF16: return launch(crop<__nv_bfloat16>, grid, block, 0, stream, args);
    default: return OSTF_EDTYPE;
  }
}
