// Candidate elimination on the CPU: rank the scores with a radix sort, then copy whole token rows.
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "ostrack_fast.h"

namespace {

constexpr int64_t kWorthThreads = 1 << 20;  // bytes: one thread copies less than this before a second has begun

struct Ranked {
  uint32_t key;
  int32_t place;
};

// Unsigned numbers that grow as scores fall; -0 maps to +0 and every NaN to the largest.
uint32_t falling_key(float score) {
  if (score != score) return UINT32_MAX;
  if (score == 0.0f) score = 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t rising = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return ~rising;
}

// Sorts `first` by key, ties in the order they stand in; the result may end in either buffer and is returned. Least
// significant byte first: each pass is stable, so the whole is, and the cost does not depend on the scores.
Ranked* radix_sort(Ranked* first, Ranked* second, int count) {
  int32_t histogram[4][256] = {};
  for (int i = 0; i < count; ++i) {
    for (int byte = 0; byte < 4; ++byte) ++histogram[byte][(first[i].key >> (8 * byte)) & 255];
  }
  for (int byte = 0; byte < 4; ++byte) {
    int32_t* start = histogram[byte];
    if (start[(first[0].key >> (8 * byte)) & 255] == count) continue;
    int32_t sum = 0;
    for (int digit = 0; digit < 256; ++digit) sum += std::exchange(start[digit], sum);
    for (int i = 0; i < count; ++i) second[start[(first[i].key >> (8 * byte)) & 255]++] = first[i];
    std::swap(first, second);
  }
  return first;
}

}  // namespace

int ostf_cpu_eliminate(int elem_size, const void* tokens, const float* score, const int64_t* ids, void* out,
                       int64_t* out_ids, int64_t* removed, int B, int T, int S, int K, int C, int threads) {
  if (elem_size <= 0 || B < 0 || T < 0 || S <= 0 || K < 0 || K > S || C <= 0) return OSTF_EINVAL;
  std::vector<int32_t> kept;
  std::vector<Ranked> buffer;
  try {
    kept.resize(static_cast<size_t>(B) * K);
    buffer.resize(2 * static_cast<size_t>(S));
  } catch (const std::bad_alloc&) {
    return OSTF_ENOMEM;
  }
  for (int b = 0; b < B; ++b) {
    const float* scores = score + static_cast<int64_t>(b) * S;
    const int64_t* from = ids + static_cast<int64_t>(b) * S;
    for (int s = 0; s < S; ++s) buffer[s] = {falling_key(scores[s]), s};
    const Ranked* order = radix_sort(buffer.data(), buffer.data() + S, S);
    for (int k = 0; k < K; ++k) {
      kept[static_cast<size_t>(b) * K + k] = order[k].place;
      out_ids[static_cast<int64_t>(b) * K + k] = from[order[k].place];
    }
    for (int r = K; r < S; ++r) removed[static_cast<int64_t>(b) * (S - K) + r - K] = from[order[r].place];
  }

  const int64_t row = static_cast<int64_t>(elem_size) * C;
  const auto* source = static_cast<const char*>(tokens);
  auto* target = static_cast<char*>(out);
  // One work item is a row; the template's rows come first in a batch entry and stand together, so they go in one copy.
  const int64_t rows = T + K;
  const int team = B * rows * row < kWorthThreads ? 1 : threads;
  ostf::parallel_for(B * rows, team, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / rows;
      const int64_t r = i % rows;
      const char* entry = source + b * (T + S) * row;
      if (r < T) {
        const int64_t count = std::min<int64_t>(T - r, end - i);
        std::memcpy(target + i * row, entry + r * row, count * row);
        i += count;
      } else {
        std::memcpy(target + i * row, entry + (T + kept[b * K + r - T]) * row, row);
        ++i;
      }
    }
  });
  return OSTF_OK;
}
