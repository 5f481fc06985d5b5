// Fused attention on the CPU: checks, the choice of an instruction set, threads, and the sum of the score.
#include "cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "ostrack_fast.h"

namespace {

using ostf::AttentionCall;
using ostf::AttentionKernel;

const AttentionKernel& choose([[maybe_unused]] int level, [[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (level == ostf::kAvx512Bf16 && dtype == OSTF_BF16) return ostf::attention_avx512_bf16;
  if (level >= ostf::kAvx512) return ostf::attention_avx512;
  if (level == ostf::kAvx2) return ostf::attention_avx2;
#endif
  return ostf::attention_portable;
}

// score (B,S) = mean over heads and chosen rows of the shares of the blocks that hold chosen rows, in a fixed order.
void sum_shares(const AttentionCall& call, int block, float* score) {
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
        const float* share = call.shares + ((static_cast<ptrdiff_t>(b) * call.H + h) * blocks + i) * S;
        for (int j = 0; j < S; ++j) score[j] += share[j];
      }
    }
    const float weight = 1.0f / (static_cast<float>(rows) * static_cast<float>(call.H));
    for (int j = 0; j < S; ++j) score[j] *= weight;
  }
}

}  // namespace

int ostf_cpu_attention(int dtype, const void* q, int64_t q_item, int64_t q_row, const void* kv, int64_t kv_item,
                       int64_t kv_row, const uint8_t* template_mask, int mask_batch, void* out, int64_t out_item,
                       float* score, float* lse, int B, int M, int N, int H, int D, int T, int threads) {
  if (B < 0 || M < 0 || N < 1 || H < 1 || D < 1 || D > 512 || T < 0 || T > N || threads < 1) return OSTF_EINVAL;
  if (N == T) template_mask = nullptr;  // no search token to score; an empty tensor's pointer may be null
  if (N > T && (template_mask == nullptr) != (score == nullptr)) return OSTF_EINVAL;
  if (template_mask && (T > M || (mask_batch != 1 && mask_batch != B))) return OSTF_EINVAL;
  if (dtype != OSTF_F32 && dtype != OSTF_F16 && dtype != OSTF_BF16) return OSTF_EDTYPE;
  if (ostf::level() < 0) return OSTF_EINVAL;
  if (B == 0 || M == 0) return OSTF_OK;

  const AttentionKernel& kernel = choose(ostf::level(), dtype);
  const int blocks = (M + kernel.block - 1) / kernel.block;
  const int heads = B * H;
  // Each task packs the keys and values of its head anew, so heads are split only where there are too few of them.
  const int parts = std::min(blocks, (4 * threads + heads - 1) / heads);
  const int tasks = heads * parts;
  const int workers = std::min(threads, tasks);

  const size_t align = 64;
  const size_t each = (kernel.scratch_bytes(N, D, template_mask != nullptr) + align - 1) / align * align;
  const size_t template_blocks = static_cast<size_t>((T + kernel.block - 1) / kernel.block);
  const size_t shares = template_mask ? static_cast<size_t>(heads) * template_blocks * (N - T) * sizeof(float) : 0;
  static thread_local ostf::Arena arena;
  char* memory = static_cast<char*>(arena.reserve(each * workers + shares));
  if (!memory) return OSTF_ENOMEM;

  auto* block_shares = reinterpret_cast<float*>(memory + each * workers);
  const ptrdiff_t element = dtype == OSTF_F32 ? 4 : 2;
  AttentionCall call = {};
  call.dtype = dtype;
  call.q = static_cast<const char*>(q);
  call.q_item = q_item * element;
  call.q_row = q_row * element;
  call.kv = static_cast<const char*>(kv);
  call.kv_item = kv_item * element;
  call.kv_row = kv_row * element;
  call.mask = template_mask;
  call.mask_batch = mask_batch;
  call.out = static_cast<char*>(out);
  call.out_item = out_item * element;
  call.shares = block_shares;
  call.lse = lse;
  call.B = B;
  call.M = M;
  call.N = N;
  call.H = H;
  call.D = D;
  call.T = T;
  std::atomic<int> next{0};
  ostf::parallel_for(workers, workers, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      for (int task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        const int head = task / parts, part = task % parts;
        kernel.run(call, head / H, head % H, static_cast<int>(static_cast<int64_t>(part) * blocks / parts),
                   static_cast<int>(static_cast<int64_t>(part + 1) * blocks / parts), memory + each * worker);
      }
    }
  });
  if (template_mask) sum_shares(call, kernel.block, score);
  return OSTF_OK;
}
