// The end of a 3 x 3 convolution over restored tokens: each place of the map adds what its neighbours give it.
#include <algorithm>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/cells.h"
#include "ostrack_fast.h"

namespace {

constexpr int kTaps = 9;
constexpr int kChannels = 64;  // summed at once, in registers or the nearest cache

void store(float value, float* to) { *to = value; }
void store(float value, uint16_t* to) { *to = ostf::float_to_bf16(value); }

// The products of the up to nine tokens that reach place (y, x), each with the tap that looks at it from there.
int neighbours(const float* products, const int32_t* token_at, int F, int O, int y, int x, const float** found) {
  int count = 0;
  for (int tap = 0; tap < kTaps; ++tap) {
    const int row = y + tap / 3 - 1, column = x + tap % 3 - 1;
    if (row < 0 || row >= F || column < 0 || column >= F) continue;
    const int64_t token = token_at[row * F + column];
    if (token >= 0) found[count++] = products + (token * kTaps + tap) * O;
  }
  return count;
}

template <class To>
void add_up(const float* products, const std::vector<int32_t>& token_at, const float* bias, bool relu, To* map, int B,
            int K, int O, int F, int threads) {
  const int64_t places = static_cast<int64_t>(F) * F;
  ostf::parallel_for(B * places, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t b = at / places;
      const int place = static_cast<int>(at % places);
      const float* found[kTaps];
      const int count = neighbours(products + b * K * kTaps * O, token_at.data() + b * places, F, O, place / F,
                                   place % F, found);
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

int ostf_cpu_restore_conv3x3(const float* products, const int64_t* ids, const float* bias, int map_dtype, void* map,
                             int B, int K, int O, int F, int activation, int threads) {
  if (B < 0 || K < 0 || O < 1 || F < 1 || F > 4096 || threads < 1) return OSTF_EINVAL;
  if (activation != 0 && activation != 2) return OSTF_EINVAL;
  if (map_dtype != OSTF_F32 && map_dtype != OSTF_BF16) return OSTF_EDTYPE;
  std::vector<int32_t> token_at;
  if (const int status = ostf::find_tokens_of_cells(ids, B, K, F * F, token_at)) return status;
  const bool relu = activation == 2;
  if (map_dtype == OSTF_F32) {
    add_up(products, token_at, bias, relu, static_cast<float*>(map), B, K, O, F, threads);
  } else {
    add_up(products, token_at, bias, relu, static_cast<uint16_t*>(map), B, K, O, F, threads);
  }
  return OSTF_OK;
}
