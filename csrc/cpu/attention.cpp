// Fused attention on the CPU: checks, the choice of an instruction set, threads, and the sum of the score.
#include "cpu/attention.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <new>

#include "cpu/arena.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "tensor.h"

namespace {

using ostf::AttentionCall;
using ostf::AttentionKernel;

const AttentionKernel& choose([[maybe_unused]] int level, [[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (level == ostf::kAvx512Bf16 && dtype == OSTF_BF16) return ostf::attention_avx512_bf16;
  if (level >= ostf::kAvx512) return ostf::attention_avx512;
  if (level >= ostf::kAvx2) return ostf::attention_avx2;
#endif
  return ostf::attention_portable;
}

// score (B,S) = mean over heads and selected rows, from the partial scores of the blocks that hold selected rows, added
// in a fixed order.
void sum_partial_scores(const AttentionCall& call, int block, float* score) {
  const int S = call.N - call.T;
  const int blocks = (call.T + block - 1) / block;
  for (int b = 0; b < call.B; ++b, score += S) {
    const uint8_t* mask = call.mask + (call.mask_batch > 1 ? static_cast<ptrdiff_t>(b) * call.T : 0);
    std::memset(score, 0, sizeof(float) * S);
    int rows = 0;
    for (int i = 0; i < call.T; ++i) rows += mask[i] != 0;
    if (rows == 0) continue;
    for (int h = 0; h < call.H; ++h) {
      for (int i = 0; i < blocks; ++i) {
        const int end = call.T < (i + 1) * block ? call.T : (i + 1) * block;
        bool any = false;
        for (int row = i * block; row < end; ++row) any |= mask[row] != 0;
        if (!any) continue;
        const float* partial = call.partial_scores + ((static_cast<ptrdiff_t>(b) * call.H + h) * blocks + i) * S;
        for (int j = 0; j < S; ++j) score[j] += partial[j];
      }
    }
    const float weight = 1.0f / (static_cast<float>(rows) * static_cast<float>(call.H));
    for (int j = 0; j < S; ++j) score[j] *= weight;
  }
}

}  // namespace

int ostf_cpu_attention(const ostf_tensor* q, const ostf_tensor* kv, const ostf_tensor* template_mask,
                       const ostf_tensor* out, const ostf_tensor* score, const ostf_tensor* lse, int threads) {
  if (!ostf::has_rank(q, 4) || !ostf::has_rank(kv, 5) || threads < 1 || ostf::level() < 0) return OSTF_EINVAL;
  const int dtype = q->dtype;
  if (!ostf::is_float(dtype)) return OSTF_EDTYPE;
  const int B = static_cast<int>(q->shape[0]), M = static_cast<int>(q->shape[1]), N = static_cast<int>(kv->shape[1]);
  const int H = static_cast<int>(q->shape[2]), D = static_cast<int>(q->shape[3]);
  const int64_t C = int64_t{H} * D;
  if (N < 1 || H < 1 || D < 1 || D > 512) return OSTF_EINVAL;
  if (!ostf::is(q, dtype, {B, M, H, D}, 2) || !ostf::is(kv, dtype, {B, N, 2, H, D}, 2)) return OSTF_EINVAL;
  if (!ostf::is(out, dtype, {B, M, C}, 1) || (lse && !ostf::is(lse, OSTF_F32, {B, H, M}))) return OSTF_EINVAL;
  int T = 0;
  bool mask_of_each = false;
  if (template_mask) {
    mask_of_each = template_mask->ndim == 2;
    if (!ostf::has_rank(template_mask, mask_of_each ? 2 : 1)) return OSTF_EINVAL;
    T = static_cast<int>(template_mask->shape[mask_of_each]);
    if (T > M || T > N || !(mask_of_each ? ostf::is(template_mask, OSTF_BOOL, {B, T})
                                         : ostf::is(template_mask, OSTF_BOOL, {T}))) {
      return OSTF_EINVAL;
    }
    if (!ostf::is(score, OSTF_F32, {B, N - T})) return OSTF_EINVAL;
  } else if (score) {
    return OSTF_EINVAL;
  }
  const auto* mask = T < N ? ostf::data<const uint8_t>(template_mask) : nullptr;  // else there is no token to score
  if (B == 0 || M == 0) return OSTF_OK;

  const AttentionKernel& kernel = choose(ostf::level(), dtype);
  const int blocks = (M + kernel.block - 1) / kernel.block;
  const int64_t heads = int64_t{B} * H;
  if (heads * blocks > INT_MAX) return OSTF_EINVAL;
  const int workers = static_cast<int>(std::min<int64_t>(threads, heads * blocks));

  const size_t align = 64;
  // A worker's part begins with the number of the head whose keys and values it has packed.
  const size_t each = align + (kernel.scratch_bytes(N, D, mask != nullptr) + align - 1) / align * align;
  const size_t template_blocks = static_cast<size_t>((T + kernel.block - 1) / kernel.block);
  const size_t shares = mask ? static_cast<size_t>(heads) * template_blocks * (N - T) * sizeof(float) : 0;
  static thread_local ostf::Arena arena;
  char* memory = static_cast<char*>(arena.reserve(each * workers + shares));
  if (!memory) return OSTF_ENOMEM;
  for (int worker = 0; worker < workers; ++worker) new (memory + each * worker) int{-1};

  auto* block_shares = reinterpret_cast<float*>(memory + each * workers);
  const ptrdiff_t element = dtype == OSTF_F32 ? 4 : 2;
  AttentionCall call = {};
  call.dtype = dtype;
  call.q = ostf::data<const char>(q);
  call.q_item = q->stride[0] * element;
  call.q_row = q->stride[1] * element;
  call.kv = ostf::data<const char>(kv);
  call.kv_item = kv->stride[0] * element;
  call.kv_row = kv->stride[1] * element;
  call.mask = mask;
  call.mask_batch = mask_of_each ? B : 1;
  call.out = ostf::data<char>(out);
  call.out_item = out->stride[0] * element;
  call.partial_scores = block_shares;
  call.lse = ostf::data<float>(lse);
  call.B = B;
  call.M = M;
  call.N = N;
  call.H = H;
  call.D = D;
  call.T = T;
  // An item is a block of queries. They are numbered head by head, so that few heads are packed by more than one worker.
  ostf::parallel_for(heads * blocks, workers, [&](int worker, int64_t first, int64_t last) {
    char* scratch = memory + each * worker;
    int& packed = *reinterpret_cast<int*>(scratch);
    for (int64_t item = first; item < last; ++item) {
      const auto head = static_cast<int>(item / blocks), block = static_cast<int>(item % blocks);
      kernel.run(call, head / H, head % H, block, head == packed, scratch + align);
      packed = head;
    }
  });
  if (mask) sum_partial_scores(call, kernel.block, ostf::data<float>(score));
  return OSTF_OK;
}
