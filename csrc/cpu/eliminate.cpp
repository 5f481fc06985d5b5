// Candidate elimination on the CPU: rank the scores with a radix sort, then copy whole token rows.
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "tensor.h"

namespace {

constexpr int64_t kWorthThreads = 1 << 20;  // bytes: one thread copies less than this before a second has begun

struct Ranked {
  uint32_t key;
  int32_t index;
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

// Sorts `first` by key, keeps the order of ties, and returns the buffer that holds the result, which may be either. A
// radix sort from the least significant byte: each pass is stable, and the cost does not depend on the scores.
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

int ostf_cpu_eliminate(const ostf_tensor* tokens, const ostf_tensor* score, const ostf_tensor* ids,
                       const ostf_tensor* out, const ostf_tensor* out_ids, const ostf_tensor* removed, int threads) {
  if (!ostf::has_rank(tokens, 3) || !ostf::has_rank(score, 2) || !ostf::has_rank(out_ids, 2)) return OSTF_EINVAL;
  const int64_t B = tokens->shape[0], C = tokens->shape[2], S = score->shape[1], K = out_ids->shape[1];
  const int64_t T = tokens->shape[1] - S;
  const int dtype = tokens->dtype;
  if (T < 0 || S < 1 || K > S || C < 1 || threads < 1) return OSTF_EINVAL;
  if (!ostf::is(tokens, dtype, {B, T + S, C}) || !ostf::is(out, dtype, {B, T + K, C}) ||
      !ostf::is(score, OSTF_F32, {B, S}) || !ostf::is(ids, OSTF_I64, {B, S}) || !ostf::is(out_ids, OSTF_I64, {B, K}) ||
      !ostf::is(removed, OSTF_I64, {B, S - K})) {
    return OSTF_EINVAL;
  }
  std::vector<int32_t> kept;
  std::vector<Ranked> buffer;
  try {
    kept.resize(static_cast<size_t>(B * K));
    buffer.resize(static_cast<size_t>(2 * S));
  } catch (const std::bad_alloc&) {
    return OSTF_ENOMEM;
  }
  for (int64_t b = 0; b < B; ++b) {
    const float* scores = ostf::data<const float>(score) + b * S;
    const int64_t* from = ostf::data<const int64_t>(ids) + b * S;
    for (int s = 0; s < S; ++s) buffer[s] = {falling_key(scores[s]), s};
    const Ranked* order = radix_sort(buffer.data(), buffer.data() + S, static_cast<int>(S));
    for (int64_t k = 0; k < K; ++k) {
      kept[b * K + k] = order[k].index;
      ostf::data<int64_t>(out_ids)[b * K + k] = from[order[k].index];
    }
    for (int64_t r = K; r < S; ++r) ostf::data<int64_t>(removed)[b * (S - K) + r - K] = from[order[r].index];
  }

  const int64_t row = ostf::element_size(dtype) * C;
  const auto* source = ostf::data<const char>(tokens);
  auto* target = ostf::data<char>(out);
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
