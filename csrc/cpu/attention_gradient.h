// The gradient of fused attention: recomputes probabilities a block at a time, from the forward pass's logarithm of
// each softmax denominator (FlashAttention-2, Dao 2023), so that no (N,N) is ever stored.
//
// Blocks are (key, query), as in the forward pass: what belongs to a query then lies along the vector lanes. A product
// broadcasts elements of its left matrix and reads vectors of its right one, and no block need be transposed for it:
//
//   logits          = k (q transposed)            p = e^((logits - middle) / sqrt D)
//   gradients of p  = v (grad_out transposed)     grad = p (gradients of p - delta) / sqrt D
//   grad_v         += p grad_out
//   grad_k         += grad q
//   grad_q         += (grad transposed) k         whose left elements are broadcast column by column
//
// Included after attention_kernel.h, once per instruction set, in an unnamed namespace as that is.
namespace {

using ostf::GradientCall;

constexpr int kBlockKeys = 96;      // a multiple of the rows of every tile
constexpr int kBlockQueries = 192;  // and the longest chain of additions
constexpr int kMostRows = 8;        // of a tile

// `pitch` is the distance of rows.
template <class T>
struct Matrix {
  T* begin;
  ptrdiff_t pitch;

  OSTF_INLINE T* at(ptrdiff_t row, ptrdiff_t column) const { return begin + row * pitch + column; }
  OSTF_INLINE Matrix from(ptrdiff_t row, ptrdiff_t column) const { return {at(row, column), pitch}; }
};

// Calls body(row, vector) for each vector of a tile.
template <class S, int R, int V, class F>
OSTF_INLINE void each(const typename S::Vec (&)[R][V], F body) {
  OSTF_UNROLL for (int r = 0; r < R; ++r) {
    OSTF_UNROLL for (int v = 0; v < V; ++v) body(r, v);
  }
}

// Fetches what the next head will read and write, half of a token's rows at each call: they lie pages apart, which no
// hardware prefetcher foresees, and many at once would delay other loads.
struct NextHead {
  const char* row[8] = {};             // of q, k, v and out, then of their gradients
  ptrdiff_t pitch = 0, out_pitch = 0;  // bytes
  int bytes = 0, left = 0;             // of a row, and calls

  OSTF_INLINE void operator()() {
    if (left == 0) return;
    const char** rows = row + left % 2 * 4;
    for (int i = 0; i < 4; ++i) {
      for (int byte = 0; byte < bytes; byte += 64) __builtin_prefetch(rows[i] + byte);
      rows[i] += i < 3 ? pitch : out_pitch;
    }
    --left;
  }
};

template <class S, int V, bool turned, class F>
OSTF_NOINLINE void panel_product(Matrix<typename S::KGroup> a, Matrix<typename S::KGroup> b, int steps, int rows,
                                 int column, F finish, NextHead& next) {
  constexpr int R = S::kSums / V < kMostRows ? S::kSums / V : kMostRows;
  for (int row = 0; row < rows; row += R) {
    typename S::Vec sums[R][V];
    clear<S>(sums);
    const auto nothing = []() OSTF_INLINED {};
    if constexpr (turned) {
      multiply<S>(a.at(0, row), 1, a.pitch, b.at(0, column), b.pitch, steps, sums, nothing);
    } else {
      multiply<S>(a.at(row, 0), a.pitch, 1, b.at(0, column), b.pitch, steps, sums, nothing);
    }
    finish(sums, row, column);
    next();
  }
}

// `rows` rows of a, or columns where it is `turned`, times `vectors` vectors of columns of b, over `steps` K-groups.
// finish(sums, row, column) gets a tile's sums and where it begins; the last tile may have rows too many.
template <class S, bool turned, class F>
void product(Matrix<typename S::KGroup> a, Matrix<typename S::KGroup> b, int steps, int rows, int vectors, F finish,
             NextHead& next) {
  constexpr int most = S::kMaxVectors;
  for (int column = 0; vectors > 0;) {
    const int panels = (vectors + most - 1) / most, width = (vectors + panels - 1) / panels;
    switch (width) {
      case 1: panel_product<S, 1, turned>(a, b, steps, rows, column, finish, next); break;
      case 2: panel_product<S, 2, turned>(a, b, steps, rows, column, finish, next); break;
      case 3: panel_product<S, 3, turned>(a, b, steps, rows, column, finish, next); break;
      default: panel_product<S, most, turned>(a, b, steps, rows, column, finish, next); break;
    }
    column += width * S::kWidth;
    vectors -= width;
  }
}

// What a worker needs. The operands of products consist of K-groups: of neighbouring channels or, where a product sums
// over tokens, of neighbouring tokens. In float32 these are the same.
template <class S>
struct GradientScratch {
  using KGroup = typename S::KGroup;
  size_t total = 0;                               // K-groups
  Matrix<KGroup> turned_q, turned_grad_out;       // (channels, queries)
  Matrix<KGroup> scored_q;                        // the same of some of the queries that the score counts
  Matrix<KGroup> q, grad_out;                     // (queries, channels), in groups of queries
  Matrix<KGroup> k, v, paired_k;                  // (keys of a block, channels), the last in groups of keys
  Matrix<KGroup> p_rows, grad_rows, paired_grad;  // (keys, queries) of a block, the last in groups of keys
  Matrix<float> p, grad_k, grad_v, grad_q;
  float *middle, *delta, *scored_middle, *scored_sum, *grad_score;
  uint32_t* scored;  // of each query: all bits where the score counts it

  GradientScratch(int N, int D, KGroup* memory) {
    const auto take = [&](int rows, int columns) {
      // An odd number of cache lines, so that neither rows nor columns crowd into few sets of a cache.
      const ptrdiff_t pitch = round_up(columns, 16) | 16;
      const Matrix<KGroup> matrix = {memory ? memory + total : nullptr, pitch};
      total += rows * pitch;
      return matrix;
    };
    const auto take_floats = [&](int rows, int columns) {
      const Matrix<KGroup> matrix = take(rows, columns);
      return Matrix<float>{reinterpret_cast<float*>(matrix.begin), matrix.pitch};
    };
    constexpr int step = S::kStep;
    const int groups = D / step, queries = round_up(N, S::kWidth), width = round_up(D, S::kWidth);
    turned_q = take(groups, queries);
    turned_grad_out = take(groups, queries);
    scored_q = take(groups, kBlockQueries);
    q = take(queries / step, width);
    grad_out = take(queries / step, width);
    k = take(kBlockKeys, width);
    v = take(kBlockKeys, groups);
    p = take_floats(kBlockKeys, kBlockQueries);
    grad_rows = take(kBlockKeys, kBlockQueries / step);
    if constexpr (step == 1) {
      paired_k = k;
      p_rows = p;
      paired_grad = grad_rows;
    } else {
      paired_k = take(kBlockKeys / step, width);
      p_rows = take(kBlockKeys, kBlockQueries / step);
      paired_grad = take(kBlockKeys / step, kBlockQueries);
    }
    grad_k = take_floats(kBlockKeys, width);
    grad_v = take_floats(kBlockKeys, width);
    grad_q = take_floats(queries, width);
    middle = take_floats(1, queries).begin;
    delta = take_floats(1, queries).begin;
    scored = reinterpret_cast<uint32_t*>(take(1, queries).begin);
    grad_score = take_floats(1, N + kMostRows).begin;
    scored_middle = take_floats(1, kBlockQueries).begin;
    scored_sum = take_floats(1, kBlockQueries).begin;
  }
};

// The gradients of one head of one batch item.
template <class S>
class Gradient {
  using Vec = typename S::Vec;
  using KGroup = typename S::KGroup;
  using Element = std::conditional_t<S::kStep == 1, float, uint16_t>;
  static constexpr int W = S::kWidth, kStep = S::kStep;

 public:
  Gradient(const GradientCall& call, int b, int h, void* memory)
      : call_(call),
        N(call.N),
        D(call.D),
        row_(ptrdiff_t{3} * call.H * D),
        out_row_(ptrdiff_t{1} * call.H * D),
        s_(N, D, static_cast<KGroup*>(memory)),
        exponential_(D) {
    const ptrdiff_t token = ptrdiff_t{1} * b * N, channel = ptrdiff_t{1} * h * D;
    q_ = static_cast<const Element*>(call.qkv) + token * row_ + channel;
    to_q_ = static_cast<Element*>(call.grad) + token * row_ + channel;
    out_ = static_cast<const Element*>(call.out) + token * out_row_ + channel;
    grad_out_ = static_cast<const Element*>(call.grad_out) + token * out_row_ + channel;
    lse_ = call.lse + (ptrdiff_t{1} * b * call.H + h) * N;
    if (h + 1 < call.H || b + 1 < call.B) {
      const bool same_item = h + 1 < call.H;
      const ptrdiff_t next = same_item ? D : N * row_ - channel, next_out = same_item ? D : N * out_row_ - channel;
      const Element* rows[] = {q_,    q_ + out_row_,    q_ + 2 * out_row_,    out_,
                               to_q_, to_q_ + out_row_, to_q_ + 2 * out_row_, grad_out_};
      for (int i = 0; i < 8; ++i) next_.row[i] = reinterpret_cast<const char*>(rows[i] + (i % 4 < 3 ? next : next_out));
      next_.pitch = row_ * sizeof(Element);
      next_.out_pitch = out_row_ * sizeof(Element);
      next_.bytes = D * sizeof(Element);
      next_.left = 2 * N;
    }
    if (!call.grad_score) return;
    mask_ = call.mask + (call.mask_batch > 1 ? ptrdiff_t{1} * b * call.T : 0);
    score_ = call.grad_score + ptrdiff_t{1} * b * (N - call.T);
  }

  void run() {
    const int queries = round_up(N, W);
    pack_turned(q_, row_, s_.turned_q);
    pack_turned(grad_out_, out_row_, s_.turned_grad_out);
    pack_tokens(q_, row_, N, queries, s_.q);
    pack_tokens(grad_out_, out_row_, N, queries, s_.grad_out);
    find_constants();
    if (score_) add_score();
    const int blocks = (N + kBlockQueries - 1) / kBlockQueries;
    const auto begin = [&](int i) { return std::min(queries / W * i / blocks * W, N); };
    for (int key = 0; key < N; key += kBlockKeys) {
      const int keys = std::min(kBlockKeys, N - key);
      const Element* k = q_ + key * row_ + out_row_;
      pack_rows(k, keys, s_.k);
      pack_rows(k + out_row_, keys, s_.v);
      if (kStep > 1) pack_tokens(k, row_, keys, keys, s_.paired_k);
      for (int i = 0; i < blocks; ++i) block(key, keys, begin(i), begin(i + 1) - begin(i));
      Element* to = to_q_ + key * row_ + out_row_;
      store(s_.grad_k, keys, to);
      store(s_.grad_v, keys, to + out_row_);
    }
    store(s_.grad_q, N, to_q_);
  }

 private:
  // (channels, tokens) in groups of channels; columns that fill the last vector are zeros.
  void pack_turned(const Element* from, ptrdiff_t pitch, Matrix<KGroup> to) const {
    const auto* rows = reinterpret_cast<const KGroup*>(from);
    const int groups = D / kStep;
    pitch /= kStep;
    for (int i = 0; i < N; i += W, rows += W * pitch) {
      int g = 0;
      for (; i + W <= N && g + W <= groups; g += W) S::transpose_tile(rows + g, pitch, to.at(g, i), to.pitch);
      for (; g < groups; ++g) {
        for (int j = 0; j < W; ++j) *to.at(g, i + j) = i + j < N ? rows[j * pitch + g] : KGroup{};
      }
    }
  }

  // (tokens, channels) in groups of tokens; the rest of a row, and tokens from `count` to `padded`, are zeros.
  void pack_tokens(const Element* from, ptrdiff_t pitch, int count, int padded, Matrix<KGroup> to) const {
    for (int i = 0; i < padded; i += kStep, from += kStep * pitch) {
      KGroup* row = to.at(i / kStep, 0);
      if (i < count) S::pack_values(call_.dtype, from, i + 1 < count ? from + pitch : nullptr, D, row);
      clear_from(i < count ? D : 0, row);
    }
  }

  // (keys, channels) in groups of channels, and zeros for the rows that a tile may have too many.
  void pack_rows(const Element* from, int keys, Matrix<KGroup> to) const {
    for (int i = 0; i < std::min(keys + kMostRows - 1, kBlockKeys); ++i) {
      if (i < keys) S::pack_row(call_.dtype, from + i * row_, D, to.at(i, 0));
      if (kStep == 1 || i >= keys) clear_from(i < keys ? D / kStep : 0, to.at(i, 0));
    }
  }

  void clear_from(int group, KGroup* row) const {
    std::memset(static_cast<void*>(row + group), 0, sizeof(KGroup) * (round_up(D, W) - group));
  }

  void store(Matrix<float> from, int count, Element* to) const {
    for (int i = 0; i < count; ++i) S::unpack_row(call_.dtype, from.at(i, 0), 1.0f, D, to + i * row_);
  }

  static float widen(float value) { return value; }
  static float widen(uint16_t value) { return ostf::bf16_to_float(value); }

  // For each query: what is subtracted from its logits, and delta, the sum over keys of probability times the
  // probability's gradient. Delta equals the sum over channels of output times the output's gradient.
  void find_constants() {
    const float root = std::sqrt(static_cast<float>(D));
    for (int i = 0; i < round_up(N, W); ++i) {
      float sums[16] = {};
      const Element *a = out_ + i * out_row_, *b = grad_out_ + i * out_row_;
      int d = 0;
      for (; i < N && d + 16 <= D; d += 16) {
        for (int j = 0; j < 16; ++j) sums[j] += widen(a[d + j]) * widen(b[d + j]);
      }
      for (; i < N && d < D; ++d) sums[d % 16] += widen(a[d]) * widen(b[d]);
      for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
      }
      s_.middle[i] = i < N ? lse_[i] * root : 0;
      s_.delta[i] = sums[0];
    }
  }

  // The template queries' probabilities of search tokens have a gradient from the score too.
  void add_score() {
    const int T = call_.T;
    int selected = 0;
    for (int i = 0; i < round_up(N, W); ++i) {
      s_.scored[i] = i < T && mask_[i] ? UINT32_MAX : 0;
      selected += s_.scored[i] != 0;
    }
    const float share = 1.0f / (static_cast<float>(std::max(selected, 1)) * static_cast<float>(call_.H));
    for (int key = 0; key < N + kMostRows; ++key) {
      s_.grad_score[key] = key < T || key >= N ? 0 : share * score_[key - T];
    }
    for (int t = 0; t < T;) {
      int rows[kBlockQueries], count = 0;
      for (; t < T && count < kBlockQueries; ++t) {
        if (mask_[t]) rows[count++] = t;
      }
      if (count > 0) add_score_to_delta(rows, count);
    }
  }

  void add_score_to_delta(const int* rows, int count) {
    const int queries = round_up(count, W);
    for (int i = 0; i < queries; ++i) {
      for (int g = 0; g < D / kStep; ++g) *s_.scored_q.at(g, i) = i < count ? *s_.turned_q.at(g, rows[i]) : KGroup{};
      s_.scored_middle[i] = i < count ? s_.middle[rows[i]] : 0;
      s_.scored_sum[i] = 0;
    }
    for (int first = call_.T; first < N; first += kBlockKeys) {
      const int keys = std::min(kBlockKeys, N - first);
      pack_rows(q_ + first * row_ + out_row_, keys, s_.k);
      const auto add = [&](auto& logits, int row, int column) OSTF_INLINED {
        each<S>(logits, [&](int r, int v) OSTF_INLINED {
          if (row + r >= keys) return;
          const int i = column + v * W;
          const Vec p = exponential_(S::sub(logits[r][v], S::load(s_.scored_middle + i)));
          const Vec gradient = S::set(s_.grad_score[first + row + r]);
          S::store(s_.scored_sum + i, S::fma(p, gradient, S::load(s_.scored_sum + i)));
        });
      };
      product<S, false>(s_.k, s_.scored_q, D / kStep, keys, queries / W, add, next_);
    }
    for (int i = 0; i < count; ++i) s_.delta[rows[i]] += s_.scored_sum[i];
  }

  // What a block of keys and queries adds to all gradients. What follows a product gets what it needs by value: the
  // compiler then knows that no store changes it.
  void block(int first_key, int keys, int first_query, int queries) {
    const int groups = D / kStep, vectors = (queries + W - 1) / W;
    const float *middle = s_.middle + first_query, *delta = s_.delta + first_query;
    const Matrix<float> p = s_.p;
    const Matrix<KGroup> p_rows = s_.p_rows, grad_rows = s_.grad_rows, paired_grad = s_.paired_grad;
    const auto probabilities = [=, exponential = exponential_](auto& logits, int row, int column) OSTF_INLINED {
      each<S>(logits, [&](int r, int v) OSTF_INLINED {
        const int key = row + r, i = column + v * W;
        // Where the number of keys is odd, one that is missing completes a pair.
        const Vec x = kStep == 1 || key < keys ? exponential(S::sub(logits[r][v], S::load(middle + i))) : S::zero();
        S::store(p.at(key, i), x);
        if constexpr (kStep == 2) S::store_row(p_rows.at(key, i / kStep), x);
      });
    };
    product<S, false>(s_.k, s_.turned_q.from(0, first_query), groups, keys, vectors, probabilities, next_);

    const Vec scale = S::set(1 / std::sqrt(static_cast<float>(D)));
    const uint32_t* scored = score_ && first_query < call_.T ? s_.scored + first_query : nullptr;
    const float* grad_score = s_.grad_score + first_key;
    const auto gradients = [=](auto& sums, int row, int column) OSTF_INLINED {
      each<S>(sums, [&](int r, int v) OSTF_INLINED {
        const int key = row + r, i = column + v * W;
        Vec& x = sums[r][v];
        if (scored) x = S::add(x, S::keep(S::set(grad_score[key]), scored + i));
        x = S::mul(S::mul(S::load(p.at(key, i)), scale), S::sub(x, S::load(delta + i)));
        if constexpr (kStep == 1) {
          S::store(grad_rows.at(key, i), x);
        } else {
          S::store_row(grad_rows.at(key, i / kStep), x);
          if (r % 2 > 0) S::store_pair(paired_grad.at(key / 2, i), 0, sums[r - 1][v], x);
        }
      });
    };
    product<S, false>(s_.v, s_.turned_grad_out.from(0, first_query), groups, keys, vectors, gradients, next_);

    const int channels = round_up(D, W) / W, tokens = first_query / kStep, steps = (queries + kStep - 1) / kStep;
    const auto add_to = [](Matrix<float> to, int rows, bool first) {
      return [=](auto& sums, int row, int column) OSTF_INLINED {
        each<S>(sums, [&](int r, int v) OSTF_INLINED {
          if (row + r >= rows) return;
          float* at = to.at(row + r, column + v * W);
          S::store(at, first ? sums[r][v] : S::add(S::load(at), sums[r][v]));
        });
      };
    };
    product<S, false>(p_rows, s_.grad_out.from(tokens, 0), steps, keys, channels,
                      add_to(s_.grad_v, keys, first_query == 0), next_);
    product<S, false>(grad_rows, s_.q.from(tokens, 0), steps, keys, channels,
                      add_to(s_.grad_k, keys, first_query == 0), next_);
    product<S, true>(paired_grad, s_.paired_k, (keys + kStep - 1) / kStep, queries, channels,
                     add_to(s_.grad_q.from(first_query, 0), queries, first_key == 0), next_);
  }

  const GradientCall& call_;
  const int N, D;
  const ptrdiff_t row_, out_row_;  // elements from one token to the next in qkv and in out
  const GradientScratch<S> s_;
  const SoftmaxExp<S> exponential_;
  const Element *q_, *out_, *grad_out_;
  Element* to_q_;
  const float *lse_, *score_ = nullptr;
  const uint8_t* mask_ = nullptr;
  NextHead next_;
};

template <class S>
constexpr ostf::GradientKernel make_gradient() {
  return {[](int N, int D) { return sizeof(typename S::KGroup) * GradientScratch<S>(N, D, nullptr).total; },
          [](const GradientCall& call, int b, int h, void* scratch) { Gradient<S>(call, b, h, scratch).run(); }};
}

}  // namespace
