// GELU of an array and its gradient, compiled once per instruction set as linear_kernel.h is.
#include "cpu/gelu_simd.h"

namespace {

OSTF_INLINE void put(float* to, Lanes lanes, Vec x) { store_lanes(to, lanes, x); }
OSTF_INLINE void put(uint16_t* to, Lanes lanes, Vec x) { store_lanes(to, lanes, round_to_bf16(x)); }

// to[i] = function(x[i], grad[i]); grad may be null where the function does not read it.
template <class T, class F>
OSTF_INLINE void each(const void* x, const void* grad, void* to, int64_t count, F function) {
  const T* from = static_cast<const T*>(x);
  const T* with = static_cast<const T*>(grad ? grad : x);
  T* out = static_cast<T*>(to);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    put(out + i, kAllLanes, function(load_full(from + i), load_full(with + i)));
  }
  if (i == count) return;
  const Lanes lanes = first_lanes(static_cast<int>(count - i));
  put(out + i, lanes, function(load_lanes(from + i, lanes), load_lanes(with + i, lanes)));
}

template <class T>
void gelu_of(const void* x, const void* grad, void* to, int64_t count) {
  if (grad) {
    each<T>(x, grad, to, count, [](Vec x, Vec grad) OSTF_INLINED { return mul(grad, gelu_slope(x)); });
  } else {
    each<T>(x, grad, to, count, [](Vec x, Vec) OSTF_INLINED { return gelu(x); });
  }
}

}  // namespace
