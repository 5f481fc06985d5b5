// Attention forward with the score of every search token, in one launch: checks, and the choice of a kernel.
#include "cuda/attention_fp32.cuh"
#include "cuda/attention_mma.cuh"

namespace ostf {
namespace {

int launch_attention(void (*kernel)(AttentionArgs), size_t shared, int rows, int groups, const AttentionArgs& args,
                     int B, void* stream) {
  if (shared > 48 * 1024) {  // the default limit, above which a kernel must opt in
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  return launch(kernel, dim3(blocks_for(args.N, rows), args.H, B), dim3(kAttentionThreads * groups), shared, stream, args);
}

template <class T, int D, int kGroups>
int run(const AttentionArgs& args, int B, void* stream) {
  if constexpr (std::is_same_v<T, float>) {
    return launch_attention(attention_fp32<D>, sizeof(Fp32Tiles<D>), kRows, 1, args, B, stream);
  } else {
    // What the loaded code was compiled for decides, not the device: newer devices can run code for older ones.
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, attention_mma<T, D, kGroups>);
    if (error != cudaSuccess) return error;
    const int arch = attributes.ptxVersion * 10;
    if (std::is_same_v<T, __nv_bfloat16> && arch < 800) return OSTF_EDTYPE;
    return launch_attention(attention_mma<T, D, kGroups>, attention_shared_bytes<T, D, kGroups>(arch), kTile, kGroups,
                            args, B, stream);
  }
}

template <class T>
int run(const AttentionArgs& args, int B, int D, int groups, void* stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (groups == 2 && D == 64) return run<T, 64, 2>(args, B, stream);
  }
  if (groups != 1) return OSTF_EINVAL;
  switch (D) {
    case 32: return run<T, 32, 1>(args, B, stream);
    case 64: return run<T, 64, 1>(args, B, stream);
    case 96: return run<T, 96, 1>(args, B, stream);
    case 128: return run<T, 128, 1>(args, B, stream);
    default: return OSTF_EINVAL;
  }
}

}  // namespace
}  // namespace ostf

int ostf_cuda_attention(const ostf_tensor* qkv, const ostf_tensor* template_mask, const ostf_tensor* out,
                        const ostf_tensor* score, const ostf_tensor* lse, const ostf_tensor* partial,
                        const ostf_tensor* arrivals, int key_groups, void* stream) {
  using namespace ostf;
  if (!has_rank(qkv, 5)) return OSTF_EINVAL;
  const int dtype = qkv->dtype;
  if (!is_float(dtype)) return OSTF_EDTYPE;
  const int B = static_cast<int>(qkv->shape[0]), N = static_cast<int>(qkv->shape[1]);
  const int H = static_cast<int>(qkv->shape[3]), D = static_cast<int>(qkv->shape[4]);
  if (B > 65535 || H < 1 || H > 65535 || N < 1 || D < 1) return OSTF_EINVAL;
  if (!is(qkv, dtype, {B, N, 3, H, D}) || !is(out, dtype, {B, N, int64_t{H} * D})) return OSTF_EINVAL;
  if ((lse && !is(lse, OSTF_F32, {B, H, N})) || !aligned(qkv->data, 16) || !aligned(out->data, 16)) return OSTF_EINVAL;
  if (!template_mask && score) return OSTF_EINVAL;
  int T = 0;
  bool mask_of_each = false;
  if (template_mask) {
    mask_of_each = template_mask->ndim == 2;
    if (!has_rank(template_mask, mask_of_each ? 2 : 1)) return OSTF_EINVAL;
    T = static_cast<int>(template_mask->shape[mask_of_each]);
    const bool fits =
        mask_of_each ? is(template_mask, OSTF_BOOL, {B, T}) : is(template_mask, OSTF_BOOL, {T});
    if (!fits || T < 1 || T > N || !is(score, OSTF_F32, {B, N - T})) return OSTF_EINVAL;
    const int64_t partials = int64_t{B} * H * ((T + 31) / 32) * (N - T);
    const bool room = has_rank(partial, 1) && partial->dtype == OSTF_F32 && partial->shape[0] >= partials;
    if (T < N && (!room || !is(arrivals, OSTF_I32, {B}))) return OSTF_EINVAL;
  }
  const bool scored = template_mask && T < N;  // else there is no search token
  if (B == 0) return OSTF_OK;
  AttentionArgs args = {};
  args.qkv = qkv->data;
  args.mask = scored ? data<const uint8_t>(template_mask) : nullptr;
  args.mask_stride = mask_of_each ? T : 0;
  args.out = out->data;
  args.score = scored ? data<float>(score) : nullptr;
  args.lse = data<float>(lse);
  args.partial = scored ? data<float>(partial) : nullptr;
  args.arrivals = scored ? data<uint32_t>(arrivals) : nullptr;
  args.N = N;
  args.H = H;
  args.T = T;
  const double scale = 1.44269504088896340736 / sqrt(static_cast<double>(D));
  args.scale = static_cast<float>(scale);
  args.scale_rest = static_cast<float>(scale - args.scale);
  switch (dtype) {
    case OSTF_F32: return run<float>(args, B, D, key_groups, stream);
    case OSTF_F16: return run<__half>(args, B, D, key_groups, stream);
    case OSTF_BF16: return run<__nv_bfloat16>(args, B, D, key_groups, stream);
    default: return OSTF_EDTYPE;
  }
}
