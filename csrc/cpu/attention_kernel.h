// Blocked attention, written once over a small vector class S and compiled once per instruction set.
//
// For a block of queries the loop runs over blocks of keys with a running denominator (FlashAttention's online
// softmax, Dao et al. 2022). Queries lie along the vector lanes: the logits are kept transposed, (key, query), so
// sums need no operation across lanes, and K needs no transpose because its elements are broadcast.
//
// Weights are relative to a pivot, the largest of the query's first few logits. Only where a later one exceeds it so
// far that weights could overflow is the pivot raised, and what was summed before scaled down: hardly ever, and then
// the block is done again.
//
// Both products work on 4-byte "units": a float, or two neighbouring bf16 along the summed dimension (the operand of
// vdpbf16ps). S::kStep is the number of summed elements in a unit.
//
// Everything is in an unnamed namespace, and this file is included after the including file has switched the target
// instruction set on: with external linkage the linker could keep the AVX-512 copy of a helper for every caller.
namespace {

using ostf::AttentionCall;

constexpr int kKeys = 64;     // keys in a block; logits, probabilities and values of a block stay in the L1 cache
constexpr int kKeyAlign = 8;  // packed keys are padded with zeros to a multiple of the largest row tile
constexpr float kLowest = -3.402823466e38f;
constexpr float kLimit = 0x1p32f;  // a sum of weights above it moves the pivot

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class S>
constexpr int kLanes = S::kWidth * S::kMaxVectors;  // queries in a full block

// Where a worker's scratch space holds what, in units. Every part starts on a cache line.
template <class S>
struct Layout {
  int units, width, keys;  // units of a query or key, padded channels of a value row, padded keys
  size_t k, v, rows, q, s, p, o, history, state, total;

  Layout(int N, int D, bool with_score) {
    units = (D + S::kStep - 1) / S::kStep;
    width = round_up(D, S::kWidth);
    keys = round_up(N, kKeyAlign);
    size_t at = 0;
    const auto take = [&at](size_t count) {
      const size_t begin = at;
      at += (count + 15) / 16 * 16;
      return begin;
    };
    constexpr size_t Q = kLanes<S>;
    k = take(static_cast<size_t>(keys) * units);
    v = take(static_cast<size_t>(keys) / S::kStep * width);
    rows = take(Q * units);
    q = take(Q * units);
    s = take((with_score ? static_cast<size_t>(keys) : 8) * Q);
    p = take(kKeys / S::kStep * Q);
    o = take(Q * width);
    history = take((with_score ? static_cast<size_t>(keys + kKeys - 1) / kKeys : 1) * Q);
    state = take(4 * Q);
    total = at;
  }
};

// acc[r][v] += sum over k of a(r, k) * b(k, v): a is broadcast unit by unit, b is read a vector at a time.
// `meanwhile` is called every few steps.
template <class S, int R, int V, class F>
OSTF_INLINE void multiply(const typename S::Unit* a, ptrdiff_t a_row, ptrdiff_t a_step, const typename S::Unit* b,
                          ptrdiff_t b_step, int steps, typename S::Vec (&acc)[R][V], F meanwhile) {
  const auto step = [&]() OSTF_INLINED {
    typename S::Units right[V];
    OSTF_UNROLL for (int v = 0; v < V; ++v) right[v] = S::load_units(b + v * S::kWidth);
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      const typename S::Units left = S::broadcast_unit(a + r * a_row);
      OSTF_UNROLL for (int v = 0; v < V; ++v) S::dot(left, right[v], acc[r][v]);
    }
    a += a_step;
    b += b_step;
  };
  int k = 0;
  for (; k + 4 <= steps; k += 4) {
    OSTF_UNROLL for (int i = 0; i < 4; ++i) step();
    meanwhile();
  }
  for (; k < steps; ++k) step();
}

template <class S, int R, int V>
OSTF_INLINE void clear(typename S::Vec (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = S::zero();
  }
}

// The weight e^((s - pivot) / sqrt D) of a logit, from the difference. Where results are float32 it is 2^n p(rest): n
// is whole, one `step` halves or doubles the weight, and rest = difference - n * step lies within half a step; step
// is coarse + fine, and n * coarse is exact. p is the polynomial of minimax relative error, 2.6e-9, for 2^f, |f| <=
// 1/2, with p(0) = 1 and its argument rescaled.
template <class S>
struct Weight {
  float rate, coarse, fine, lowest, highest;
  float coefficient[7];

  explicit Weight(int D) {
    constexpr double minimax[] = {1, 0.6931472150, 0.2402265278, 0.05550310551, 0.009617692976, 0.001340664385,
                                  0.0001559467702};
    const double step = 0.6931471805599453 * std::sqrt(static_cast<double>(D));
    rate = static_cast<float>(1 / step);
    coarse = ostf::bits_float(ostf::float_bits(static_cast<float>(step)) & 0xffffff00);  // |n| < 256: room for 8 bits
    fine = static_cast<float>(step - coarse);
    lowest = static_cast<float>(S::kLowestExponent * step);
    highest = static_cast<float>(126 * step);
    double power = 1;
    for (int i = 0; i < 7; ++i, power /= step) coefficient[i] = static_cast<float>(minimax[i] * power);
  }

  OSTF_INLINE typename S::Vec operator()(typename S::Vec difference) const {
    using Vec = typename S::Vec;
    if constexpr (S::kStep == 2) {
      return S::exp2(S::mul(difference, S::set(rate)));
    } else {
      difference = S::min(S::set(highest), S::max(S::set(lowest), difference));  // NaN stays NaN
      const Vec n = S::round(S::mul(difference, S::set(rate)));
      Vec rest = S::subtract_product(difference, n, S::set(coarse));
      rest = S::subtract_product(rest, n, S::set(fine));
      Vec y = S::set(coefficient[6]);
      OSTF_UNROLL for (int i = 5; i >= 0; --i) y = S::fma(y, rest, S::set(coefficient[i]));
      return S::scale(y, n);
    }
  }
};

// A tile of logits (R keys, queries) becomes weights, added up over keys in `total`. One call does
// two keys of one vector of queries, so that the calls can be spread over the product that makes the next tile.
template <class S, int V, bool keep>
struct Weigh {
  static constexpr int Q = V * S::kWidth;
  float* s;
  typename S::Unit* p;
  const float* pivot;
  float* total;
  const Weight<S>& weight;
  unsigned left;  // calls

  OSTF_INLINE void operator()() {
    if (left == 0) return;
    --left;
    const size_t v = left % V, pair = left / V;
    float* even = s + pair * 2 * Q + v * S::kWidth;
    const typename S::Vec middle = S::load(pivot + v * S::kWidth);
    const typename S::Vec first = weight(S::sub(S::load(even), middle));
    const typename S::Vec second = weight(S::sub(S::load(even + Q), middle));
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
OSTF_INLINE void logits(const typename S::Unit* k, const typename S::Unit* q, int units,
                        typename S::Vec (&acc)[R][V], F meanwhile) {
  constexpr int Q = V * S::kWidth;
  // In float32 two sums of half the length, for less rounding error than one long chain of additions has.
  const int half = S::kStep == 1 ? units / 2 : 0;
  clear<S>(acc);
  if (half > 0) {
    multiply<S>(k, units, 1, q, Q, half, acc, meanwhile);
    float partial[R * Q];
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) S::store(partial + r * Q + v * S::kWidth, acc[r][v]);
    }
    clear<S>(acc);
    multiply<S>(k + half, units, 1, q + half * Q, Q, units - half, acc, meanwhile);
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) {
        acc[r][v] = S::add(acc[r][v], S::load(partial + r * Q + v * S::kWidth));
      }
    }
  } else {
    multiply<S>(k, units, 1, q, Q, units, acc, meanwhile);
  }
}

// pivot = max(pivot, logits of up to R keys). A NaN never enters; the weights pass it on.
template <class S, int R, int V>
OSTF_INLINE void raise(const typename S::Vec (&acc)[R][V], int keys, float* pivot) {
  OSTF_UNROLL for (int v = 0; v < V; ++v) {
    typename S::Vec top = S::load(pivot + v * S::kWidth);
    OSTF_UNROLL for (int r = 0; r < R; ++r) top = r < keys ? S::max(acc[r][v], top) : top;
    S::store(pivot + v * S::kWidth, top);
  }
}

template <class S, int V>
OSTF_NOINLINE void raise_all(const typename S::Unit* k, const typename S::Unit* q, int units, int keys, float* pivot) {
  constexpr int R = S::rows(V);
  for (int i = 0; i < keys; i += R, k += R * units) {
    typename S::Vec acc[R][V];
    logits<S>(k, q, units, acc, []() OSTF_INLINED {});
    raise<S>(acc, keys - i, pivot);
  }
}

// Where the first query, key and result of a head lie.
struct Head {
  int b, h;
  ptrdiff_t width;   // bytes of a query
  ptrdiff_t values;  // from a key to its value
  const char* q;
  const char* kv;
  char* out;
  bool last;  // no head after it
};

// A token or a few after the other on their way to the cache: where this head's results will go, and the next head's q,
// k and v. Their rows lie pages apart, which no processor foresees; and many at once would keep others waiting.
struct Fetch {
  const AttentionCall& call;
  const Head& head;
  int at, end;  // queries
  int share;    // keys for each

  OSTF_INLINE void operator()() {
    if (at == end) return;
    row<true>(head.out + at * (call.H * head.width));
    if (!head.last) {
      row<false>(head.q + at * call.q_row + head.width);
      for (int key = at * share; key < (at + 1) * share && key < call.N; ++key) {
        const char* next = head.kv + key * call.kv_row + head.width;
        row<false>(next);
        row<false>(next + head.values);
      }
    }
    ++at;
  }

  template <bool write>
  OSTF_INLINE void row(const char* from) const {
    for (ptrdiff_t byte = 0; byte < head.width; byte += 64) __builtin_prefetch(from + byte, write);
  }
};

// The weights p (key, query) of a block of keys, and `total` their sums over keys. The logits of a tile wait in s
// while the product of the next is taken: additions, roundings and permutations find their units free meanwhile. With
// `keep` s has room for all keys, and the weights stay there in float32. `first` raises the pivot to the first tile's
// logits.
template <class S, int V, bool keep>
OSTF_NOINLINE void weigh(const typename S::Unit* k, const typename S::Unit* q, int units, int keys, bool first,
                         float* s, typename S::Unit* p, float* pivot, const Weight<S>& weight, float* total,
                         Fetch& fetch) {
  constexpr int R = S::rows(V);
  constexpr int Q = V * S::kWidth;
  std::memset(total, 0, sizeof(float) * Q);
  Weigh<S, V, keep> job = {s, p, pivot, total, weight, 0};
  for (int i = 0; i < keys; i += R, k += R * units) {
    typename S::Vec acc[R][V];
    logits<S>(k, q, units, acc, [&]() OSTF_INLINED {
      if constexpr (S::kOverlap) job();
    });
    while (job.left > 0) job();
    fetch();
    if (i > 0) {
      job.p += R / S::kStep * Q;
      if constexpr (keep) job.s += R * Q;
    } else if (first) {
      raise<S>(acc, keys, pivot);
    }
    job.left = R / 2 * V;
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int v = 0; v < V; ++v) {
        S::store(job.s + r * Q + v * S::kWidth, i + r < keys ? acc[r][v] : S::set(-INFINITY));
      }
    }
  }
  while (job.left > 0) job();
}

// o (query, channel) += p' v, or = if `first`, for G vectors of channels, `queries` of the block's Q.
template <class S, int G>
OSTF_NOINLINE void accumulate(const typename S::Unit* p, int Q, const typename S::Unit* v, int width, int steps,
                              bool first, int queries, float* o) {
  constexpr int R = S::rows(G);
  for (int i = 0; i < queries; i += R) {
    typename S::Vec acc[R][G];
    float* to = o + i * width;
    if (first) {
      clear<S>(acc);
    } else {
      OSTF_UNROLL for (int r = 0; r < R; ++r) {
        OSTF_UNROLL for (int g = 0; g < G; ++g) acc[r][g] = S::load(to + r * width + g * S::kWidth);
      }
    }
    multiply<S>(p + i, 1, Q, v, width, steps, acc, []() OSTF_INLINED {});
    OSTF_UNROLL for (int r = 0; r < R; ++r) {
      OSTF_UNROLL for (int g = 0; g < G; ++g) S::store(to + r * width + g * S::kWidth, acc[r][g]);
    }
  }
}

template <class S>
void accumulate_all(const typename S::Unit* p, int Q, const typename S::Unit* v, int width, int steps, bool first,
                    int queries, float* o) {
  for (int at = 0; at < width;) {
    const int vectors = (width - at) / S::kWidth;
    if (S::kMaxVectors >= 4 && vectors >= 4) {
      accumulate<S, S::kMaxVectors >= 4 ? 4 : 1>(p, Q, v + at, width, steps, first, queries, o + at);
      at += 4 * S::kWidth;
    } else if (S::kMaxVectors >= 3 && vectors >= 3) {
      accumulate<S, S::kMaxVectors >= 3 ? 3 : 1>(p, Q, v + at, width, steps, first, queries, o + at);
      at += 3 * S::kWidth;
    } else if (vectors >= 2) {
      accumulate<S, 2>(p, Q, v + at, width, steps, first, queries, o + at);
      at += 2 * S::kWidth;
    } else {
      accumulate<S, 1>(p, Q, v + at, width, steps, first, queries, o + at);
      at += S::kWidth;
    }
  }
}

// rows (Q, units) -> q (units, Q)
template <class S>
void transpose(const typename S::Unit* rows, int units, int Q, typename S::Unit* q) {
  constexpr int W = S::kWidth;
  int u = 0;
  for (; u + W <= units; u += W) {
    for (int i = 0; i < Q; i += W) S::transpose_tile(rows + i * units + u, units, q + u * Q + i, Q);
  }
  for (; u < units; ++u) {
    for (int i = 0; i < Q; ++i) q[u * Q + i] = rows[i * units + u];
  }
}

// The score share of a block: for each search key the sum of its probabilities over the chosen rows. s holds the
// weights with the pivot as it was at that block of keys, `history` those pivots. Lanes that are not chosen are
// cleared bit by bit: a product with 0 would let their NaN through.
template <class S, int V>
void score_share(const float* s, const float* history, const float* pivot, const float* sum, const uint8_t* chosen,
                 int rows, const Weight<S>& weight, int first_key, int N, float* share) {
  constexpr int Q = V * S::kWidth;
  uint32_t bits[Q];
  for (int i = 0; i < Q; ++i) bits[i] = i < rows && chosen[i] ? UINT32_MAX : 0;
  for (int key = first_key; key < N;) {
    const int block = key / kKeys;
    const int end = (block + 1) * kKeys < N ? (block + 1) * kKeys : N;
    typename S::Vec factor[V];
    for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
      const typename S::Vec difference = S::sub(S::load(history + block * Q + at), S::load(pivot + at));
      factor[v] = S::div(weight(difference), S::load(sum + at));
    }
    for (; key < end; ++key) {
      typename S::Vec total = S::zero();
      for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
        const typename S::Vec p = S::mul(S::load(s + static_cast<ptrdiff_t>(key) * Q + at), factor[v]);
        total = S::add(total, S::keep(p, bits + at));
      }
      share[key - first_key] = S::across(total);
    }
  }
}


template <class S, int V>
void query_block(const AttentionCall& call, const Head& head, const Layout<S>& layout, int block,
                 typename S::Unit* scratch) {
  constexpr int Q = V * S::kWidth;
  using Unit = typename S::Unit;
  const int N = call.N, D = call.D;
  const int first = block * kLanes<S>;
  const int queries = call.M - first < Q ? call.M - first : Q;
  const Unit* k = scratch + layout.k;
  const Unit* v = scratch + layout.v;
  Unit* rows = scratch + layout.rows;
  Unit* q = scratch + layout.q;
  Unit* p = scratch + layout.p;
  float* s = reinterpret_cast<float*>(scratch + layout.s);
  float* o = reinterpret_cast<float*>(scratch + layout.o);
  float* history = reinterpret_cast<float*>(scratch + layout.history);
  float* pivot = reinterpret_cast<float*>(scratch + layout.state);
  float* sum = pivot + Q;
  float* total = sum + Q;
  float* fade = total + Q;
  const Weight<S> weight(D);

  const uint8_t* chosen = nullptr;
  if (call.mask && first < call.T) {
    const uint8_t* mask = call.mask + (call.mask_batch > 1 ? static_cast<ptrdiff_t>(head.b) * call.T : 0) + first;
    const int end = call.T - first < queries ? call.T - first : queries;
    for (int i = 0; i < end; ++i) {
      if (mask[i]) chosen = mask;
    }
  }

  for (int i = 0; i < queries; ++i) {
    S::pack_row(call.dtype, head.q + (first + i) * call.q_row, D, rows + i * layout.units);
  }
  std::memset(static_cast<void*>(rows + queries * layout.units), 0, sizeof(Unit) * (Q - queries) * layout.units);
  transpose<S>(rows, layout.units, Q, q);
  for (int i = 0; i < Q; ++i) {
    pivot[i] = kLowest;  // finite: a row of -inf divides 0 by 0, as softmax does, but leading -inf do no harm
    sum[i] = 0.0f;
  }

  Fetch fetch = {call, head, first, first + queries, (N + call.M - 1) / call.M};
  for (int key = 0; key < N; key += kKeys) {
    const int keys = N - key < kKeys ? N - key : kKeys;
    const Unit* block_k = k + static_cast<ptrdiff_t>(key) * layout.units;
    for (;;) {
      if (chosen) {
        float* tile = s + static_cast<ptrdiff_t>(key) * Q;
        weigh<S, V, true>(block_k, q, layout.units, keys, key == 0, tile, p, pivot, weight, total, fetch);
      } else {
        weigh<S, V, false>(block_k, q, layout.units, keys, key == 0, s, p, pivot, weight, total, fetch);
      }
      typename S::Vec top = S::zero();
      for (int i = 0; i < Q; i += S::kWidth) top = S::max(S::load(total + i), top);
      if (!(S::across(top) > kLimit)) break;
      std::memcpy(fade, pivot, sizeof(float) * Q);
      raise_all<S, V>(block_k, q, layout.units, keys, pivot);
      for (int i = 0; i < Q; i += S::kWidth) {
        S::store(fade + i, weight(S::sub(S::load(fade + i), S::load(pivot + i))));
        S::store(sum + i, S::mul(S::load(sum + i), S::load(fade + i)));
      }
      for (int i = 0; key > 0 && i < queries; ++i) {
        for (int d = 0; d < layout.width; ++d) o[i * layout.width + d] *= fade[i];
      }
    }
    for (int i = 0; i < Q; ++i) sum[i] += total[i];
    if (chosen) std::memcpy(history + key / kKeys * Q, pivot, sizeof(float) * Q);
    accumulate_all<S>(p, Q, v + static_cast<ptrdiff_t>(key) / S::kStep * layout.width, layout.width,
                      (keys + S::kStep - 1) / S::kStep, key == 0, queries, o);
  }

  for (int i = 0; i < queries; ++i) {
    S::unpack_row(call.dtype, o + i * layout.width, 1.0f / sum[i], D,
                     head.out + (first + i) * (call.H * head.width));
  }
  if (call.lse) {
    float* lse = call.lse + (static_cast<ptrdiff_t>(head.b) * call.H + head.h) * call.M + first;
    for (int i = 0; i < queries; ++i) {
      lse[i] = pivot[i] / std::sqrt(static_cast<float>(D)) + std::log(sum[i]);
    }
  }
  if (chosen) {
    const int template_blocks = (call.T + kLanes<S> - 1) / kLanes<S>;
    const ptrdiff_t place = (static_cast<ptrdiff_t>(head.b) * call.H + head.h) * template_blocks + block;
    const int rows_left = call.T - first < queries ? call.T - first : queries;
    score_share<S, V>(s, history, pivot, sum, chosen, rows_left, weight, call.T, N,
                      call.shares + place * (N - call.T));
  }
}

template <class S>
void run(const AttentionCall& call, int b, int h, int first_block, int last_block, void* memory) {
  using Unit = typename S::Unit;
  const Layout<S> layout(call.N, call.D, call.mask != nullptr);
  Unit* scratch = static_cast<Unit*>(memory);
  const ptrdiff_t width = static_cast<ptrdiff_t>(call.D) * (call.dtype == OSTF_F32 ? 4 : 2);
  const Head head = {b, h, width, call.H * width, call.q + b * call.q_item + h * width,
                     call.kv + b * call.kv_item + h * width, call.out + b * call.out_item + h * width, h + 1 == call.H};

  for (int i = 0; i < call.N; ++i) {
    S::pack_row(call.dtype, head.kv + i * call.kv_row, call.D,
                scratch + layout.k + static_cast<ptrdiff_t>(i) * layout.units);
  }
  std::memset(static_cast<void*>(scratch + layout.k + static_cast<ptrdiff_t>(call.N) * layout.units), 0,
              sizeof(Unit) * (layout.keys - call.N) * layout.units);
  for (int i = 0; i < call.N; i += S::kStep) {
    Unit* to = scratch + layout.v + static_cast<ptrdiff_t>(i / S::kStep) * layout.width;
    const char* value = head.kv + i * call.kv_row + head.values;
    S::pack_values(call.dtype, value, i + 1 < call.N ? value + call.kv_row : nullptr, call.D, to);
    for (int d = call.D; d < layout.width; ++d) to[d] = 0;
  }

  for (int block = first_block; block < last_block; ++block) {
    const int left = call.M - block * kLanes<S>;
    const int vectors = left >= kLanes<S> ? S::kMaxVectors : (left + S::kWidth - 1) / S::kWidth;
    switch (vectors) {
      case 1: query_block<S, 1>(call, head, layout, block, scratch); break;
      case 2: query_block<S, 2>(call, head, layout, block, scratch); break;
      case 3: query_block<S, S::kMaxVectors >= 3 ? 3 : 1>(call, head, layout, block, scratch); break;
      default: query_block<S, S::kMaxVectors >= 4 ? 4 : 1>(call, head, layout, block, scratch); break;
    }
  }
}

template <class S>
size_t scratch_bytes(int N, int D, bool with_score) {
  return sizeof(typename S::Unit) * Layout<S>(N, D, with_score).total;
}

template <class S>
constexpr ostf::AttentionKernel make_kernel() {
  return {kLanes<S>, scratch_bytes<S>, run<S>};
}

}  // namespace
