// The C ABI of the compiled kernels: plain pointers and sizes, no torch, no Python.
//
// Letters: B batch, H heads, D head dimension, C = H * D channels, N = T + S tokens (T template tokens first,
// then S search tokens), K kept, F side of the search token grid, Z side of a crop in pixels.
// Every array is dense and row-major. cpu_* functions run on at most `threads` threads and return when done;
// cuda_* functions enqueue on `stream` (a cudaStream_t) and return at once. A pointer marked "or null" is optional.
// Return value: 0 on success, a positive cudaError_t, or a negative ostf_status.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define OSTF_API
#else
#define OSTF_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { OSTF_F32 = 0, OSTF_F16 = 1, OSTF_BF16 = 2, OSTF_I8 = 3 } ostf_dtype;  // OSTF_I8: linear, conv3x3 only

typedef enum {
  OSTF_OK = 0,
  OSTF_EINVAL = -1,       // a size is out of the supported range
  OSTF_EDTYPE = -2,       // this kernel has no code for the dtype on this machine
  OSTF_ENOMEM = -3,       // host memory for scratch space could not be had
} ostf_status;

// attention: qkv (B,N,3,H,D) -> out (B,N,H*D), softmax(Q K' / sqrt(D)) V, all in `dtype`.
// template_mask (mask_batch,T) bytes, mask_batch 1 or B, or null: the query rows whose probabilities score the search
// tokens. score (B,S) float32: mean over heads and chosen rows (0 where no row is chosen), or null together with the mask.
// lse (B,H,N) float32: natural log of each softmax denominator (with the running maximum), or null.
// CPU: queries q (B,M,H,D) and keys with values kv (B,N,2,H,D) apart; items and rows begin so many elements after each
// other, heads and channels are dense, so that both may lie in one qkv. Then out (B,M,H*D) with items out_item elements
// apart, lse (B,H,M), and the T template queries come first.
OSTF_API int ostf_cpu_attention(int dtype, const void* q, int64_t q_item, int64_t q_row, const void* kv,
                                int64_t kv_item, int64_t kv_row, const uint8_t* template_mask, int mask_batch,
                                void* out, int64_t out_item, float* score, float* lse, int B, int M, int N, int H,
                                int D, int T, int threads);
// CUDA: D is 32, 64, 96 or 128, qkv and out start at multiples of 16 bytes (else OSTF_EINVAL), and OSTF_BF16 needs code
// for compute capability 8.0 or later (else OSTF_EDTYPE). The heads' shares of the score
// meet in `scratch`, B*H*ceil(T/32)*(N-T) float32 of any content; the last thread block of a batch item to arrive, by its
// count in `tickets` (B) uint32, adds them in a fixed order. tickets are zero before the first launch and every launch
// leaves them zero, so a CUDA graph replays. Launches that may overlap share neither. Both may be null when score is.
OSTF_API int ostf_cuda_attention(int dtype, const void* qkv, const uint8_t* template_mask, int mask_batch, void* out,
                                 float* score, float* lse, float* scratch, uint32_t* tickets, int B, int N, int H,
                                 int D, int T, void* stream);

// eliminate: tokens (B,T+S,C), score (B,S), ids (B,S) -> out (B,T+K,C), out_ids (B,K), removed (B,S-K).
// Stable, by score descending; -0 equals +0; NaN ranks last. `elem_size` is the size of one channel in bytes (2, 4 or 8).
OSTF_API int ostf_cpu_eliminate(int elem_size, const void* tokens, const float* score, const int64_t* ids, void* out,
                                int64_t* out_ids, int64_t* removed, int B, int T, int S, int K, int C, int threads);
OSTF_API int ostf_cuda_eliminate(int elem_size, const void* tokens, const float* score, const int64_t* ids, void* out,
                                 int64_t* out_ids, int64_t* removed, int B, int T, int S, int K, int C, void* stream);

// restore: tokens (B,K,C), ids (B,K) -> map (B,C,F,F), zeros at the places no id names.
OSTF_API int ostf_cpu_restore(int elem_size, const void* tokens, const int64_t* ids, void* map, int B, int K, int C,
                              int F, int threads);
// With the final LayerNorm, channels last: tokens (B,K,C) in `dtype`, weight and bias (C) -> map (B,F,F,C) in
// `map_dtype`, statistics in float32.
OSTF_API int ostf_cpu_restore_norm(int dtype, const void* tokens, const int64_t* ids, const float* weight,
                                   const float* bias, double eps, int map_dtype, void* map, int B, int K, int C, int F,
                                   int threads);
OSTF_API int ostf_cuda_restore(int elem_size, const void* tokens, const int64_t* ids, void* map, int B, int K, int C,
                               int F, void* stream);

// crop: frame (height,width,3) uint8, box (B,4) float64 xywh pixels -> patch (B,3,Z,Z) in `dtype`, scale (B,) float64.
// mean and inv_std have 3 floats, on the host for both: patch = (pixel / 255 - mean) * inv_std.
OSTF_API int ostf_cpu_crop(int dtype, const uint8_t* frame, int height, int width, const double* box, double factor,
                           const float* mean, const float* inv_std, void* patch, double* scale, int B, int Z,
                           int threads);
OSTF_API int ostf_cuda_crop(int dtype, const uint8_t* frame, int height, int width, const double* box, double factor,
                            const float* mean, const float* inv_std, void* patch, double* scale, int B, int Z,
                            void* stream);

// decode: score (B,F,F), size (B,2,F,F), offset (B,2,F,F) in `dtype`, window (F,F) float32 or null
// -> box (B,4) float32 cxcywh in units of the crop, best (B,) float32 the score (without window) at the chosen cell.
// The first of equal cells is chosen; NaN is below everything, and of nothing but NaN the first.
OSTF_API int ostf_cpu_decode(int dtype, const void* score, const void* size, const void* offset, const float* window,
                             float* box, float* best, int B, int F, int threads);
OSTF_API int ostf_cuda_decode(int dtype, const void* score, const void* size, const void* offset, const float* window,
                              float* box, float* best, int B, int F, void* stream);

// advance: found (B,4) float32 cxcywh in units of the crop around box (B,4) float64 xywh pixels -> moved (B,4) float64,
// that box in pixels of the frame, of which at least `margin` pixels stay inside. moved may be box. NaN stays NaN.
OSTF_API int ostf_cpu_advance(const float* found, const double* box, int height, int width, double factor,
                              double margin, double* moved, int B, int threads);
OSTF_API int ostf_cuda_advance(const float* found, const double* box, int height, int width, double factor,
                               double margin, double* moved, int B, void* stream);

// linear, conv3x3: products with weights that are packed once. dtype is the arithmetic: OSTF_F32, OSTF_BF16, or OSTF_I8
// (weights quantized symmetrically beforehand, activations as they come, each 64 inputs of a row and a tap by
// themselves; sums of products of 64 exact); sums are float32. OSTF_EDTYPE where this processor has no kernel for it.
// packed: opaque, of the size that packed_bytes writes to *bytes. weight (O,taps,I/groups) and bias (O) float32; taps
// 1 for linear, 9 row by row for conv3x3. OSTF_I8 takes only finite weights (else OSTF_EINVAL).
OSTF_API int ostf_cpu_linear_packed_bytes(int dtype, int O, int I, int taps, int groups, int64_t* bytes);
OSTF_API int ostf_cpu_linear_pack(int dtype, const float* weight, const float* bias, void* packed, int O, int I,
                                  int taps, int groups, int threads);
// linear: out (B,R,O) = residual + activation(norm(x) W' + bias); x (B,R,I); residual float32 (B,R,O) or null, it may
// be out. x and out are OSTF_F32 or OSTF_BF16. Rows are dense; items of the batch lie x_item, residual_item and out_item
// elements apart. norm is LayerNorm without affine if norm_eps >= 0, else nothing. activation: 0 none, 1 gelu (with the
// exact erf), 2 relu.
OSTF_API int ostf_cpu_linear(int dtype, const void* packed, int x_dtype, const void* x, int64_t x_item,
                             const float* residual, int64_t residual_item, int out_dtype, void* out, int64_t out_item,
                             int B, int R, int O, int I, double norm_eps, int activation, int threads);
// conv3x3: out (B,F,F,O) = activation(3 x 3 convolution of x (B,F,F,I) with a border of zeros). Group g of the outputs
// sees group g of the inputs.
OSTF_API int ostf_cpu_conv3x3(int dtype, const void* packed, int x_dtype, const void* x, int out_dtype, void* out,
                              int B, int F, int O, int I, int groups, int activation, int threads);
// restore_conv3x3: the second half of a 3 x 3 convolution over a restored map of which few places hold a token. The first
// is a linear layer: products (B,K,9,O) of every token with the nine taps, row by row. -> map (B,F,F,O), OSTF_F32 or
// OSTF_BF16, activation(bias + the products of the neighbours there are). ids (B,K), bias (O); activation: 0 none, 2 relu.
OSTF_API int ostf_cpu_restore_conv3x3(const float* products, const int64_t* ids, const float* bias, int map_dtype,
                                      void* map, int B, int K, int O, int F, int activation, int threads);

#ifdef __cplusplus
}
#endif
