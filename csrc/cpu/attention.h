// What attention.cpp and its per-instruction-set kernels share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/capability.h"

namespace ostf {

struct AttentionCall {
  int dtype;
  const char* q;
  ptrdiff_t q_item, q_row;  // bytes
  const char* kv;
  ptrdiff_t kv_item, kv_row;
  const uint8_t* mask;  // (mask_batch,T), or null
  int mask_batch;
  char* out;
  ptrdiff_t out_item;
  float* partial_scores;  // (B,H,template_blocks,S): what each block of queries with selected rows adds to the score
  float* lse;     // or null
  int B, M, N, H, D, T;  // M queries, N keys
};

// One instruction set's code for one kind of arithmetic. Queries are worked on in blocks of `block`. The results do not
// depend on who works on which.
struct AttentionKernel {
  int block;
  size_t (*scratch_bytes)(int N, int D, bool with_score);
  // Keys and values of head h are packed into the scratch memory unless they are there: `packed`.
  void (*run)(const AttentionCall& call, int b, int h, int block, bool packed, void* scratch);

  // For the gradient, on (keys, queries) row by row, where `queries` fill whole vectors. Logits, without their factor
  // 1 / sqrt D, become e^((logit - middle of the query) / sqrt D).
  void (*probabilities)(float* logits, int keys, int queries, int D, const float* middle);
  // grad = p (grad - delta of the query) scale: from the gradients of probabilities p to those of the logits.
  void (*logit_gradients)(const float* p, float* grad, int keys, int queries, const float* delta, float scale);
};

extern const AttentionKernel attention_portable;
#if defined(OSTF_X86)
extern const AttentionKernel attention_avx2;
extern const AttentionKernel attention_avx512;
extern const AttentionKernel attention_avx512_bf16;  // bf16 tensors only
#endif

}  // namespace ostf
