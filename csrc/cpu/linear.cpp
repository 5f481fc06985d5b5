// Linear layers and 3 x 3 convolutions on the CPU: the entry points of the C ABI, and the prologue, which normalizes,
// encodes and quantizes the activations.
#include "cpu/linear.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "tensor.h"

namespace {

using ostf::Gemm;
using ostf::LinearKernel;
using ostf::PackedLayout;

// Checks that all entry points share: sizes, OSTRACK_FAST_CPU_CAPABILITY, and whether there is a kernel.
int find_kernel(int dtype, int64_t O, int64_t I, int64_t taps, int groups, const LinearKernel** kernel) {
  const bool valid = O >= 1 && I >= 1 && groups >= 1 && O % groups == 0 && I % groups == 0 && (taps == 1 || taps == 9);
  const bool fits = O <= INT_MAX && I <= INT_MAX && (dtype != OSTF_I8 || I / groups <= ostf::kMaxQuantizedInputs);
  if (!valid || !fits || ostf::level() < 0) return OSTF_EINVAL;
  *kernel = ostf::linear_kernel(dtype);
  return *kernel ? OSTF_OK : OSTF_EDTYPE;
}

// The kernel for a weight (O,taps,I/groups); only its shape is read.
int find_kernel(const ostf_tensor* weight, int dtype, int groups, const LinearKernel** kernel) {
  if (weight == nullptr || weight->ndim != 3) return OSTF_EINVAL;
  const int64_t* shape = weight->shape;
  if (shape[2] > INT_MAX) return OSTF_EINVAL;
  return find_kernel(dtype, shape[0], shape[2] * groups, shape[1], groups, kernel);
}

PackedLayout layout_of(const ostf_tensor* weight, const LinearKernel& kernel, int groups) {
  const auto size = [&](int dimension) { return static_cast<int>(weight->shape[dimension]); };
  return PackedLayout(kernel, size(0), size(2) * groups, size(1), groups);
}

bool holds(const ostf_tensor* packed, const PackedLayout& layout) {
  return packed && packed->data && packed->ndim == 1 && packed->dtype == OSTF_U8 &&
         packed->shape[0] == static_cast<int64_t>(layout.total) && ostf::is_dense(*packed);
}

bool float_or_bf16(const ostf_tensor* t) { return t->dtype == OSTF_F32 || t->dtype == OSTF_BF16; }

bool valid(int activation) { return activation >= OSTF_NONE && activation <= OSTF_RELU; }

// Encoded rows in the calling thread's scratch memory.
struct PackedRows {
  char* rows;
  float* scale;     // (count, conv_groups)
  ptrdiff_t pitch;  // bytes from one row to the next

  PackedRows(const LinearKernel& kernel, const PackedLayout& layout, ptrdiff_t count) {
    pitch = ostf::row_pitch(kernel, static_cast<ptrdiff_t>(layout.conv_groups) * layout.groups);
    static thread_local ostf::Arena arena;
    rows = static_cast<char*>(arena.reserve((pitch + sizeof(float) * layout.conv_groups) * count));
    scale = reinterpret_cast<float*>(rows + pitch * count);
  }
};

}  // namespace

const ostf::LinearKernel* ostf::linear_kernel([[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (ostf::level() < ostf::kAvx2) return nullptr;
  const bool avx512 = ostf::level() >= ostf::kAvx512;
  if (dtype == OSTF_F32) return avx512 ? &ostf::linear_avx512 : &ostf::linear_avx2;
  if (dtype == OSTF_BF16) return ostf::level() >= ostf::kAvx512Bf16 ? &ostf::linear_avx512_bf16 : &ostf::linear_avx2_bf16;
  if (dtype == OSTF_I8) {
    if (avx512 && ostf::cpu_features().avx512_vnni) return &ostf::linear_avx512_vnni;
#if defined(OSTF_AVX_VNNI)
    // Not every processor with AVX-512 has it.
    if (ostf::level() >= ostf::kAvxVnni && ostf::cpu_features().avx_vnni) return &ostf::linear_avx_vnni;
#endif
    return &ostf::linear_avx2_int8;
  }
#endif
  return nullptr;
}

int ostf_cpu_linear_packed_bytes(const ostf_tensor* weight, int dtype, int groups, int64_t* bytes) {
  const LinearKernel* kernel;
  if (const int status = find_kernel(weight, dtype, groups, &kernel)) return status;
  *bytes = static_cast<int64_t>(layout_of(weight, *kernel, groups).total);
  return OSTF_OK;
}

int ostf_cpu_linear_pack(const ostf_tensor* weight, const ostf_tensor* bias, const ostf_tensor* packed, int dtype,
                         int groups, int threads) {
  const LinearKernel* kernel;
  if (const int status = find_kernel(weight, dtype, groups, &kernel)) return status;
  const PackedLayout layout = layout_of(weight, *kernel, groups);
  const int64_t O = weight->shape[0], taps = weight->shape[1];
  if (threads < 1 || !ostf::is(weight, OSTF_F32, {O, taps, weight->shape[2]}) || !ostf::is(bias, OSTF_F32, {O}) ||
      !holds(packed, layout)) {
    return OSTF_EINVAL;
  }
  const auto* values = ostf::data<const float>(weight);
  const auto finite = [](float value) { return std::isfinite(value); };
  const bool all_finite = dtype != OSTF_I8 || std::all_of(values, values + O * taps * layout.inputs, finite);
  if (!all_finite) return OSTF_EINVAL;  // int8 cannot represent them
  pack_weights(*kernel, layout, values, ostf::data<const float>(bias), ostf::data<char>(packed), threads);
  return OSTF_OK;
}

int ostf_cpu_linear(const ostf_tensor* packed, const ostf_tensor* x, const ostf_tensor* residual,
                    const ostf_tensor* out, int dtype, double norm_eps, int activation, int threads) {
  if (!ostf::has_rank(x, 3) || !ostf::has_rank(out, 3) || threads < 1 || !valid(activation)) return OSTF_EINVAL;
  const auto B = static_cast<int>(x->shape[0]), R = static_cast<int>(x->shape[1]), I = static_cast<int>(x->shape[2]);
  const auto O = static_cast<int>(out->shape[2]);
  if (static_cast<int64_t>(B) * R > INT_MAX) return OSTF_EINVAL;
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, 1, 1, &kernel)) return status;
  if (!float_or_bf16(x) || !float_or_bf16(out)) return OSTF_EDTYPE;
  if (!ostf::is(x, x->dtype, {B, R, I}, 1) || !ostf::is(out, out->dtype, {B, R, O}, 1) ||
      (residual && !ostf::is(residual, OSTF_F32, {B, R, O}, 1))) {
    return OSTF_EINVAL;
  }
  const PackedLayout layout(*kernel, O, I, 1, 1);
  if (!holds(packed, layout)) return OSTF_EINVAL;
  if (B == 0 || R == 0) return OSTF_OK;

  const int64_t element = ostf::element_size(x->dtype), x_item = x->stride[0], out_item = out->stride[0];
  const int64_t residual_item = residual ? residual->stride[0] : 0;
  const auto* from = ostf::data<const char>(x);
  Gemm gemm = {B, R, 1, from, x_item * element, 0, I * element, 0, nullptr, activation,
               ostf::data<const float>(residual), residual_item, out->data, out->dtype == OSTF_BF16, out_item};
  if (norm_eps >= 0 || x->dtype != kernel->row_dtype || I % inputs_per_group(kernel->encoding) != 0) {
    const ptrdiff_t rows = static_cast<ptrdiff_t>(B) * R;
    const PackedRows to(*kernel, layout, rows);
    if (!to.rows) return OSTF_ENOMEM;
    ostf::parallel_for(rows, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        kernel->pack_row(x->dtype, from + (row / R * x_item + row % R * I) * element, I, static_cast<float>(norm_eps),
                         to.rows + row * to.pitch, to.scale + row);
      }
    });
    gemm.rows = to.rows;
    gemm.item = R * to.pitch;
    gemm.pitch = to.pitch;
    gemm.scale = to.scale;
  }
  // Batch items that are contiguous everywhere become one long line, which is cut into fuller tiles.
  const auto dense = [&](ptrdiff_t item, ptrdiff_t row) { return item == R * row; };
  if (dense(gemm.item, gemm.pitch) && dense(out_item, O) && (!residual || dense(residual_item, O))) {
    gemm.lines = 1;
    gemm.length = B * R;
  }
  run_gemm(*kernel, layout, ostf::data<const char>(packed), gemm, threads);
  return OSTF_OK;
}

int ostf_cpu_conv3x3(const ostf_tensor* packed, const ostf_tensor* x, const ostf_tensor* out, int dtype, int groups,
                     int activation, int threads) {
  if (!ostf::has_rank(x, 4) || !ostf::has_rank(out, 4) || threads < 1 || !valid(activation)) return OSTF_EINVAL;
  const auto B = static_cast<int>(x->shape[0]), F = static_cast<int>(x->shape[1]), I = static_cast<int>(x->shape[3]);
  const auto O = static_cast<int>(out->shape[3]);
  if (F < 1 || F > 4096 || B > INT_MAX / F) return OSTF_EINVAL;
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, 9, groups, &kernel)) return status;
  if (!float_or_bf16(x) || !float_or_bf16(out)) return OSTF_EDTYPE;
  const PackedLayout layout(*kernel, O, I, 9, groups);
  if (!ostf::is(x, x->dtype, {B, F, F, I}) || !ostf::is(out, out->dtype, {B, F, F, O}) || !holds(packed, layout)) {
    return OSTF_EINVAL;
  }
  if (B == 0) return OSTF_OK;

  const int side = F + 2;  // with the border of zeros
  const PackedRows to(*kernel, layout, static_cast<ptrdiff_t>(B) * side * side);
  if (!to.rows) return OSTF_ENOMEM;
  const int64_t element = ostf::element_size(x->dtype);
  ostf::parallel_for(static_cast<int64_t>(B) * side, threads, [&](int64_t first, int64_t last) {
    for (int64_t cell = first * side; cell < last * side; ++cell) {
      const int64_t row = cell / side % side - 1, column = cell % side - 1;
      char* encoded = to.rows + cell * to.pitch;
      if (row < 0 || row >= F || column < 0 || column >= F) {
        std::memset(encoded, kernel->zero, to.pitch);
        std::fill_n(to.scale + cell * groups, groups, 0.0f);
        continue;
      }
      const char* from = ostf::data<const char>(x) + ((cell / side / side * F + row) * F + column) * I * element;
      for (int g = 0; g < groups; ++g) {
        kernel->pack_row(x->dtype, from + static_cast<ptrdiff_t>(g) * layout.inputs * element, layout.inputs, -1.0f,
                         encoded + static_cast<ptrdiff_t>(g) * layout.groups * kernel->row_group_bytes,
                         to.scale + cell * groups + g);
      }
    }
  });
  const Gemm gemm = {B * F, F, F, to.rows, side * side * to.pitch, side * to.pitch, to.pitch, side, to.scale,
                     activation, nullptr, 0, out->data, out->dtype == OSTF_BF16, static_cast<int64_t>(F) * F * O};
  run_gemm(*kernel, layout, ostf::data<const char>(packed), gemm, threads);
  return OSTF_OK;
}
