// GELU and its gradient on the CPU: checks, the choice of an instruction set, threads.
#include "cpu/gelu.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "tensor.h"

namespace {

constexpr int64_t kPart = 4096;  // elements that a thread takes at a time

int run(const ostf_tensor* x, const ostf_tensor* grad, const ostf_tensor* out, int threads) {
  if (!ostf::has_rank(x, 1) || threads < 1 || ostf::level() < 0) return OSTF_EINVAL;
  const int64_t count = x->shape[0];
  const int dtype = x->dtype;
  if (!ostf::is(x, dtype, {count}) || !ostf::is(out, dtype, {count})) return OSTF_EINVAL;
  if (grad && !ostf::is(grad, dtype, {count})) return OSTF_EINVAL;
  const ostf::GeluKernel* kernel = ostf::gelu_kernel();
  if (!kernel || (dtype != OSTF_F32 && dtype != OSTF_BF16)) return OSTF_EDTYPE;
  const auto function = dtype == OSTF_F32 ? kernel->single : kernel->half;
  const int64_t bytes = ostf::element_size(dtype);
  const auto* from = ostf::data<const char>(x);
  const auto* with = ostf::data<const char>(grad);
  auto* to = ostf::data<char>(out);
  ostf::parallel_for((count + kPart - 1) / kPart, threads, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kPart, end = std::min(last * kPart, count), at = begin * bytes;
    function(from + at, with ? with + at : nullptr, to + at, end - begin);
  });
  return OSTF_OK;
}

}  // namespace

const ostf::GeluKernel* ostf::gelu_kernel() {
#if defined(OSTF_X86)
  if (ostf::level() >= ostf::kAvx512) return &ostf::gelu_avx512;
  if (ostf::level() >= ostf::kAvx2) return &ostf::gelu_avx2;
#endif
  return nullptr;
}

int ostf_cpu_gelu(const ostf_tensor* x, const ostf_tensor* out, int threads) { return run(x, nullptr, out, threads); }

int ostf_cpu_gelu_backward(const ostf_tensor* x, const ostf_tensor* grad, const ostf_tensor* out, int threads) {
  if (!grad) return OSTF_EINVAL;
  return run(x, grad, out, threads);
}
