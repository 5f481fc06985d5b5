// Head maps to boxes on the CPU: one pass for the arg-max, then five loads.
#include "cpu/half.h"
#include "tensor.h"

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
      // Strictly greater: the first of equal values wins, and any number replaces NaN.
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

// It runs on one thread, which is done with a few hundred cells before a second one would wake.
int ostf_cpu_decode(const ostf_tensor* score, const ostf_tensor* size, const ostf_tensor* offset,
                    const ostf_tensor* window, const ostf_tensor* box, const ostf_tensor* best, int /*threads*/) {
  if (!ostf::has_rank(score, 4)) return OSTF_EINVAL;
  const int dtype = score->dtype;
  if (!ostf::is_float(dtype)) return OSTF_EDTYPE;
  const int64_t B = score->shape[0], F = score->shape[3];
  if (F < 1 || F > 4096 || !ostf::is(score, dtype, {B, 1, F, F}) || !ostf::is(size, dtype, {B, 2, F, F}) ||
      !ostf::is(offset, dtype, {B, 2, F, F}) || (window && !ostf::is(window, OSTF_F32, {F, F})) ||
      !ostf::is(box, OSTF_F32, {B, 4}) || !ostf::is(best, OSTF_F32, {B})) {
    return OSTF_EINVAL;
  }
  const auto run = [&](auto element, auto load) {
    using E = const decltype(element);
    decode(ostf::data<E>(score), ostf::data<E>(size), ostf::data<E>(offset), ostf::data<const float>(window),
           ostf::data<float>(box), ostf::data<float>(best), static_cast<int>(B), static_cast<int>(F), load);
    return OSTF_OK;
  };
  if (dtype == OSTF_F32) return run(0.0f, [](float value) { return value; });
  return run(uint16_t{}, dtype == OSTF_F16 ? ostf::f16_to_float : ostf::bf16_to_float);
}
