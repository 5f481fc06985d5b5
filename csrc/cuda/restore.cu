// Search tokens back to their cells, as a channels-first map, in one launch.
//
// A block owns 32 cells of the grid and 64 channels of one batch item. It looks up which token, if any, belongs at
// each of its cells, reads those tokens along the channels and writes the map along the cells; shared memory turns
// the tile.
#include "cuda/common.cuh"

namespace ostf {
namespace {

constexpr int kThreads = 256;
constexpr int kCells = 32;
constexpr int kChannels = 64;

template <class E>
struct Tile {
  // One row per cell. The extra elements make a row an odd number of words (or of pairs of them), so that a warp that
  // reads a column meets every bank once.
  static constexpr int kPad = sizeof(E) == 2 ? 2 : 1;
  E value[kCells][kChannels + kPad];
  int token[kCells];
};

template <class E>
__global__ void __launch_bounds__(kThreads) restore(const E* tokens, const int64_t* ids, E* map, int K, int C,
                                                    int area) {
  ptx::wait_for_inputs();
  Tile<E>& tile = block_shared<Tile<E>>();
  const int t = threadIdx.x;
  const int first_cell = blockIdx.x * kCells, first_channel = blockIdx.y * kChannels;
  const int64_t b = blockIdx.z;

  if (t < kCells) tile.token[t] = -1;
  __syncthreads();
  for (int k = t; k < K; k += kThreads) {
    const int64_t cell = ids[b * K + k] - first_cell;
    // The maximum, so that even ids that repeat (which none should) give the same map on every run.
    if (cell >= 0 && cell < kCells) atomicMax(&tile.token[cell], k);
  }
  __syncthreads();

  constexpr int kSteps = kCells * kChannels / kThreads;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int item = step * kThreads + t;
    const int cell = item / kChannels, channel = item % kChannels;
    const int token = tile.token[cell];
    E value = 0;
    if (token >= 0 && first_channel + channel < C) value = tokens[(b * K + token) * C + first_channel + channel];
    tile.value[cell][channel] = value;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int item = step * kThreads + t;
    const int channel = item / kCells, cell = item % kCells;
    if (first_channel + channel < C && first_cell + cell < area) {
      map[(b * C + first_channel + channel) * area + first_cell + cell] = tile.value[cell][channel];
    }
  }
}

template <class E>
int run(const void* tokens, const int64_t* ids, void* map, int B, int K, int C, int area, void* stream) {
  const dim3 grid(blocks_for(area, kCells), blocks_for(C, kChannels), B);
  return launch(restore<E>, grid, dim3(kThreads), 0, stream, static_cast<const E*>(tokens), ids, static_cast<E*>(map),
                K, C, area);
}

}  // namespace
}  // namespace ostf

int ostf_cuda_restore(const ostf_tensor* tokens, const ostf_tensor* ids, const ostf_tensor* map, void* stream) {
  using namespace ostf;
  if (!has_rank(tokens, 3) || !has_rank(map, 4)) return OSTF_EINVAL;
  const int B = static_cast<int>(tokens->shape[0]), K = static_cast<int>(tokens->shape[1]);
  const int C = static_cast<int>(tokens->shape[2]), F = static_cast<int>(map->shape[3]);
  if (B > 65535 || F < 1 || F > 4096 || C < 1 || C > 65535 * kChannels) return OSTF_EINVAL;
  const int dtype = tokens->dtype;
  if (!is(tokens, dtype, {B, K, C}) || !is(ids, OSTF_I64, {B, K}) || !is(map, dtype, {B, C, F, F})) return OSTF_EINVAL;
  if (B == 0) return OSTF_OK;
  const auto* cells = data<int64_t>(ids);
  switch (element_size(dtype)) {
    case 2: return run<uint16_t>(tokens->data, cells, map->data, B, K, C, F * F, stream);
    case 4: return run<uint32_t>(tokens->data, cells, map->data, B, K, C, F * F, stream);
    case 8: return run<uint64_t>(tokens->data, cells, map->data, B, K, C, F * F, stream);
    default: return OSTF_EDTYPE;
  }
}
