// Products of two float32 matrices that both change from call to call, as in training, by the GEMM of the linear layers.
// The right one is packed as weights are, whole; rows of the left one, where they do not lie in memory as rows, are packed
// block by block, by the thread that then multiplies them, so that they come from its cache. So is what GELU makes of a
// matrix, which is never in memory whole.
#include "cpu/matmul.h"

#include <atomic>

#include "cpu/arena.h"
#include "cpu/parallel.h"

namespace {

using ostf::PackedLayout;

constexpr ptrdiff_t kBlockFloats = 80 * 1024;  // of packed rows: with a panel of the right matrix they fit 1 MiB of L2
constexpr int kMostSummed = 2048;  // at a time where rows are packed: of more a block would have too few of them
constexpr int kBlocksAThread = 4;  // at least, where rows are many: so that threads end at about the same time

bool valid(const ostf_tensor* t) {
  if (!ostf::has_rank(t, 2) || t->dtype != OSTF_F32 || !ostf::has_elements(*t)) return false;
  const auto dense = [t](int i) { return t->stride[i] == 1 || t->shape[i] == 1; };
  return t->stride[0] >= 0 && t->stride[1] >= 0 && (dense(0) || dense(1));
}

// out = a b + bias, or out += a b without a bias, over `count` of the summed dimension from `first` on; OSTF_ENOMEM, or
// OSTF_OK.
int multiply(const ostf::LinearKernel& kernel, const ostf_tensor* a, const ostf_tensor* b, const float* bias,
             const ostf_tensor* out, const ostf::MatmulGelu& gelu, int first, int count, int threads) {
  const auto R = static_cast<int>(a->shape[0]), O = static_cast<int>(b->shape[1]);
  const PackedLayout layout(kernel, O, count, 1, 1);
  static thread_local ostf::Arena right;
  auto* packed = static_cast<char*>(right.reserve(layout.total));
  if (!packed) return OSTF_ENOMEM;
  auto* shift = reinterpret_cast<float*>(packed + layout.bias);
  std::fill_n(shift, layout.columns, 0.0f);
  if (bias && first == 0) std::copy_n(bias, O, shift);
  const ostf::MatrixStrides by(*b, 0);
  const float* columns = ostf::data<const float>(b) + first * by.summed;
  ostf::parallel_for(layout.panels, threads, [&](int64_t begin, int64_t end) {
    for (int p = static_cast<int>(begin); p < end; ++p) {
      const int column = layout.first_vector(p) * layout.width, next = layout.first_vector(p + 1) * layout.width;
      auto* panel = reinterpret_cast<float*>(packed + layout.panel(p));
      ostf::pack_panel(columns + column * by.next, by, count, std::min(next, O) - column, panel, next - column);
      if (gelu.of_b) gelu.kernel->single(panel, nullptr, panel, static_cast<int64_t>(count) * (next - column));
    }
  });

  const ostf::MatrixStrides from(*a, 1);
  const float* vectors = ostf::data<const float>(a) + first * from.summed;
  const bool direct = from.summed == 1 && !gelu.of_a;
  const ptrdiff_t pitch = direct ? from.next : ostf::row_pitch(kernel, count) / static_cast<ptrdiff_t>(sizeof(float));
  const int tiles = ostf::ceil_div(R, kernel.rows);
  const ptrdiff_t floats = gelu.slopes ? pitch + O : pitch;  // of a row, that the cache holds
  const int64_t fit = std::min<int64_t>(tiles, floats * R / kBlockFloats);
  const int wanted = std::max(threads > 1 ? kBlocksAThread * threads : 1, static_cast<int>(fit));
  const int blocks = std::min(tiles, ostf::ceil_div(wanted, threads) * threads);  // as many for each thread
  std::atomic<bool> enough{true};  // memory
  ostf::parallel_for(blocks, threads, [&](int64_t begin, int64_t end) {
    static thread_local ostf::Arena left;
    for (int block = static_cast<int>(begin); block < end; ++block) {
      const auto start = [&](int i) { return std::min(R, ostf::part_begin(i, blocks, tiles) * kernel.rows); };
      const int row = start(block), some = start(block + 1) - row;
      const float* rows = vectors + row * from.next;
      if (!direct) {
        auto* to = static_cast<float*>(left.reserve(sizeof(float) * pitch * some));
        if (!to) {
          enough = false;
          return;
        }
        if (gelu.of_a) {
          for (int r = 0; r < some; ++r) gelu.kernel->single(rows + r * from.next, nullptr, to + r * pitch, count);
        } else {
          ostf::pack_rows(rows, from.summed, count, some, to, pitch);
        }
        rows = to;
      }
      float* result = ostf::data<float>(out) + static_cast<ptrdiff_t>(row) * O;
      const ostf::Gemm gemm = {1, some, 1, reinterpret_cast<const char*>(rows), 0, 0,
                               pitch * static_cast<ptrdiff_t>(sizeof(float)), 0, nullptr, OSTF_NONE,
                               first > 0 ? result : nullptr, 0, result, false, 0};
      run_gemm(kernel, layout, packed, gemm, 1);
      if (gelu.slopes) {
        const float* slopes = gelu.slopes + static_cast<ptrdiff_t>(row) * O;
        gelu.kernel->single(slopes, result, result, static_cast<int64_t>(some) * O);
      }
    }
  });
  return enough ? OSTF_OK : OSTF_ENOMEM;
}

// Rows of a must be dense where GELU is taken of them, and where the product is multiplied by its derivative, since they
// are then summed at once.
int run(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* bias, const ostf_tensor* out, int threads,
        bool gelu_of_a = false, bool gelu_of_b = false, const ostf_tensor* slopes = nullptr) {
  if (!valid(a) || !valid(b) || threads < 1 || ostf::level() < 0) return OSTF_EINVAL;
  const int64_t R = a->shape[0], O = b->shape[1];
  const auto I = static_cast<int>(a->shape[1]);
  if (b->shape[0] != I || !ostf::is(out, OSTF_F32, {R, O}) || (bias && !ostf::is(bias, OSTF_F32, {O}))) {
    return OSTF_EINVAL;
  }
  const bool whole = ostf::MatrixStrides(*a, 1).summed == 1;
  if ((gelu_of_a || slopes) && !whole) return OSTF_EINVAL;
  if (slopes && !ostf::is(slopes, OSTF_F32, {R, O})) return OSTF_EINVAL;
  const ostf::LinearKernel* kernel = ostf::linear_kernel(OSTF_F32);
  if (!kernel) return OSTF_EDTYPE;
  const ostf::MatmulGelu gelu = {ostf::gelu_kernel(), gelu_of_a, gelu_of_b, ostf::data<const float>(slopes)};
  const auto* shift = ostf::data<const float>(bias);
  if (ostf::strassen_pays(*kernel, R, I, O)) {
    return ostf::multiply_quarters(*kernel, *a, *b, shift, *out, gelu, threads);
  }
  const int parts = whole ? 1 : ostf::ceil_div(I, kMostSummed);
  for (int part = 0; part < parts; ++part) {
    const int first = ostf::part_begin(part, parts, I), end = ostf::part_begin(part + 1, parts, I);
    const int status = multiply(*kernel, a, b, shift, out, gelu, first, end - first, threads);
    if (status != OSTF_OK) return status;
  }
  return OSTF_OK;
}

}  // namespace

int ostf_cpu_matmul(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* bias, const ostf_tensor* out,
                    int threads) {
  return run(a, b, bias, out, threads);
}

int ostf_cpu_gelu_matmul(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* bias, const ostf_tensor* out,
                         int threads) {
  return run(a, b, bias, out, threads, true);
}

int ostf_cpu_matmul_gelu(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* out, int threads) {
  return run(a, b, nullptr, out, threads, false, true);
}

int ostf_cpu_matmul_gelu_backward(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* x,
                                  const ostf_tensor* out, int threads) {
  if (!x) return OSTF_EINVAL;
  return run(a, b, nullptr, out, threads, false, false, x);
}
