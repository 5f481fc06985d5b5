// What the head's last layer gives each cell, as maps of probabilities and offsets.
#include <cmath>

#include "tensor.h"

namespace {

constexpr float kLowest = 1e-4f, kHighest = 1.0f - 1e-4f;

float probability(float x) {
  const float p = 1.0f / (1.0f + std::exp(-x));
  return p < kLowest ? kLowest : p > kHighest ? kHighest : p;  // NaN is neither
}

}  // namespace

// It runs on one thread, which is done with a few hundred cells before a second one would wake.
int ostf_cpu_head_maps(const ostf_tensor* rows, const ostf_tensor* maps, int /*threads*/) {
  if (!ostf::has_rank(rows, 3) || !ostf::has_rank(maps, 4)) return OSTF_EINVAL;
  const int64_t B = rows->shape[0], F = maps->shape[3];
  constexpr int64_t kPlanes = 5;
  if (F < 1 || F > 4096 || !ostf::is(rows, OSTF_F32, {B, F * F, kPlanes}) ||
      !ostf::is(maps, OSTF_F32, {B, kPlanes, F, F})) {
    return OSTF_EINVAL;
  }
  const auto* from = ostf::data<const float>(rows);
  auto* to = ostf::data<float>(maps);
  for (int64_t b = 0; b < B; ++b, from += F * F * kPlanes) {
    for (int64_t plane = 0; plane < kPlanes; ++plane, to += F * F) {
      const bool offset = plane == 1 || plane == 2;
      for (int64_t cell = 0; cell < F * F; ++cell) {
        const float x = from[cell * kPlanes + plane];
        to[cell] = offset ? x : probability(x);
      }
    }
  }
  return OSTF_OK;
}
