// Attention forward with the score of every search token, in one launch: checks, and the choice of a kernel.
#include "cuda/attention_fp32.cuh"
#include "cuda/attention_mma.cuh"

namespace ostf {
namespace {

int launch_attention(void (*kernel)(AttentionArgs), size_t shared, int rows, const AttentionArgs& args, int B,
                     void* stream) {
  if (shared > 48 * 1024) {  // more has to be asked for
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  return launch(kernel, dim3(blocks_for(args.N, rows), args.H, B), dim3(kAttentionThreads), shared, stream, args);
}

template <class T, int D>
int run(const AttentionArgs& args, int B, void* stream) {
  if constexpr (std::is_same_v<T, float>) {
    return launch_attention(attention_fp32<D>, sizeof(Fp32Tiles<D>), kRows, args, B, stream);
  } else {
    // What the loaded code was compiled for decides, not the device: newer devices can run code for older ones.
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, attention_mma<T, D>);
    if (error != cudaSuccess) return error;
    const int arch = attributes.ptxVersion * 10;
    if (std::is_same_v<T, __nv_bfloat16> && arch < 800) return OSTF_EDTYPE;
    return launch_attention(attention_mma<T, D>, attention_shared_bytes<T, D>(arch), kTile, args, B, stream);
  }
}

template <class T>
int run(const AttentionArgs& args, int B, int D, void* stream) {
  switch (D) {
    case 32: return run<T, 32>(args, B, stream);
    case 64: return run<T, 64>(args, B, stream);
    case 96: return run<T, 96>(args, B, stream);
    case 128: return run<T, 128>(args, B, stream);
    default: return OSTF_EINVAL;
  }
}

}  // namespace
}  // namespace ostf

int ostf_cuda_attention(int dtype, const void* qkv, const uint8_t* template_mask, int mask_batch, void* out,
                        float* score, float* lse, float* scratch, uint32_t* tickets, int B, int N, int H, int D, int T,
                        void* stream) {
  using namespace ostf;
  if (B < 0 || B > 65535 || H < 1 || H > 65535 || N < 1 || T < 0 || T > N) return OSTF_EINVAL;
  if (!aligned(qkv, 16) || !aligned(out, 16)) return OSTF_EINVAL;
  if (N == T) {  // no search token: the score is empty
    template_mask = nullptr;
    score = nullptr;
  }
  if ((template_mask != nullptr) != (score != nullptr)) return OSTF_EINVAL;
  if (score && (!scratch || !tickets || T < 1 || (mask_batch != 1 && mask_batch != B))) return OSTF_EINVAL;
  if (B == 0) return OSTF_OK;
  AttentionArgs args = {};
  args.qkv = qkv;
  args.mask = template_mask;
  args.mask_stride = mask_batch == 1 ? 0 : T;
  args.out = out;
  args.score = score;
  args.lse = lse;
  args.scratch = scratch;
  args.tickets = tickets;
  args.N = N;
  args.H = H;
  args.T = T;
  const double scale = 1.44269504088896340736 / sqrt(static_cast<double>(D));
  args.scale = static_cast<float>(scale);
  args.scale_rest = static_cast<float>(scale - args.scale);
  switch (dtype) {
    case OSTF_F32: return run<float>(args, B, D, stream);
    case OSTF_F16: return run<__half>(args, B, D, stream);
    case OSTF_BF16: return run<__nv_bfloat16>(args, B, D, stream);
    default: return OSTF_EDTYPE;
  }
}
