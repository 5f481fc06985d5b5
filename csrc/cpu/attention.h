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
};

struct GradientCall {
  int dtype;
  const void *qkv, *out, *grad_out;
  const float *lse, *grad_score;  // grad_score may be null
  const uint8_t* mask;
  int mask_batch;
  void* grad;
  int B, N, H, D, T;
};

// The same for the gradient, head by head.
struct GradientKernel {
  size_t (*scratch_bytes)(int N, int D);
  void (*run)(const GradientCall& call, int b, int h, void* scratch);
};

extern const AttentionKernel attention_portable;
#if defined(OSTF_X86)
extern const AttentionKernel attention_avx2;
extern const AttentionKernel attention_avx512;
extern const AttentionKernel attention_avx512_bf16;  // bf16 tensors only
extern const GradientKernel gradient_avx2;           // float32 tensors only
extern const GradientKernel gradient_avx512;         // likewise
extern const GradientKernel gradient_avx512_bf16;    // bf16 tensors only
#endif

}  // namespace ostf
