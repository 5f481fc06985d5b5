// The parts of blocked attention that know only tiles: the main loop, the exponential, and the step from logits to
// exponentials. Included by attention_kernel.h once per instruction set, in an unnamed namespace as that is.
namespace {

// acc[r][v] += sum over k of a(r, k) * b(k, v): a is broadcast one K-group at a time, b is read a vector at a time.
// `interleaved` is called every few steps.
template <class S, int R, int V, class F>
OSTF_INLINE void multiply(const typename S::KGroup* a, ptrdiff_t a_row, ptrdiff_t a_step, const typename S::KGroup* b,
                          ptrdiff_t b_step, int steps, typename S::Vec (&acc)[R][V], F interleaved) {
  const auto step = [&]() OSTF_INLINED {
    typename S::KGroups right[V];
    OSTF_UNROLL for (int v = 0; v < V; ++v) right[v] = S::load_groups(b + v * S::kWidth);
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      const typename S::KGroups left = S::broadcast_group(a + r * a_row);
      OSTF_UNROLL for (int v = 0; v < V; ++v) S::dot(left, right[v], acc[r][v]);
    }
    a += a_step;
    b += b_step;
  };
  int k = 0;
  for (; k + 4 <= steps; k += 4) {
    OSTF_UNROLL for (int i = 0; i < 4; ++i) step();
    interleaved();
  }
  for (; k < steps; ++k) step();
}

template <class S, int R, int V>
OSTF_INLINE void clear(typename S::Vec (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = S::zero();
  }
}

// e^(difference / sqrt D) of a difference of logits. Without an S::exp2 it is 2^n p(f) where n is whole and |f| <= 1/2. p
// is the polynomial of minimax relative error, 2.6e-9, for 2^f with p(0) = 1.
template <class S>
struct SoftmaxExp {
  float rate;

  explicit SoftmaxExp(int D) : rate(static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(D)))) {}

  OSTF_INLINE typename S::Vec operator()(typename S::Vec difference) const {
    using Vec = typename S::Vec;
    Vec t = S::mul(difference, S::set(rate));
    if constexpr (S::kHasExp2) {
      return S::exp2(t);
    } else {
      constexpr float minimax[] = {1, 0.6931472150f, 0.2402265278f, 0.05550310551f, 0.009617692976f, 0.001340664385f,
                                   0.0001559467702f};
      t = S::min(S::set(126), S::max(S::set(-127), t));  // NaN stays NaN
      const Vec n = S::round(t), f = S::sub(t, n);
      Vec y = S::set(minimax[6]);
      OSTF_UNROLL for (int i = 5; i >= 0; --i) y = S::fma(y, f, S::set(minimax[i]));
      return S::scale(y, n);
    }
  }
};

// Replaces a tile of logits (R keys, queries) by their exponentials and adds these up over keys in `total`. One call
// does two keys of one vector of queries, so that the calls can be spread over the main loop of the next tile.
template <class S, int V, bool keep>
struct SoftmaxStep {
  static constexpr int Q = V * S::kWidth;
  float* s;
  typename S::KGroup* p;
  const float* running_max;
  float* total;
  const SoftmaxExp<S>& exponential;
  unsigned left;  // calls

  OSTF_INLINE void operator()() {
    if (left == 0) return;
    --left;
    const size_t v = left % V, pair = left / V;
    float* even = s + pair * 2 * Q + v * S::kWidth;
    const typename S::Vec middle = S::load(running_max + v * S::kWidth);
    const typename S::Vec first = exponential(S::sub(S::load(even), middle));
    const typename S::Vec second = exponential(S::sub(S::load(even + Q), middle));
    float* sum = total + v * S::kWidth;
    S::store(sum, S::add(S::load(sum), S::add(first, second)));
    S::store_pair(p + pair * (2 / S::kStep) * Q + v * S::kWidth, Q, first, second);
    if constexpr (keep) {
      S::store(even, first);
      S::store(even + Q, second);
    }
  }
};

// acc = logits of R keys
template <class S, int R, int V, class F>
OSTF_INLINE void logits(const typename S::KGroup* k, const typename S::KGroup* q, int groups,
                        typename S::Vec (&acc)[R][V], F interleaved) {
  constexpr int Q = V * S::kWidth;
  // Of many float32 products two sums of half the length, for less rounding error than one long chain of additions has.
  const int half = S::kStep == 1 && groups > 64 ? groups / 2 : 0;
  clear<S>(acc);
  if (half > 0) {
    multiply<S>(k, groups, 1, q, Q, half, acc, interleaved);
    float partial[R * Q];
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) S::store(partial + r * Q + v * S::kWidth, acc[r][v]);
    }
    clear<S>(acc);
    multiply<S>(k + half, groups, 1, q + half * Q, Q, groups - half, acc, interleaved);
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) {
        acc[r][v] = S::add(acc[r][v], S::load(partial + r * Q + v * S::kWidth));
      }
    }
  } else {
    multiply<S>(k, groups, 1, q, Q, groups, acc, interleaved);
  }
}

// running_max = max(running_max, logits of up to R keys). A NaN never enters; the exponentials pass it on.
template <class S, int R, int V>
OSTF_INLINE void update_max(const typename S::Vec (&acc)[R][V], int keys, float* running_max) {
  OSTF_UNROLL for (int v = 0; v < V; ++v) {
    typename S::Vec top = S::load(running_max + v * S::kWidth);
    OSTF_UNROLL for (int r = 0; r < R; ++r) top = r < keys ? S::max(acc[r][v], top) : top;
    S::store(running_max + v * S::kWidth, top);
  }
}

template <class S, int V>
OSTF_NOINLINE void update_max_of_block(const typename S::KGroup* k, const typename S::KGroup* q, int groups, int keys,
                                       float* running_max) {
  constexpr int R = S::rows(V);
  for (int i = 0; i < keys; i += R, k += R * groups) {
    typename S::Vec acc[R][V];
    logits<S>(k, q, groups, acc, []() OSTF_INLINED {});
    update_max<S>(acc, keys - i, running_max);
  }
}

}  // namespace
