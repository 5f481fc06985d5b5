// Small kernels with one mistake each, and the same kernels without it: what the emulation and the sanitizers must tell
// apart.
#include <cstring>

#include "cuda/common.cuh"

namespace {

struct Words {
  float value[64];
};

template <bool kBroken>
__global__ void shared_out_of_bounds(float* data) {
  auto* words = reinterpret_cast<float*>(ostf::dynamic_shared());  // 64 of them
  const int t = threadIdx.x;
  words[kBroken && t == 63 ? 64 : t] = 1.0f;
  __syncthreads();
  data[t] = words[t];
}

template <bool kBroken>
__global__ void shared_array_overrun(float* data) {
  Words& words = ostf::block_shared<Words>();
  const int t = threadIdx.x;
  words.value[t + kBroken] = 1.0f;
  __syncthreads();
  data[t] = words.value[t];
}

template <bool kBroken>
__global__ void global_out_of_bounds(float* data) {  // 64 floats
  data[threadIdx.x + kBroken] = 1.0f;
}

template <bool kBroken>
__global__ void misaligned_vector(float* data) {
  if (threadIdx.x < 15) *reinterpret_cast<float4*>(data + threadIdx.x * 4 + kBroken) = make_float4(1, 1, 1, 1);
}

template <bool kBroken>
__global__ void missing_barrier(float* data) {
  Words& words = ostf::block_shared<Words>();
  const int t = threadIdx.x;
  words.value[t] = 1.0f;
  if (!kBroken) __syncthreads();
  data[t] = words.value[63 - t];
}

template <bool kBroken>
__global__ void shuffle_for_a_fence(float* data) {
  Words& words = ostf::block_shared<Words>();
  const int t = threadIdx.x;
  words.value[t] = 1.0f;
  const float one = __shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);  // meets, but orders no memory
  if (!kBroken) __syncwarp();
  data[t] = words.value[t ^ 1] * one;
}

template <bool kBroken>
__global__ void blocks_write_one_word(float* data) {
  if (threadIdx.x == 0 && (kBroken || blockIdx.x == 0)) data[0] = 1.0f;
}

template <bool kBroken>
__global__ void blocks_count_unsafely(float* data) {
  auto* count = reinterpret_cast<uint32_t*>(data);
  if (threadIdx.x != 0) return;
  if (kBroken) {
    ++*count;
  } else {
    atomicAdd(count, 1u);
  }
}

// The last block reads what the other wrote.
template <bool kBroken>
__global__ void ticket_without_fence(float* data) {
  auto* arrivals = reinterpret_cast<uint32_t*>(data);
  if (threadIdx.x != 0) return;
  data[1 + blockIdx.x] = 1.0f;
  if (!kBroken) __threadfence();
  const bool last = atomicAdd(arrivals, 1u) == 1;
  __threadfence();
  if (last) data[3] = data[1] + data[2];
}

// What the kernel before wrote.
template <bool kBroken>
__global__ void read_before_the_wait(float* data) {
  float x = 0.0f;
  if (kBroken) x = data[threadIdx.x];
  ostf::ptx::wait_for_inputs();
  data[threadIdx.x] = x;
}

template <bool kBroken>
__global__ void different_barriers(float* data) {
  if (kBroken && threadIdx.x < 32) {
    __syncthreads();
  } else if (kBroken) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[threadIdx.x] = 1.0f;
}

template <bool kBroken>
__global__ void return_before_barrier(float* data) {
  if (kBroken && threadIdx.x >= 40) return;
  __syncthreads();
  data[threadIdx.x] = 1.0f;
}

template <bool kBroken>
__global__ void shuffle_from_outside(float* data) {
  float x = 1.0f;
  if (threadIdx.x < 16) x = __shfl_sync(0xFFFFu, x, kBroken ? 20 : 3);
  data[threadIdx.x] = x;
}

template <bool kBroken>
__global__ void divergent_shuffle(float* data) {
  float x = 1.0f;
  if (kBroken && threadIdx.x % 32 < 16) {
    x = __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  } else {
    x = __shfl_xor_sync(0xFFFFFFFFu, x, 2);
  }
  data[threadIdx.x] = x;
}

template <bool kBroken>
__global__ void copy_without_wait(float* data) {
  Words& words = ostf::block_shared<Words>();
  if (threadIdx.x < 16) ostf::copy_async_16(words.value + threadIdx.x * 4, data + threadIdx.x * 4, true);
  ostf::copy_async_commit();
  if (!kBroken) ostf::copy_async_wait();
  __syncthreads();
  data[threadIdx.x] = words.value[threadIdx.x] + 1.0f;
}

template <bool kBroken>
__global__ void unwritten_shared(float* data) {
  Words& words = ostf::block_shared<Words>();
  if (!kBroken) words.value[threadIdx.x] = 1.0f;
  data[threadIdx.x] = words.value[threadIdx.x];
}

template <bool kBroken>
__global__ void misaligned_ldmatrix(float* data) {
  auto* words = reinterpret_cast<float*>(ostf::dynamic_shared());
  words[threadIdx.x] = 1.0f;
  __syncthreads();
  uint32_t r[4];
  if (threadIdx.x < 32) ostf::ptx::ldmatrix_x4<false>(r, words + (threadIdx.x % 8) * 4 + kBroken);
  data[threadIdx.x] = 1.0f;
}

// Not a mistake but a cost: eight rows of an ldmatrix in one bank.
template <bool kBroken>
__global__ void bank_conflict(float* data) {
  auto* words = reinterpret_cast<float*>(ostf::dynamic_shared());  // 512 of them
  for (int i = threadIdx.x; i < 512; i += 64) words[i] = 1.0f;
  __syncthreads();
  uint32_t r[4];
  if (threadIdx.x < 32) ostf::ptx::ldmatrix_x4<false>(r, words + (threadIdx.x % 8) * (kBroken ? 32 : 36));
  data[threadIdx.x] = 1.0f;
}

}  // namespace

// Runs one kernel on two blocks of 64 threads. data has 64 floats. Returns a status, or -1 for an unknown name.
extern "C" __attribute__((visibility("default"))) int run_fault(const char* name, int broken, float* data) {
#define FAULT(kernel, shared) \
  if (!strcmp(name, #kernel)) \
    return ostf::launch(broken ? kernel<true> : kernel<false>, dim3(blocks), dim3(64), shared, nullptr, data);
  // Where both blocks may not write the same words, one block runs.
  int blocks = 1;
  FAULT(shared_out_of_bounds, 64 * sizeof(float))
  FAULT(shared_array_overrun, 0)
  FAULT(global_out_of_bounds, 0)
  FAULT(misaligned_vector, 0)
  FAULT(missing_barrier, 0)
  FAULT(shuffle_for_a_fence, 0)
  FAULT(read_before_the_wait, 0)
  FAULT(different_barriers, 0)
  FAULT(return_before_barrier, 0)
  FAULT(shuffle_from_outside, 0)
  FAULT(divergent_shuffle, 0)
  FAULT(copy_without_wait, 0)
  FAULT(unwritten_shared, 0)
  FAULT(misaligned_ldmatrix, 64 * sizeof(float))
  FAULT(bank_conflict, 512 * sizeof(float))
  blocks = 2;
  FAULT(blocks_write_one_word, 0)
  FAULT(blocks_count_unsafely, 0)
  FAULT(ticket_without_fence, 0)
#undef FAULT
  return -1;
}
