// Head maps to boxes on the CPU: one pass for the arg-max, then five loads.
#include "cpu/half.h"
#include "ostrack_fast.h"

namespace {

template <class E, class Load>
void decode(const E* score, const E* size, const E* offset, const float* window, float* box, float* best, int B, int F,
            Load load) {
  const int64_t cells = static_cast<int64_t>(F) * F;
  for (int64_t b = 0; b < B; ++b) {
    const E* scores = score + b * cells;
    int64_t cell = 0;
    float top = load(scores[0]) * (window ? window[0] : 1.0f);
    for (int64_t i = 1; i < cells; ++i) {
      const float response = load(scores[i]) * (window ? window[i] : 1.0f);
      // Strictly: the first of equals wins. NaN, which compares with nothing, gives way to any number.
      if (response > top || (top != top && response == response)) {
        top = response;
        cell = i;
      }
    }
    const E* offsets = offset + b * 2 * cells + cell;
    const E* sizes = size + b * 2 * cells + cell;
    box[b * 4 + 0] = (static_cast<float>(cell % F) + load(offsets[0])) / static_cast<float>(F);
    box[b * 4 + 1] = (static_cast<float>(cell / F) + load(offsets[cells])) / static_cast<float>(F);
    box[b * 4 + 2] = load(sizes[0]);
    box[b * 4 + 3] = load(sizes[cells]);
    best[b] = load(scores[cell]);
  }
}

}  // namespace

int ostf_cpu_decode(int dtype, const void* score, const void* size, const void* offset, const float* window, float* box,
                    float* best, int B, int F, int /*threads: a few hundred cells are done before a thread wakes*/) {
  if (B < 0 || F <= 0) return OSTF_EINVAL;
  switch (dtype) {
    case OSTF_F32:
      decode(static_cast<const float*>(score), static_cast<const float*>(size), static_cast<const float*>(offset),
             window, box, best, B, F, [](float v) { return v; });
      return OSTF_OK;
    case OSTF_F16:
      decode(static_cast<const uint16_t*>(score), static_cast<const uint16_t*>(size),
             static_cast<const uint16_t*>(offset), window, box, best, B, F, ostf::f16_to_float);
      return OSTF_OK;
    case OSTF_BF16:
      decode(static_cast<const uint16_t*>(score), static_cast<const uint16_t*>(size),
             static_cast<const uint16_t*>(offset), window, box, best, B, F, ostf::bf16_to_float);
      return OSTF_OK;
    default:
      return OSTF_EDTYPE;
  }
}
