// Which token lies where on the search grid.
#pragma once
#include <cstdint>
#include <new>
#include <vector>

#include "ostrack_fast.h"

namespace ostf {

// The token of every place, -1 for none: (B, places) from ids (B,K).
inline int places_of(const int64_t* ids, int B, int K, int places, std::vector<int32_t>& token_at) {
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
  return OSTF_OK;
}

}  // namespace ostf
