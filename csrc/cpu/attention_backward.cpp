// The gradient of fused attention on the CPU: checks, the choice of an instruction set, threads.
#include <algorithm>

#include "cpu/arena.h"
#include "cpu/attention.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "tensor.h"

namespace {

using ostf::GradientCall;
using ostf::GradientKernel;

constexpr int kMaxWidth = 512;  // of a head

const GradientKernel* choose([[maybe_unused]] int level, [[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (dtype == OSTF_BF16 && level >= ostf::kAvx512Bf16) return &ostf::gradient_avx512_bf16;
  if (dtype == OSTF_F32 && level >= ostf::kAvx512) return &ostf::gradient_avx512;
  if (dtype == OSTF_F32 && level >= ostf::kAvx2) return &ostf::gradient_avx2;
#endif
  return nullptr;
}

}  // namespace

int ostf_cpu_attention_backward(const ostf_tensor* qkv, const ostf_tensor* template_mask, const ostf_tensor* out,
                                const ostf_tensor* lse, const ostf_tensor* grad_out, const ostf_tensor* grad_score,
                                const ostf_tensor* grad, int threads) {
  if (!ostf::has_rank(qkv, 5) || threads < 1 || ostf::level() < 0) return OSTF_EINVAL;
  const int dtype = qkv->dtype;
  const GradientKernel* kernel = choose(ostf::level(), dtype);
  if (!kernel) return OSTF_EDTYPE;
  GradientCall call = {};
  call.dtype = dtype;
  call.B = static_cast<int>(qkv->shape[0]);
  call.N = static_cast<int>(qkv->shape[1]);
  call.H = static_cast<int>(qkv->shape[3]);
  call.D = static_cast<int>(qkv->shape[4]);
  const int64_t B = call.B, N = call.N, H = call.H, D = call.D;
  if (N < 1 || H < 1 || D < 1 || D > kMaxWidth || (dtype == OSTF_BF16 && D % 2 > 0)) return OSTF_EINVAL;
  if (!ostf::is(qkv, dtype, {B, N, 3, H, D}) || !ostf::is(out, dtype, {B, N, H * D}) ||
      !ostf::is(lse, OSTF_F32, {B, H, N}) || !ostf::is(grad_out, dtype, {B, N, H * D}) ||
      !ostf::is(grad, dtype, {B, N, 3, H, D})) {
    return OSTF_EINVAL;
  }
  if (grad_score) {
    if (!template_mask || template_mask->ndim < 1 || template_mask->ndim > 2) return OSTF_EINVAL;
    const bool mask_of_each = template_mask->ndim == 2;
    const int64_t T = template_mask->shape[mask_of_each];
    if (T < 1 || T > N || !ostf::is(grad_score, OSTF_F32, {B, N - T}) ||
        !(mask_of_each ? ostf::is(template_mask, OSTF_BOOL, {B, T})
                       : ostf::is(template_mask, OSTF_BOOL, {T}))) {
      return OSTF_EINVAL;
    }
    call.T = static_cast<int>(T);
    call.mask_batch = mask_of_each ? call.B : 1;
    call.mask = ostf::data<const uint8_t>(template_mask);
  }
  if (B == 0) return OSTF_OK;
  call.qkv = ostf::data<const void>(qkv);
  call.out = ostf::data<const void>(out);
  call.lse = ostf::data<const float>(lse);
  call.grad_out = ostf::data<const void>(grad_out);
  call.grad_score = call.T < call.N ? ostf::data<const float>(grad_score) : nullptr;
  call.grad = ostf::data<void>(grad);

  const int heads = call.B * call.H, workers = std::min(threads, heads);
  const size_t each = kernel->scratch_bytes(call.N, call.D);
  static thread_local ostf::Arena arena;
  char* memory = static_cast<char*>(arena.reserve(each * workers));
  if (!memory) return OSTF_ENOMEM;
  ostf::parallel_for(heads, workers, [&](int worker, int64_t first, int64_t last) {
    for (auto head = static_cast<int>(first); head < last; ++head) {
      kernel->run(call, head / call.H, head % call.H, memory + each * worker);
    }
  });
  return OSTF_OK;
}
