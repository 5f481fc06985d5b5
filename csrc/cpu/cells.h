// Which token lies in which cell of the search grid.
#pragma once
#include <cstdint>
#include <new>
#include <vector>

#include "ostrack_fast.h"

namespace ostf {

// The token of every cell, -1 for none: (B, cells) from ids (B,K).
inline int find_tokens_of_cells(const int64_t* ids, int B, int K, int cells, std::vector<int32_t>& token_at) {
  try {
    token_at.assign(static_cast<size_t>(B) * cells, -1);
  } catch (const std::bad_alloc&) {
    return OSTF_ENOMEM;
  }
  for (int64_t b = 0; b < B; ++b) {
    for (int k = 0; k < K; ++k) {
      const int64_t id = ids[b * K + k];
      if (id < 0 || id >= cells) return OSTF_EINVAL;
      token_at[b * cells + id] = k;
    }
  }
  return OSTF_OK;
}

}  // namespace ostf
