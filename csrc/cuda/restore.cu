// Search tokens back to their places, as a channels-first map, in one launch.
//
// A block owns 32 places of the grid and 64 channels of one batch item. It looks up which token, if any, belongs at
// each of its places, reads those tokens along the channels and writes the map along the places; shared memory turns
// the tile.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kThreads = 256;
constexpr int kPlaces = 32;
constexpr int kChannels = 64;

template <class E>
struct Tile {
  // One row per place. The extra elements make a row an odd number of words (or of pairs of them), so that a warp that
  // reads a column meets every bank once.
  static constexpr int kPad = sizeof(E) == 2 ? 2 : 1;
  E value[kPlaces][kChannels + kPad];
  int token[kPlaces];
};

template <class E>
__global__ void __launch_bounds__(kThreads) restore(const E* tokens, const int64_t* ids, E* map, int K, int C,
                                                    int area) {
  Tile<E>& tile = block_shared<Tile<E>>();
  const int t = threadIdx.x;
  const int first_place = blockIdx.x * kPlaces, first_channel = blockIdx.y * kChannels;
  const int64_t b = blockIdx.z;

  if (t < kPlaces) tile.token[t] = -1;
  __syncthreads();
  for (int k = t; k < K; k += kThreads) {
    const int64_t place = ids[b * K + k] - first_place;
    // The maximum, so that even ids that repeat (which none should) give the same map on every run.
    if (place >= 0 && place < kPlaces) atomicMax(&tile.token[place], k);
  }
  __syncthreads();

  constexpr int kSteps = kPlaces * kChannels / kThreads;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int item = step * kThreads + t;
    const int place = item / kChannels, channel = item % kChannels;
    const int token = tile.token[place];
    E value = 0;
    if (token >= 0 && first_channel + channel < C) value = tokens[(b * K + token) * C + first_channel + channel];
    tile.value[place][channel] = value;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int item = step * kThreads + t;
    const int channel = item / kPlaces, place = item % kPlaces;
    if (first_channel + channel < C && first_place + place < area) {
      map[(b * C + first_channel + channel) * area + first_place + place] = tile.value[place][channel];
    }
  }
}

template <class E>
int run(const void* tokens, const int64_t* ids, void* map, int B, int K, int C, int area, void* stream) {
  const dim3 grid(blocks_for(area, kPlaces), blocks_for(C, kChannels), B);
  return launch(restore<E>, grid, dim3(kThreads), 0, stream, static_cast<const E*>(tokens), ids, static_cast<E*>(map),
                K, C, area);
}

}  // namespace
}  // namespace ostf

int ostf_cuda_restore(int elem_size, const void* tokens, const int64_t* ids, void* map, int B, int K, int C, int F,
                      void* stream) {
  using namespace ostf;
  if (B < 0 || B > 65535 || K < 0 || F < 1 || F > 4096 || C < 1 || C > 65535 * kChannels) return OSTF_EINVAL;
  if (B == 0) return OSTF_OK;
  switch (elem_size) {
    case 2: return run<uint16_t>(tokens, ids, map, B, K, C, F * F, stream);
    case 4: return run<uint32_t>(tokens, ids, map, B, K, C, F * F, stream);
    case 8: return run<uint64_t>(tokens, ids, map, B, K, C, F * F, stream);
    default: return OSTF_EDTYPE;
  }
}
