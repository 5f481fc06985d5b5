// Blocked attention, written once over a small vector class S and compiled once per instruction set.
//
// For a block of queries the loop runs over blocks of keys with a running maximum and denominator (FlashAttention's
// online softmax, Dao et al. 2022). Queries lie along the vector lanes: the logits are kept transposed, (key, query),
// so maximum and sum need no operation across lanes, and K needs no transpose because its elements are broadcast.
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
    s = take((with_score ? static_cast<size_t>(keys) : kKeys) * Q);
    p = S::kStep == 1 ? s : take(kKeys / S::kStep * Q);
    o = take(Q * width);
    history = take((with_score ? static_cast<size_t>(keys + kKeys - 1) / kKeys : 1) * Q);
    state = take(4 * Q);
    total = at;
  }
};

// acc[r][v] += sum over k of a(r, k) * b(k, v): a is broadcast unit by unit, b is read a vector at a time.
template <class S, int R, int V>
OSTF_INLINE void multiply(const typename S::Unit* a, ptrdiff_t a_row, ptrdiff_t a_step, const typename S::Unit* b,
                          ptrdiff_t b_step, int steps, typename S::Vec (&acc)[R][V]) {
  for (int k = 0; k < steps; ++k, a += a_step, b += b_step) {
    typename S::Units right[V];
    for (int v = 0; v < V; ++v) right[v] = S::load_units(b + v * S::kWidth);
    for (int r = 0; r < R; ++r) {
      const typename S::Units left = S::broadcast_unit(a + r * a_row);
      for (int v = 0; v < V; ++v) acc[r][v] = S::dot(left, right[v], acc[r][v]);
    }
  }
}

template <class S, int R, int V>
OSTF_INLINE void clear(typename S::Vec (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = S::zero();
  }
}

// Logits s (key, query) of one block of keys, and their running maximum over keys. A NaN never enters the maximum; the
// exponential passes it on.
template <class S, int V>
void logits(const typename S::Unit* k, const typename S::Unit* q, int units, int keys, float* s, float* maximum) {
  constexpr int R = S::rows(V);
  constexpr int Q = V * S::kWidth;
  // In float32 two sums of half the length, for less rounding error than one long chain of additions has.
  const int half = S::kStep == 1 ? units / 2 : 0;
  typename S::Vec best[V];
  for (int v = 0; v < V; ++v) best[v] = S::load(maximum + v * S::kWidth);
  for (int i = 0; i < keys; i += R, k += R * units, s += R * Q) {
    typename S::Vec acc[R][V];
    clear<S>(acc);
    if (half > 0) {
      multiply<S>(k, units, 1, q, Q, half, acc);
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) S::store(s + r * Q + v * S::kWidth, acc[r][v]);
      }
      clear<S>(acc);
    }
    multiply<S>(k + half, units, 1, q + half * Q, Q, units - half, acc);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        float* at = s + r * Q + v * S::kWidth;
        if (half > 0) acc[r][v] = S::add(acc[r][v], S::load(at));
        S::store(at, acc[r][v]);
        if (i + r < keys) best[v] = S::max(acc[r][v], best[v]);
      }
    }
  }
  for (int v = 0; v < V; ++v) S::store(maximum + v * S::kWidth, best[v]);
}

// e^(drop / sqrt D) for drop <= 0, computed as 2^n p(rest): n is whole, one `step` of drop halves the result, and
// rest = drop - n * step lies within half a step. p is the polynomial of minimax relative error for 2^f, |f| <= 1/2,
// with p(0) = 1 and its argument rescaled. For float32 results a step is coarse + fine, and n * coarse is exact.
template <class S>
struct Decay {
  static constexpr int kDegree = S::kStep == 1 ? 6 : 4;
  float rate, coarse, fine;
  float lowest;  // drops below this count as this, where the result has become 0
  float coefficient[kDegree + 1];

  explicit Decay(int D) {
    // Relative errors 2.6e-9 and, where the result is rounded to bf16 (500 times coarser), 3.6e-6.
    constexpr double degree6[] = {1, 0.6931472150, 0.2402265278, 0.05550310551, 0.009617692976, 0.001340664385,
                                  0.0001559467702};
    constexpr double degree4[] = {1, 0.6931136045, 0.2402071110, 0.05597688315, 0.009782911187};
    const double step = 0.6931471805599453 * std::sqrt(static_cast<double>(D));
    rate = static_cast<float>(1 / step);
    coarse = static_cast<float>(step);
    if (S::kStep == 1) coarse = ostf::bits_float(ostf::float_bits(coarse) & 0xffffff00);  // |n| < 256: room for 8 bits
    fine = static_cast<float>(step - coarse);
    lowest = static_cast<float>(S::kLowestExponent * step);
    double power = 1;
    for (int i = 0; i <= kDegree; ++i, power /= step) {
      coefficient[i] = static_cast<float>((S::kStep == 1 ? degree6[i] : degree4[i]) * power);
    }
  }

  OSTF_INLINE typename S::Vec operator()(typename S::Vec drop) const {
    using Vec = typename S::Vec;
    drop = S::max(S::set(lowest), drop);  // NaN stays NaN
    const Vec n = S::round(S::mul(drop, S::set(rate)));
    Vec rest = S::subtract_product(drop, n, S::set(coarse));
    if constexpr (S::kStep == 1) rest = S::subtract_product(rest, n, S::set(fine));
    Vec y = S::set(coefficient[kDegree]);
    for (int i = kDegree - 1; i >= 0; --i) y = S::fma(y, rest, S::set(coefficient[i]));
    return S::scale(y, n);
  }
};

// Turns the logits of a block into p = e^((s - maximum) / sqrt D); sum = sum * fade + their sum over keys. With `keep`
// the float32 values stay in s even where the product works on rounded ones.
template <class S, int V, bool keep>
void probabilities(float* s, typename S::Unit* p, int keys, const float* maximum, const Decay<S>& decay,
                   const float* fade, float* sum) {
  constexpr int Q = V * S::kWidth;
  typename S::Vec total[V];
  for (int v = 0; v < V; ++v) total[v] = S::zero();
  for (int i = 0; i < keys; i += 2) {
    const bool pair = i + 1 < keys;
    for (int v = 0; v < V; ++v) {
      float* even = s + i * Q + v * S::kWidth;
      const typename S::Vec top = S::load(maximum + v * S::kWidth);
      const typename S::Vec first = decay(S::sub(S::load(even), top));
      const typename S::Vec second = pair ? decay(S::sub(S::load(even + Q), top)) : S::zero();
      total[v] = S::add(total[v], S::add(first, second));
      if constexpr (S::kStep == 1 || keep) {
        S::store(even, first);
        S::store(even + Q, second);
      }
      if constexpr (S::kStep == 2) S::store_pair(p + i / 2 * Q + v * S::kWidth, first, second);
    }
  }
  for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
    S::store(sum + at, S::fma(S::load(sum + at), S::load(fade + at), total[v]));
  }
}

// o (query, channel) = o * fade[query] + p' v for G vectors of channels, `queries` of the block's Q.
template <class S, int G>
void accumulate(const typename S::Unit* p, int Q, const typename S::Unit* v, int width, int steps, const float* fade,
                int queries, float* o) {
  constexpr int R = S::rows(G);
  for (int i = 0; i < queries; i += R) {
    typename S::Vec acc[R][G];
    clear<S>(acc);
    multiply<S>(p + i, 1, Q, v, width, steps, acc);
    for (int r = 0; r < R; ++r) {
      const typename S::Vec keep = S::set(fade[i + r]);
      for (int g = 0; g < G; ++g) {
        float* at = o + (i + r) * width + g * S::kWidth;
        S::store(at, S::fma(S::load(at), keep, acc[r][g]));
      }
    }
  }
}

template <class S>
void accumulate_all(const typename S::Unit* p, int Q, const typename S::Unit* v, int width, int steps,
                    const float* fade, int queries, float* o) {
  for (int at = 0; at < width;) {
    const int vectors = (width - at) / S::kWidth;
    if (S::kMaxVectors >= 4 && vectors >= 4) {
      accumulate<S, S::kMaxVectors >= 4 ? 4 : 1>(p, Q, v + at, width, steps, fade, queries, o + at);
      at += 4 * S::kWidth;
    } else if (S::kMaxVectors >= 3 && vectors >= 3) {
      accumulate<S, S::kMaxVectors >= 3 ? 3 : 1>(p, Q, v + at, width, steps, fade, queries, o + at);
      at += 3 * S::kWidth;
    } else if (vectors >= 2) {
      accumulate<S, 2>(p, Q, v + at, width, steps, fade, queries, o + at);
      at += 2 * S::kWidth;
    } else {
      accumulate<S, 1>(p, Q, v + at, width, steps, fade, queries, o + at);
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

// The score share of a block: for each search key the sum of its probabilities over the chosen rows. s holds
// e^((s - m) / sqrt D) with the maximum m as it was at that block of keys, `history` those maxima. Lanes that are not
// chosen are cleared bit by bit: a product with 0 would let their NaN through.
template <class S, int V>
void score_share(const float* s, const float* history, const float* maximum, const float* sum, const uint8_t* chosen,
                 int rows, const Decay<S>& decay, int first_key, int N, float* share) {
  constexpr int Q = V * S::kWidth;
  uint32_t bits[Q];
  for (int i = 0; i < Q; ++i) bits[i] = i < rows && chosen[i] ? UINT32_MAX : 0;
  for (int key = first_key; key < N;) {
    const int block = key / kKeys;
    const int end = (block + 1) * kKeys < N ? (block + 1) * kKeys : N;
    typename S::Vec weight[V];
    for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
      const typename S::Vec drop = S::sub(S::load(history + block * Q + at), S::load(maximum + at));
      weight[v] = S::div(decay(drop), S::load(sum + at));
    }
    for (; key < end; ++key) {
      typename S::Vec total = S::zero();
      for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
        const typename S::Vec p = S::mul(S::load(s + static_cast<ptrdiff_t>(key) * Q + at), weight[v]);
        total = S::add(total, S::keep(p, bits + at));
      }
      share[key - first_key] = S::across(total);
    }
  }
}

struct Head {
  int b, h;
  ptrdiff_t token;   // bytes from one token's q to the next one's
  const char* base;  // q of token 0
};

template <class S, int V>
void query_block(const AttentionCall& call, const Head& head, const Layout<S>& layout, int block,
                 typename S::Unit* scratch) {
  constexpr int Q = V * S::kWidth;
  using Unit = typename S::Unit;
  const int N = call.N, D = call.D;
  const int first = block * kLanes<S>;
  const int queries = N - first < Q ? N - first : Q;
  const Unit* k = scratch + layout.k;
  const Unit* v = scratch + layout.v;
  Unit* rows = scratch + layout.rows;
  Unit* q = scratch + layout.q;
  Unit* p = scratch + layout.p;
  float* s = reinterpret_cast<float*>(scratch + layout.s);
  float* o = reinterpret_cast<float*>(scratch + layout.o);
  float* history = reinterpret_cast<float*>(scratch + layout.history);
  float* maximum = reinterpret_cast<float*>(scratch + layout.state);
  float* sum = maximum + Q;
  float* fade = sum + Q;
  float* before = fade + Q;
  const Decay<S> decay(D);

  const uint8_t* chosen = nullptr;
  if (call.mask && first < call.T) {
    const uint8_t* mask = call.mask + (call.mask_batch > 1 ? static_cast<ptrdiff_t>(head.b) * call.T : 0) + first;
    const int end = call.T - first < queries ? call.T - first : queries;
    for (int i = 0; i < end; ++i) {
      if (mask[i]) chosen = mask;
    }
  }

  for (int i = 0; i < queries; ++i) {
    S::pack_row(call.dtype, head.base + (first + i) * head.token, D, rows + i * layout.units);
  }
  std::memset(static_cast<void*>(rows + queries * layout.units), 0, sizeof(Unit) * (Q - queries) * layout.units);
  transpose<S>(rows, layout.units, Q, q);
  std::memset(o, 0, sizeof(float) * Q * layout.width);
  for (int i = 0; i < Q; ++i) {
    maximum[i] = kLowest;  // finite: a row of -inf divides 0 by 0, as softmax does, but leading -inf do no harm
    sum[i] = 0.0f;
  }

  for (int key = 0; key < N; key += kKeys) {
    const int keys = N - key < kKeys ? N - key : kKeys;
    float* tile = chosen ? s + static_cast<ptrdiff_t>(key) * Q : s;
    std::memcpy(before, maximum, sizeof(float) * Q);
    logits<S, V>(k + static_cast<ptrdiff_t>(key) * layout.units, q, layout.units, keys, tile, maximum);
    for (int j = 0; j < Q; j += S::kWidth) {
      const typename S::Vec drop = S::sub(S::load(before + j), S::load(maximum + j));
      S::store(fade + j, decay(drop));
    }
    Unit* weights = S::kStep == 1 ? reinterpret_cast<Unit*>(tile) : p;
    if (chosen) {
      std::memcpy(history + key / kKeys * Q, maximum, sizeof(float) * Q);
      probabilities<S, V, true>(tile, weights, keys, maximum, decay, fade, sum);
    } else {
      probabilities<S, V, false>(tile, weights, keys, maximum, decay, fade, sum);
    }
    accumulate_all<S>(weights, Q, v + static_cast<ptrdiff_t>(key) / S::kStep * layout.width, layout.width,
                      (keys + S::kStep - 1) / S::kStep, fade, queries, o);
  }

  char* out = static_cast<char*>(call.out) +
              ((static_cast<ptrdiff_t>(head.b) * N + first) * call.H + head.h) * D * (call.dtype == OSTF_F32 ? 4 : 2);
  for (int i = 0; i < queries; ++i) {
    S::unpack_row(call.dtype, o + i * layout.width, 1.0f / sum[i], D, out + i * (head.token / 3));
  }
  if (call.lse) {
    float* lse = call.lse + (static_cast<ptrdiff_t>(head.b) * call.H + head.h) * N + first;
    for (int i = 0; i < queries; ++i) {
      lse[i] = maximum[i] / std::sqrt(static_cast<float>(D)) + std::log(sum[i]);
    }
  }
  if (chosen) {
    const int template_blocks = (call.T + kLanes<S> - 1) / kLanes<S>;
    const ptrdiff_t place = (static_cast<ptrdiff_t>(head.b) * call.H + head.h) * template_blocks + block;
    const int rows_left = call.T - first < queries ? call.T - first : queries;
    score_share<S, V>(s, history, maximum, sum, chosen, rows_left, decay, call.T, N,
                      call.shares + place * (N - call.T));
  }
}

template <class S>
void run(const AttentionCall& call, int b, int h, int first_block, int last_block, void* memory) {
  using Unit = typename S::Unit;
  const Layout<S> layout(call.N, call.D, call.mask != nullptr);
  Unit* scratch = static_cast<Unit*>(memory);
  const ptrdiff_t row = static_cast<ptrdiff_t>(call.D) * (call.dtype == OSTF_F32 ? 4 : 2);
  const ptrdiff_t token = 3 * call.H * row;
  const char* q = static_cast<const char*>(call.qkv) + b * call.N * token + h * row;
  const char* keys = q + call.H * row;
  const char* values = keys + call.H * row;

  for (int i = 0; i < call.N; ++i) {
    S::pack_row(call.dtype, keys + i * token, call.D, scratch + layout.k + static_cast<ptrdiff_t>(i) * layout.units);
  }
  std::memset(static_cast<void*>(scratch + layout.k + static_cast<ptrdiff_t>(call.N) * layout.units), 0,
              sizeof(Unit) * (layout.keys - call.N) * layout.units);
  for (int i = 0; i < call.N; i += S::kStep) {
    Unit* to = scratch + layout.v + static_cast<ptrdiff_t>(i / S::kStep) * layout.width;
    S::pack_values(call.dtype, values + i * token, i + 1 < call.N ? values + (i + 1) * token : nullptr, call.D, to);
    for (int d = call.D; d < layout.width; ++d) to[d] = 0;
  }

  const Head head = {b, h, token, q};
  for (int block = first_block; block < last_block; ++block) {
    const int left = call.N - block * kLanes<S>;
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
