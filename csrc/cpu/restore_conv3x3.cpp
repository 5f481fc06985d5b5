// The end of a 3 x 3 convolution over restored tokens: each cell of the map sums the tap outputs of its neighbours.
#include <algorithm>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/cells.h"
#include "tensor.h"

namespace {

constexpr int kTaps = 9;
constexpr int kChannels = 64;  // summed at once, in registers or the nearest cache

void store(float value, float* to) { *to = value; }
void store(float value, uint16_t* to) { *to = ostf::float_to_bf16(value); }

// Finds the tap outputs that cell (y, x) sums, one for each of the up to nine tokens around it; returns their number.
int neighbours(const float* taps, const int32_t* token_at, int F, int O, int y, int x, const float** found) {
  int count = 0;
  for (int tap = 0; tap < kTaps; ++tap) {
    const int row = y + tap / 3 - 1, column = x + tap % 3 - 1;
    if (row < 0 || row >= F || column < 0 || column >= F) continue;
    const int64_t token = token_at[row * F + column];
    if (token >= 0) found[count++] = taps + (token * kTaps + tap) * O;
  }
  return count;
}

template <class To>
void add_up(const float* taps, const std::vector<int32_t>& token_at, const float* bias, bool relu, To* map, int B,
            int K, int O, int F, int threads) {
  const int64_t cells = static_cast<int64_t>(F) * F;
  ostf::parallel_for(B * cells, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t b = at / cells;
      const int cell = static_cast<int>(at % cells);
      const float* found[kTaps];
      const int count = neighbours(taps + b * K * kTaps * O, token_at.data() + b * cells, F, O, cell / F, cell % F, found);
      for (int first = 0; first < O; first += kChannels) {
        const int channels = std::min(kChannels, O - first);
        float sum[kChannels];
        std::copy(bias + first, bias + first + channels, sum);
        for (int i = 0; i < count; ++i) {
          for (int c = 0; c < channels; ++c) sum[c] += found[i][first + c];
        }
        for (int c = 0; relu && c < channels; ++c) sum[c] = sum[c] < 0.0f ? 0.0f : sum[c];  // NaN stays NaN
        for (int c = 0; c < channels; ++c) store(sum[c], map + at * O + first + c);
      }
    }
  });
}

}  // namespace

int ostf_cpu_restore_conv3x3(const ostf_tensor* taps, const ostf_tensor* ids, const ostf_tensor* bias,
                             const ostf_tensor* map, int activation, int threads) {
  if (!ostf::has_rank(ids, 2) || !ostf::has_rank(map, 4) || threads < 1) return OSTF_EINVAL;
  if (activation != OSTF_NONE && activation != OSTF_RELU) return OSTF_EINVAL;
  const auto B = static_cast<int>(ids->shape[0]), K = static_cast<int>(ids->shape[1]);
  const auto F = static_cast<int>(map->shape[1]), O = static_cast<int>(map->shape[3]);
  if (O < 1 || F < 1 || F > 4096) return OSTF_EINVAL;
  if (map->dtype != OSTF_F32 && map->dtype != OSTF_BF16) return OSTF_EDTYPE;
  if (!ostf::is(taps, OSTF_F32, {B, K, kTaps, O}) || !ostf::is(ids, OSTF_I64, {B, K}) ||
      !ostf::is(bias, OSTF_F32, {O}) || !ostf::is(map, map->dtype, {B, F, F, O})) {
    return OSTF_EINVAL;
  }
  std::vector<int32_t> token_at;
  if (const int status = ostf::find_tokens_of_cells(ostf::data<const int64_t>(ids), B, K, F * F, token_at)) return status;
  const auto* given = ostf::data<const float>(taps);
  const auto* shift = ostf::data<const float>(bias);
  const bool relu = activation == OSTF_RELU;
  if (map->dtype == OSTF_F32) {
    add_up(given, token_at, shift, relu, ostf::data<float>(map), B, K, O, F, threads);
  } else {
    add_up(given, token_at, shift, relu, ostf::data<uint16_t>(map), B, K, O, F, threads);
  }
  return OSTF_OK;
}
