// Linear layers and 3 x 3 convolutions on the CPU: the entry points of the C ABI, and the prologue, which normalizes,
// encodes and quantizes the activations.
#include "cpu/linear.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/parallel.h"
#include "ostrack_fast.h"

namespace {

using ostf::Gemm;
using ostf::LinearKernel;
using ostf::PackedLayout;

// The kernel of a compute dtype, or null where this machine (or OSTRACK_FAST_CPU_CAPABILITY) has none.
const LinearKernel* choose([[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (ostf::level() < ostf::kAvx2) return nullptr;
  const bool avx512 = ostf::level() >= ostf::kAvx512;
  if (dtype == OSTF_F32) return avx512 ? &ostf::linear_avx512 : &ostf::linear_avx2;
  if (dtype == OSTF_BF16) return ostf::level() >= ostf::kAvx512Bf16 ? &ostf::linear_avx512_bf16 : &ostf::linear_avx2_bf16;
  if (dtype == OSTF_I8) {
    return avx512 && ostf::cpu_features().avx512_vnni ? &ostf::linear_avx512_vnni : &ostf::linear_avx2_int8;
  }
#endif
  return nullptr;
}

bool valid(int O, int I, int taps, int groups) {
  return O >= 1 && I >= 1 && groups >= 1 && O % groups == 0 && I % groups == 0 && (taps == 1 || taps == 9);
}

// What the entry points check alike: the sizes, OSTRACK_FAST_CPU_CAPABILITY and whether there is a kernel.
int find_kernel(int dtype, int O, int I, int taps, int groups, const LinearKernel** kernel) {
  if (!valid(O, I, taps, groups) || ostf::level() < 0) return OSTF_EINVAL;
  *kernel = choose(dtype);
  return *kernel ? OSTF_OK : OSTF_EDTYPE;
}

int find_kernel(int dtype, int O, int I, int taps, int groups, int x_dtype, int out_dtype, int activation, int threads,
                const LinearKernel** kernel) {
  const auto float_or_bf16 = [](int each) { return each == OSTF_F32 || each == OSTF_BF16; };
  if (activation < ostf::kNoActivation || activation > ostf::kRelu || threads < 1) return OSTF_EINVAL;
  const int status = find_kernel(dtype, O, I, taps, groups, kernel);
  if (status == OSTF_OK && !(float_or_bf16(x_dtype) && float_or_bf16(out_dtype))) return OSTF_EDTYPE;
  return status;
}

int size_of(int dtype) { return dtype == OSTF_BF16 ? 2 : 4; }

// Encoded rows in the calling thread's scratch memory.
struct PackedRows {
  char* rows;
  float* scale;       // (count, scales)
  ptrdiff_t pitch;    // bytes from one row to the next
  ptrdiff_t scales;   // of one row

  PackedRows(const LinearKernel& kernel, const PackedLayout& layout, ptrdiff_t count) {
    // An odd number of cache lines, so that the rows of a tile do not fall into the same sets of the cache.
    pitch = (static_cast<ptrdiff_t>(layout.conv_groups) * layout.groups * kernel.row_group_bytes + 63) / 64 * 64 | 64;
    scales = static_cast<ptrdiff_t>(layout.conv_groups) * layout.blocks;
    static thread_local ostf::Arena arena;
    rows = static_cast<char*>(arena.reserve((pitch + sizeof(float) * scales) * count));
    scale = reinterpret_cast<float*>(rows + pitch * count);
  }
};

}  // namespace

int ostf_cpu_linear_packed_bytes(int dtype, int O, int I, int taps, int groups, int64_t* bytes) {
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, taps, groups, &kernel)) return status;
  *bytes = static_cast<int64_t>(PackedLayout(*kernel, O, I, taps, groups).total);
  return OSTF_OK;
}

int ostf_cpu_linear_pack(int dtype, const float* weight, const float* bias, void* packed, int O, int I, int taps,
                         int groups, int threads) {
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, taps, groups, &kernel)) return status;
  if (threads < 1) return OSTF_EINVAL;
  const PackedLayout layout(*kernel, O, I, taps, groups);
  const float* end = weight + static_cast<ptrdiff_t>(O) * taps * layout.inputs;
  const auto finite = [](float value) { return std::isfinite(value); };
  if (dtype == OSTF_I8 && !std::all_of(weight, end, finite)) return OSTF_EINVAL;  // int8 cannot represent them
  pack_weights(*kernel, layout, weight, bias, static_cast<char*>(packed), threads);
  return OSTF_OK;
}

int ostf_cpu_linear(int dtype, const void* packed, int x_dtype, const void* x, int64_t x_item, const float* residual,
                    int64_t residual_item, int out_dtype, void* out, int64_t out_item, int B, int R, int O, int I,
                    double norm_eps, int activation, int threads) {
  if (B < 0 || R < 0 || static_cast<int64_t>(B) * R > INT_MAX) return OSTF_EINVAL;
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, 1, 1, x_dtype, out_dtype, activation, threads, &kernel)) return status;
  if (B == 0 || R == 0) return OSTF_OK;

  const PackedLayout layout(*kernel, O, I, 1, 1);
  const int element = size_of(x_dtype);
  const auto* from = static_cast<const char*>(x);
  Gemm gemm = {B, R, 1, from, x_item * element, 0, static_cast<ptrdiff_t>(I) * element, 0, nullptr,
               static_cast<ostf::Activation>(activation), residual, residual_item, out, out_dtype == OSTF_BF16,
               out_item};
  if (norm_eps >= 0 || x_dtype != kernel->row_dtype || I % inputs_per_group(kernel->encoding) != 0) {
    const ptrdiff_t rows = static_cast<ptrdiff_t>(B) * R;
    const PackedRows to(*kernel, layout, rows);
    if (!to.rows) return OSTF_ENOMEM;
    ostf::parallel_for(rows, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        kernel->pack_row(x_dtype, from + (row / R * x_item + row % R * I) * element, I, static_cast<float>(norm_eps),
                         to.rows + row * to.pitch, to.scale + row * to.scales);
      }
    });
    gemm.rows = to.rows;
    gemm.item = R * to.pitch;
    gemm.pitch = to.pitch;
    gemm.scale = to.scale;
  }
  // Items that follow each other everywhere are one long line, which is cut into fuller tiles.
  const auto dense = [&](ptrdiff_t item, ptrdiff_t row) { return item == R * row; };
  if (dense(gemm.item, gemm.pitch) && dense(out_item, O) && (!residual || dense(residual_item, O))) {
    gemm.lines = 1;
    gemm.length = B * R;
  }
  run_gemm(*kernel, layout, static_cast<const char*>(packed), gemm, threads);
  return OSTF_OK;
}

int ostf_cpu_conv3x3(int dtype, const void* packed, int x_dtype, const void* x, int out_dtype, void* out, int B, int F,
                     int O, int I, int groups, int activation, int threads) {
  if (B < 0 || F < 1 || F > 4096 || B > INT_MAX / F) return OSTF_EINVAL;
  const LinearKernel* kernel;
  if (const int status = find_kernel(dtype, O, I, 9, groups, x_dtype, out_dtype, activation, threads, &kernel)) {
    return status;
  }
  if (B == 0) return OSTF_OK;

  const PackedLayout layout(*kernel, O, I, 9, groups);
  const int side = F + 2;  // with the border of zeros
  const PackedRows to(*kernel, layout, static_cast<ptrdiff_t>(B) * side * side);
  if (!to.rows) return OSTF_ENOMEM;
  const int element = size_of(x_dtype);
  ostf::parallel_for(static_cast<int64_t>(B) * side, threads, [&](int64_t first, int64_t last) {
    for (int64_t cell = first * side; cell < last * side; ++cell) {
      const int64_t row = cell / side % side - 1, column = cell % side - 1;
      char* encoded = to.rows + cell * to.pitch;
      if (row < 0 || row >= F || column < 0 || column >= F) {
        std::memset(encoded, kernel->zero, to.pitch);
        std::fill_n(to.scale + cell * to.scales, to.scales, 0.0f);
        continue;
      }
      const char* from = static_cast<const char*>(x) + ((cell / side / side * F + row) * F + column) * I * element;
      for (int g = 0; g < groups; ++g) {
        kernel->pack_row(x_dtype, from + static_cast<ptrdiff_t>(g) * layout.inputs * element, layout.inputs, -1.0f,
                         encoded + static_cast<ptrdiff_t>(g) * layout.groups * kernel->row_group_bytes,
                         to.scale + cell * to.scales + g * layout.blocks);
      }
    }
  });
  const Gemm gemm = {B * F, F, F, to.rows, side * side * to.pitch, side * to.pitch, to.pitch, side, to.scale,
                     static_cast<ostf::Activation>(activation), nullptr, 0, out, out_dtype == OSTF_BF16,
                     static_cast<int64_t>(F) * F * O};
  run_gemm(*kernel, layout, static_cast<const char*>(packed), gemm, threads);
  return OSTF_OK;
}
