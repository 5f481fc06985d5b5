// The C ABI of the compiled kernels: tensors as views of memory, no torch, no Python.
//
// Letters: B batch, H heads, D head dimension, C = H * D channels, N = T + S tokens (T template tokens first,
// then S search tokens), K kept, F side of the search token grid, Z side of a crop in pixels.
// A kernel checks the shape, dtype and layout of every view; unless said otherwise they are dense and row-major. A
// null pointer stands for a tensor that is not there, where that is said to be possible.
// cpu_* functions run on at most `threads` threads and return when done; cuda_* functions enqueue on `stream` (a
// cudaStream_t) and return at once. Return value: 0 on success, a positive cudaError_t, or a negative ostf_status.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define OSTF_API
#else
#define OSTF_API __attribute__((visibility("default")))
#endif

// The kernels by name: X(update_box) stands for the function ostf_cpu_update_box or ostf_cuda_update_box.
#define OSTF_CPU_KERNELS(X) \
  X(attention) X(attention_backward) X(conv3x3) X(crop) X(decode) X(eliminate) X(gelu) X(gelu_backward) \
  X(gelu_matmul) X(head_maps) X(linear) X(linear_pack) X(matmul) X(matmul_gelu) X(matmul_gelu_backward) X(patches) \
  X(restore) X(restore_conv3x3) X(update_box)
#define OSTF_CUDA_KERNELS(X) X(attention) X(crop) X(decode) X(eliminate) X(restore) X(update_box)

#ifdef __cplusplus
extern "C" {
#endif

// These numbers are defined here alone: Python and the tests read them from this file.
typedef enum {
  OSTF_F32 = 0,
  OSTF_F16 = 1,
  OSTF_BF16 = 2,
  OSTF_I8 = 3,
  OSTF_U8 = 4,
  OSTF_BOOL = 5,
  OSTF_I32 = 6,
  OSTF_I64 = 7,
  OSTF_F64 = 8,
} ostf_dtype;

// A tensor: the address of its first element, its shape, and its strides in elements.
typedef struct {
  void* data;
  int32_t dtype;  // ostf_dtype
  int32_t ndim;
  int64_t shape[5];
  int64_t stride[5];
} ostf_tensor;

// What follows the sum of a GEMM.
typedef enum {
  OSTF_NONE = 0,
  OSTF_GELU = 1,  // with the exact erf
  OSTF_RELU = 2,
} ostf_activation;

typedef enum {
  OSTF_OK = 0,
  OSTF_EINVAL = -1,       // a size is out of the supported range
  OSTF_EDTYPE = -2,       // this kernel has no code for the dtype on this machine
  OSTF_ENOMEM = -3,       // host memory for scratch space could not be had
} ostf_status;

// What cpu_* functions called by this thread run on from now on: the team of an OpenMP runtime, whose function
// GOMP_parallel is given, or threads of their own (null). Returns what it was before.
OSTF_API void* ostf_cpu_use_openmp(void* parallel);

// attention: softmax(Q K' / sqrt(D)) V of queries q (B,M,H,D) over keys and values kv (B,N,2,H,D) -> out (B,M,H*D), all
// of one dtype. template_mask bool (T) or (B,T), or null: the queries, the first T of the M, whose probabilities score
// the search tokens, which are the keys from T on. score (B,S) float32: mean over heads and selected rows, 0 where no row
// is selected; null together with the mask. lse (B,H,M) float32, or null: natural log of each softmax denominator (with
// the running maximum). Batch items and rows of q and kv, and batch items of out, may lie at any distance: both may be
// parts of one qkv.
OSTF_API int ostf_cpu_attention(const ostf_tensor* q, const ostf_tensor* kv, const ostf_tensor* template_mask,
                                const ostf_tensor* out, const ostf_tensor* score, const ostf_tensor* lse, int threads);
// attention_backward: grad (B,N,3,H,D), the gradient of attention in qkv (B,N,3,H,D), from those of out (B,N,C) and of
// score, and the forward pass's out and lse. lse and grad_score are float32, the others all float32, or all bfloat16 with
// an even D. grad_score (B,S), or null; with it template_mask is that of the forward pass, which is not looked at
// otherwise. OSTF_EDTYPE without AVX2, or AVX-512 BF16 for bfloat16.
OSTF_API int ostf_cpu_attention_backward(const ostf_tensor* qkv, const ostf_tensor* template_mask,
                                         const ostf_tensor* out, const ostf_tensor* lse, const ostf_tensor* grad_out,
                                         const ostf_tensor* grad_score, const ostf_tensor* grad, int threads);
// CUDA: qkv (B,N,3,H,D) dense, D is 32, 64, 96 or 128, qkv and out start at multiples of 16 bytes (else OSTF_EINVAL), and
// OSTF_BF16 needs code for compute capability 8.0 or later (else OSTF_EDTYPE). Each head and tile of template rows writes
// its partial score to `partial`, at least B*H*ceil(T/32)*(N-T) float32 of any content; the last thread block of a batch
// item to arrive, by its count in `arrivals` (B) int32, adds them in a fixed order. Arrival counters are zero before the
// first launch and every launch leaves them zero, so a CUDA graph replays. Launches that may overlap share neither.
// Both may be null when score is. key_groups: 1, or 2 for blocks of twice as many warps, of which each half sees half of
// the keys (D of 64 in half precision, else OSTF_EINVAL).
OSTF_API int ostf_cuda_attention(const ostf_tensor* qkv, const ostf_tensor* template_mask, const ostf_tensor* out,
                                 const ostf_tensor* score, const ostf_tensor* lse, const ostf_tensor* partial,
                                 const ostf_tensor* arrivals, int key_groups, void* stream);

// eliminate: tokens (B,T+S,C), score (B,S) float32, ids (B,S) int64 -> out (B,T+K,C), out_ids (B,K), removed (B,S-K).
// Stable, by score descending; -0 equals +0; NaN ranks last. Elements of tokens have 2, 4 or 8 bytes.
OSTF_API int ostf_cpu_eliminate(const ostf_tensor* tokens, const ostf_tensor* score, const ostf_tensor* ids,
                                const ostf_tensor* out, const ostf_tensor* out_ids, const ostf_tensor* removed,
                                int threads);
OSTF_API int ostf_cuda_eliminate(const ostf_tensor* tokens, const ostf_tensor* score, const ostf_tensor* ids,
                                 const ostf_tensor* out, const ostf_tensor* out_ids, const ostf_tensor* removed,
                                 void* stream);

// restore: tokens (B,K,C), ids (B,K) int64 -> map (B,C,F,F), zeros in the cells that no id names. Without a LayerNorm
// (weight and bias are null) map is dense, of the dtype of tokens, whose elements have 2, 4 or 8 bytes. On the CPU with
// a LayerNorm, weight and bias (C) float32: map lies channels last in memory, statistics are float32, and tokens and map
// may each be float32, float16 or bfloat16.
OSTF_API int ostf_cpu_restore(const ostf_tensor* tokens, const ostf_tensor* ids, const ostf_tensor* norm_weight,
                              const ostf_tensor* norm_bias, const ostf_tensor* map, double eps, int threads);
OSTF_API int ostf_cuda_restore(const ostf_tensor* tokens, const ostf_tensor* ids, const ostf_tensor* map, void* stream);

// crop: frame (height,width,3) uint8, box (B,4) float64 xywh pixels -> patch (B,3,Z,Z), scale (B) float64.
// mean and inv_std (3) float32, on the host for both: patch = (pixel / 255 - mean) * inv_std.
OSTF_API int ostf_cpu_crop(const ostf_tensor* frame, const ostf_tensor* box, const ostf_tensor* mean,
                           const ostf_tensor* inv_std, const ostf_tensor* patch, const ostf_tensor* scale,
                           double factor, int threads);
OSTF_API int ostf_cuda_crop(const ostf_tensor* frame, const ostf_tensor* box, const ostf_tensor* mean,
                            const ostf_tensor* inv_std, const ostf_tensor* patch, const ostf_tensor* scale,
                            double factor, void* stream);

// patches: image (B,C,H,W) -> patches (B,H/P*W/P,C,P,P), cut row by row, of one dtype; P divides H and W.
OSTF_API int ostf_cpu_patches(const ostf_tensor* image, const ostf_tensor* patches, int threads);

// head_maps: rows (B,F*F,5) -> maps (B,5,F,F), both float32. Columns 1 and 2 are transposed as they are, of the others
// the sigmoid, cut to 1e-4 from below and 1 - 1e-4 from above. NaN stays NaN.
OSTF_API int ostf_cpu_head_maps(const ostf_tensor* rows, const ostf_tensor* maps, int threads);

// decode: score (B,1,F,F), size (B,2,F,F), offset (B,2,F,F) of one dtype, window (F,F) float32 or null -> box (B,4)
// float32 cxcywh in units of the crop, best (B) float32 the score (without window) at the chosen cell.
// The first of equal cells is chosen; NaN is below everything, and of nothing but NaN the first.
OSTF_API int ostf_cpu_decode(const ostf_tensor* score, const ostf_tensor* size, const ostf_tensor* offset,
                             const ostf_tensor* window, const ostf_tensor* box, const ostf_tensor* best, int threads);
OSTF_API int ostf_cuda_decode(const ostf_tensor* score, const ostf_tensor* size, const ostf_tensor* offset,
                              const ostf_tensor* window, const ostf_tensor* box, const ostf_tensor* best, void* stream);

// update_box: found (B,4) float32 cxcywh in units of the crop around box (B,4) float64 xywh pixels -> moved (B,4)
// float64, that box in pixels of the frame, of which at least `margin` pixels stay inside. moved may be box. NaN stays
// NaN.
OSTF_API int ostf_cpu_update_box(const ostf_tensor* found, const ostf_tensor* box, const ostf_tensor* moved,
                                 int64_t height, int64_t width, double factor, double margin, int threads);
OSTF_API int ostf_cuda_update_box(const ostf_tensor* found, const ostf_tensor* box, const ostf_tensor* moved,
                                  int64_t height, int64_t width, double factor, double margin, void* stream);

// linear, conv3x3: GEMMs with prepacked weights. dtype is the compute dtype: OSTF_F32, OSTF_BF16, or OSTF_I8 (weights
// quantized symmetrically beforehand, activations as they come, each row and tap by themselves; a tap's sum is exact,
// and has at most 131072 inputs); sums are float32. OSTF_EDTYPE where this processor has no kernel for it.
// weight (O,taps,I/groups) and bias (O) float32; taps is 1 for linear, 9 row by row for conv3x3. packed: opaque uint8, as
// many as packed_bytes writes to *bytes, which reads only the shape of weight. OSTF_I8 takes only finite weights (else
// OSTF_EINVAL).
OSTF_API int ostf_cpu_linear_packed_bytes(const ostf_tensor* weight, int dtype, int groups, int64_t* bytes);
OSTF_API int ostf_cpu_linear_pack(const ostf_tensor* weight, const ostf_tensor* bias, const ostf_tensor* packed,
                                  int dtype, int groups, int threads);
// linear: out (B,R,O) = residual + activation(norm(x) W' + bias); x (B,R,I); residual float32 (B,R,O) or null, it may
// be out. x and out are float32 or bfloat16. Batch items of x, residual and out may lie at any distance. norm is LayerNorm
// without affine if norm_eps >= 0, else nothing. activation: ostf_activation.
OSTF_API int ostf_cpu_linear(const ostf_tensor* packed, const ostf_tensor* x, const ostf_tensor* residual,
                             const ostf_tensor* out, int dtype, double norm_eps, int activation, int threads);
// gelu: out (n) = GELU of x (n) with the exact erf; gelu_backward: out (n) = grad (n) times its derivative at x (n). All
// float32 or all bfloat16, else OSTF_EDTYPE, as without AVX2.
OSTF_API int ostf_cpu_gelu(const ostf_tensor* x, const ostf_tensor* out, int threads);
OSTF_API int ostf_cpu_gelu_backward(const ostf_tensor* x, const ostf_tensor* grad, const ostf_tensor* out, int threads);
// matmul: out (R,O) = a b + bias; a (R,I), b (I,O), bias (O) or null, all float32. Rows or columns of a and of b are
// dense, their distance is any; out is dense. OSTF_EDTYPE without AVX2.
OSTF_API int ostf_cpu_matmul(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* bias,
                             const ostf_tensor* out, int threads);
// The same of what GELU makes of a matrix: gelu_matmul: out = gelu(a) b + bias, where a has dense rows. matmul_gelu:
// out = a gelu(b). matmul_gelu_backward: out = a b times, element by element, GELU's derivative at x (R,O), where a has
// dense rows.
OSTF_API int ostf_cpu_gelu_matmul(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* bias,
                                  const ostf_tensor* out, int threads);
OSTF_API int ostf_cpu_matmul_gelu(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* out, int threads);
OSTF_API int ostf_cpu_matmul_gelu_backward(const ostf_tensor* a, const ostf_tensor* b, const ostf_tensor* x,
                                           const ostf_tensor* out, int threads);
// conv3x3: out (B,F,F,O) = activation(3 x 3 convolution of x (B,F,F,I) with a border of zeros). Group g of the outputs
// sees group g of the inputs. x and out are float32 or bfloat16.
OSTF_API int ostf_cpu_conv3x3(const ostf_tensor* packed, const ostf_tensor* x, const ostf_tensor* out, int dtype,
                              int groups, int activation, int threads);
// restore_conv3x3: the second half of a 3 x 3 convolution over a restored map of which few cells hold a token. The first
// is a linear layer: taps (B,K,9,O) float32, what each token gives its nine neighbours, row by row. ids (B,K) int64, bias
// (O) float32 -> map (B,F,F,O), float32 or bfloat16: activation(bias + what the neighbours that exist give); activation
// is OSTF_NONE or OSTF_RELU.
OSTF_API int ostf_cpu_restore_conv3x3(const ostf_tensor* taps, const ostf_tensor* ids, const ostf_tensor* bias,
                                      const ostf_tensor* map, int activation, int threads);

#ifdef __cplusplus
}
#endif
