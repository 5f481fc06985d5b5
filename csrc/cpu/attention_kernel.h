// Blocked attention, written once over a small vector class S and compiled once per instruction set.
//
// For a block of queries the loop runs over blocks of keys with a running denominator (FlashAttention's online
// softmax, Dao et al. 2022). Queries lie along the vector lanes: the logits are kept transposed, (key, query), so
// sums need no operation across lanes, and K needs no transpose because its elements are broadcast.
//
// The running maximum is updated lazily: it is the largest of the query's first few logits. Only where a later logit
// exceeds it so far that exponentials could overflow is it raised; the sums so far are then rescaled and the block is
// repeated, which is rare.
//
// Both matmuls work on K-groups of 4 bytes: a float, or two neighbouring bf16 along the summed dimension (the operand
// of vdpbf16ps). S::kStep is the number of summed elements in a K-group.
//
// Everything is in an unnamed namespace, and this file is included after the including file has switched the target
// instruction set on: with external linkage the linker could keep the AVX-512 copy of a helper for every caller.
#include "cpu/attention_softmax.h"

namespace {

using ostf::AttentionCall;

constexpr int kKeys = 64;     // keys in a block; logits, probabilities and values of a block stay in the L1 cache
constexpr int kKeyAlign = 8;  // packed keys are padded with zeros to a multiple of the largest row tile
constexpr float kLowest = -3.402823466e38f;
constexpr float kLimit = 0x1p32f;  // a sum of exponentials above it raises the running maximum

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class S>
constexpr int kLanes = S::kWidth * S::kMaxVectors;  // queries in a full block

// The offsets of a worker's scratch space, in K-groups. Every part starts on a cache line.
template <class S>
struct Layout {
  int groups, width, keys;  // K-groups of a query or key, padded channels of a value row, padded keys
  size_t k, v, rows, q, s, p, o, block_max, state, total;

  Layout(int N, int D, bool with_score) {
    groups = (D + S::kStep - 1) / S::kStep;
    width = round_up(D, S::kWidth);
    keys = round_up(N, kKeyAlign);
    size_t at = 0;
    const auto take = [&at](size_t count) {
      const size_t begin = at;
      at += (count + 15) / 16 * 16;
      return begin;
    };
    constexpr size_t Q = kLanes<S>;
    k = take(static_cast<size_t>(keys) * groups);
    v = take(static_cast<size_t>(keys) / S::kStep * width);
    rows = take(Q * groups);
    q = take(Q * groups);
    s = take((with_score ? static_cast<size_t>(keys) : 8) * Q);
    p = take(kKeys / S::kStep * Q);
    o = take(Q * width);
    block_max = take((with_score ? static_cast<size_t>(keys + kKeys - 1) / kKeys : 1) * Q);
    state = take(4 * Q);
    total = at;
  }
};

// The addresses of a head's first query, key and result.
struct Head {
  int b, h;
  ptrdiff_t width;   // bytes of a query
  ptrdiff_t values;  // bytes from a key to its value
  const char* q;
  const char* kv;
  char* out;
  bool last;  // no head follows
};

// Prefetches a few tokens at each call: the destination of this head's results, and the next head's q, k and v. Their
// rows lie pages apart, which no hardware prefetcher predicts, and many prefetches at once would delay other loads.
struct Fetch {
  const AttentionCall& call;
  const Head& head;
  int at, end;  // queries
  int keys;     // fetched with each query

  OSTF_INLINE void operator()() {
    if (at == end) return;
    row<true>(head.out + at * (call.H * head.width));
    if (!head.last) {
      row<false>(head.q + at * call.q_row + head.width);
      for (int key = at * keys; key < (at + 1) * keys && key < call.N; ++key) {
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

// The exponentials p (key, query) of a block of keys, and `total` their sums over keys. The logits of a tile wait in s
// during the main loop of the next: additions, roundings and permutations then run on ports that its multiply-adds
// leave idle. With `keep` s has room for all keys, and the exponentials stay there in float32. `first` sets the running
// maximum to that of the first tile's logits.
template <class S, int V, bool keep>
OSTF_NOINLINE void softmax_block(const typename S::KGroup* k, const typename S::KGroup* q, int groups, int keys,
                                 bool first, float* s, typename S::KGroup* p, float* running_max,
                                 const SoftmaxExp<S>& exponential, float* total, Fetch& fetch) {
  constexpr int R = S::rows(V);
  constexpr int Q = V * S::kWidth;
  std::memset(total, 0, sizeof(float) * Q);
  SoftmaxStep<S, V, keep> job = {s, p, running_max, total, exponential, 0};
  for (int i = 0; i < keys; i += R, k += R * groups) {
    typename S::Vec acc[R][V];
    logits<S>(k, q, groups, acc, [&]() OSTF_INLINED {
      if constexpr (S::kOverlap) job();
    });
    while (job.left > 0) job();
    fetch();
    if (i > 0) {
      job.p += R / S::kStep * Q;
      if constexpr (keep) job.s += R * Q;
    } else if (first) {
      update_max<S>(acc, keys, running_max);
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
OSTF_NOINLINE void accumulate(const typename S::KGroup* p, int Q, const typename S::KGroup* v, int width, int steps,
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
void accumulate_all(const typename S::KGroup* p, int Q, const typename S::KGroup* v, int width, int steps, bool first,
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

// rows (Q, groups) -> q (groups, Q)
template <class S>
void transpose(const typename S::KGroup* rows, int groups, int Q, typename S::KGroup* q) {
  constexpr int W = S::kWidth;
  int u = 0;
  for (; u + W <= groups; u += W) {
    for (int i = 0; i < Q; i += W) S::transpose_tile(rows + i * groups + u, groups, q + u * Q + i, Q);
  }
  for (; u < groups; ++u) {
    for (int i = 0; i < Q; ++i) q[u * Q + i] = rows[i * groups + u];
  }
}

// The partial score of a block of queries: for each search key the sum of its probabilities over the selected rows. s
// holds the exponentials with the running maximum as it was at that block of keys, which block_max has. Lanes that are
// not selected are cleared bit by bit: multiplying by 0 would let their NaN through.
template <class S, int V>
void partial_score(const float* s, const float* block_max, const float* running_max, const float* sum,
                   const uint8_t* selected, int rows, const SoftmaxExp<S>& exponential, int first_key, int N,
                   float* score) {
  constexpr int Q = V * S::kWidth;
  uint32_t bits[Q];
  for (int i = 0; i < Q; ++i) bits[i] = i < rows && selected[i] ? UINT32_MAX : 0;
  for (int key = first_key; key < N;) {
    const int block = key / kKeys;
    const int end = (block + 1) * kKeys < N ? (block + 1) * kKeys : N;
    typename S::Vec factor[V];
    for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
      const typename S::Vec difference = S::sub(S::load(block_max + block * Q + at), S::load(running_max + at));
      factor[v] = S::div(exponential(difference), S::load(sum + at));
    }
    for (; key < end; ++key) {
      typename S::Vec total = S::zero();
      for (int at = 0, v = 0; v < V; ++v, at += S::kWidth) {
        const typename S::Vec p = S::mul(S::load(s + static_cast<ptrdiff_t>(key) * Q + at), factor[v]);
        total = S::add(total, S::keep(p, bits + at));
      }
      score[key - first_key] = S::across(total);
    }
  }
}


template <class S, int V>
void query_block(const AttentionCall& call, const Head& head, const Layout<S>& layout, int block,
                 typename S::KGroup* scratch) {
  constexpr int Q = V * S::kWidth;
  using KGroup = typename S::KGroup;
  const int N = call.N, D = call.D;
  const int first = block * kLanes<S>;
  const int queries = call.M - first < Q ? call.M - first : Q;
  const KGroup* k = scratch + layout.k;
  const KGroup* v = scratch + layout.v;
  KGroup* rows = scratch + layout.rows;
  KGroup* q = scratch + layout.q;
  KGroup* p = scratch + layout.p;
  float* s = reinterpret_cast<float*>(scratch + layout.s);
  float* o = reinterpret_cast<float*>(scratch + layout.o);
  float* block_max = reinterpret_cast<float*>(scratch + layout.block_max);
  float* running_max = reinterpret_cast<float*>(scratch + layout.state);
  float* sum = running_max + Q;
  float* total = sum + Q;
  float* rescale = total + Q;
  const SoftmaxExp<S> exponential(D);

  const uint8_t* selected = nullptr;
  if (call.mask && first < call.T) {
    const uint8_t* mask = call.mask + (call.mask_batch > 1 ? static_cast<ptrdiff_t>(head.b) * call.T : 0) + first;
    const int end = call.T - first < queries ? call.T - first : queries;
    for (int i = 0; i < end; ++i) {
      if (mask[i]) selected = mask;
    }
  }

  for (int i = 0; i < queries; ++i) {
    S::pack_row(call.dtype, head.q + (first + i) * call.q_row, D, rows + i * layout.groups);
  }
  std::memset(static_cast<void*>(rows + queries * layout.groups), 0, sizeof(KGroup) * (Q - queries) * layout.groups);
  transpose<S>(rows, layout.groups, Q, q);
  for (int i = 0; i < Q; ++i) {
    running_max[i] = kLowest;  // finite: a row of only -inf gives 0 / 0 like softmax, but some leading -inf are harmless
    sum[i] = 0.0f;
  }

  Fetch fetch = {call, head, first, first + queries, (N + call.M - 1) / call.M};
  for (int key = 0; key < N; key += kKeys) {
    const int keys = N - key < kKeys ? N - key : kKeys;
    const KGroup* block_k = k + static_cast<ptrdiff_t>(key) * layout.groups;
    for (;;) {
      if (selected) {
        float* tile = s + static_cast<ptrdiff_t>(key) * Q;
        softmax_block<S, V, true>(block_k, q, layout.groups, keys, key == 0, tile, p, running_max, exponential, total,
                                  fetch);
      } else {
        softmax_block<S, V, false>(block_k, q, layout.groups, keys, key == 0, s, p, running_max, exponential, total,
                                   fetch);
      }
      typename S::Vec top = S::zero();
      for (int i = 0; i < Q; i += S::kWidth) top = S::max(S::load(total + i), top);
      if (!(S::across(top) > kLimit)) break;
      std::memcpy(rescale, running_max, sizeof(float) * Q);
      update_max_of_block<S, V>(block_k, q, layout.groups, keys, running_max);
      for (int i = 0; i < Q; i += S::kWidth) {
        S::store(rescale + i, exponential(S::sub(S::load(rescale + i), S::load(running_max + i))));
        S::store(sum + i, S::mul(S::load(sum + i), S::load(rescale + i)));
      }
      for (int i = 0; key > 0 && i < queries; ++i) {
        for (int d = 0; d < layout.width; ++d) o[i * layout.width + d] *= rescale[i];
      }
    }
    for (int i = 0; i < Q; ++i) sum[i] += total[i];
    if (selected) std::memcpy(block_max + key / kKeys * Q, running_max, sizeof(float) * Q);
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
      lse[i] = running_max[i] / std::sqrt(static_cast<float>(D)) + std::log(sum[i]);
    }
  }
  if (selected) {
    const int template_blocks = (call.T + kLanes<S> - 1) / kLanes<S>;
    const ptrdiff_t at = (static_cast<ptrdiff_t>(head.b) * call.H + head.h) * template_blocks + block;
    const int rows_left = call.T - first < queries ? call.T - first : queries;
    partial_score<S, V>(s, block_max, running_max, sum, selected, rows_left, exponential, call.T, N,
                      call.partial_scores + at * (N - call.T));
  }
}

template <class S>
void pack_keys_and_values(const AttentionCall& call, const Head& head, const Layout<S>& layout,
                          typename S::KGroup* scratch) {
  using KGroup = typename S::KGroup;
  for (int i = 0; i < call.N; ++i) {
    S::pack_row(call.dtype, head.kv + i * call.kv_row, call.D,
                scratch + layout.k + static_cast<ptrdiff_t>(i) * layout.groups);
  }
  std::memset(static_cast<void*>(scratch + layout.k + static_cast<ptrdiff_t>(call.N) * layout.groups), 0,
              sizeof(KGroup) * (layout.keys - call.N) * layout.groups);
  for (int i = 0; i < call.N; i += S::kStep) {
    KGroup* to = scratch + layout.v + static_cast<ptrdiff_t>(i / S::kStep) * layout.width;
    const char* value = head.kv + i * call.kv_row + head.values;
    S::pack_values(call.dtype, value, i + 1 < call.N ? value + call.kv_row : nullptr, call.D, to);
    for (int d = call.D; d < layout.width; ++d) to[d] = 0;
  }
}

template <class S>
void run(const AttentionCall& call, int b, int h, int block, bool packed, void* memory) {
  const Layout<S> layout(call.N, call.D, call.mask != nullptr);
  auto* scratch = static_cast<typename S::KGroup*>(memory);
  const ptrdiff_t width = static_cast<ptrdiff_t>(call.D) * (call.dtype == OSTF_F32 ? 4 : 2);
  const Head head = {b, h, width, call.H * width, call.q + b * call.q_item + h * width,
                     call.kv + b * call.kv_item + h * width, call.out + b * call.out_item + h * width, h + 1 == call.H};
  if (!packed) pack_keys_and_values<S>(call, head, layout, scratch);
  const int left = call.M - block * kLanes<S>;
  const int vectors = left >= kLanes<S> ? S::kMaxVectors : (left + S::kWidth - 1) / S::kWidth;
  switch (vectors) {
    case 1: query_block<S, 1>(call, head, layout, block, scratch); break;
    case 2: query_block<S, 2>(call, head, layout, block, scratch); break;
    case 3: query_block<S, S::kMaxVectors >= 3 ? 3 : 1>(call, head, layout, block, scratch); break;
    default: query_block<S, S::kMaxVectors >= 4 ? 4 : 1>(call, head, layout, block, scratch); break;
  }
}

template <class S>
size_t scratch_bytes(int N, int D, bool with_score) {
  return sizeof(typename S::KGroup) * Layout<S>(N, D, with_score).total;
}

template <class S>
constexpr ostf::AttentionKernel make_kernel() {
  return {kLanes<S>, scratch_bytes<S>, run<S>};
}

}  // namespace
