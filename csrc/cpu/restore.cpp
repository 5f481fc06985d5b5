// Put tokens back on their grid on the CPU: a transpose in tiles that stay in the first-level cache.
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "ostrack_fast.h"

namespace {

constexpr int kPlaces = 16;    // grid places in a tile: a row of a tile is written as one or two cache lines
constexpr int kChannels = 32;  // channels in a tile

template <class E>
void restore(const E* tokens, const std::vector<int32_t>& token_at, E* map, int B, int K, int C, int places,
             int threads) {
  const int64_t strips = (C + kChannels - 1) / kChannels;
  ostf::parallel_for(B * strips, threads, [&](int64_t begin, int64_t end) {
    E tile[kChannels][kPlaces];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / strips;
      const int first = static_cast<int>(item % strips) * kChannels;
      const int channels = std::min(kChannels, C - first);
      const E* entry = tokens + b * K * C + first;
      E* out = map + (b * C + first) * places;
      for (int p = 0; p < places; p += kPlaces) {
        const int count = std::min(kPlaces, places - p);
        for (int j = 0; j < count; ++j) {
          const int32_t token = token_at[b * places + p + j];
          const E* from = entry + static_cast<int64_t>(token) * C;
          for (int c = 0; c < channels; ++c) tile[c][j] = token < 0 ? E{0} : from[c];
        }
        for (int c = 0; c < channels; ++c) {
          std::copy(tile[c], tile[c] + count, out + static_cast<int64_t>(c) * places + p);
        }
      }
    }
  });
}

}  // namespace

int ostf_cpu_restore(int elem_size, const void* tokens, const int64_t* ids, void* map, int B, int K, int C, int F,
                     int threads) {
  if (B < 0 || K < 0 || C <= 0 || F <= 0 || F > 4096) return OSTF_EINVAL;
  const int places = F * F;
  std::vector<int32_t> token_at;
  try {
    token_at.assign(static_cast<size_t>(B) * places, -1);
  } catch (const std::bad_alloc&) {
    return OSTF_ENOMEM;
  }
  for (int64_t b = 0; b < B; ++b) {
    for (int k = 0; k < K; ++k) {
      const int64_t id = ids[b * K + k];
      if (id < 0 || id >= places) return OSTF_EINVAL;
      token_at[b * places + id] = k;
    }
  }
  switch (elem_size) {
    case 2:
      restore(static_cast<const uint16_t*>(tokens), token_at, static_cast<uint16_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    case 4:
      restore(static_cast<const uint32_t*>(tokens), token_at, static_cast<uint32_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    case 8:
      restore(static_cast<const uint64_t*>(tokens), token_at, static_cast<uint64_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    default:
      return OSTF_EDTYPE;
  }
}
