// The gradient of fused attention: recomputes probabilities a block of keys at a time, from the forward pass's logarithm
// of each softmax denominator (FlashAttention-2, Dao 2023), so that no (N,N) is ever stored.
//
// Its five matmuls are GEMMs with prepacked weights, of float32 or of bfloat16 pairs; all else is float32. Blocks are kept
// transposed, (key, query): their rows are then what the gradients of keys and values multiply, and what belongs to a
// query lies along the vector lanes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/attention.h"
#include "cpu/half.h"
#include "cpu/linear.h"
#include "cpu/parallel.h"
#include "cpu/transpose.h"
#include "tensor.h"

namespace {

using ostf::LinearKernel;
using ostf::PackedLayout;

constexpr int kKeys = 64;        // keys in a block
constexpr int kMaxWidth = 512;  // of a head

// E is float, or uint16_t for bfloat16.
template <class E>
struct Call {
  const E *qkv, *out, *grad_out;
  const float *lse, *grad_score;  // grad_score may be null
  const uint8_t* mask;
  E* grad;
  int B, N, H, D, T, mask_batch;
  int queries;  // N, padded to whole vectors
  const LinearKernel* gemm;
  const ostf::AttentionKernel* softmax;
};

size_t aligned(size_t floats) { return (floats + 15) / 16 * 16; }

float widen(float value) { return value; }
float widen(uint16_t value) { return ostf::bf16_to_float(value); }

// What a worker needs, in floats.
template <class E>
struct Scratch {
  float *q, *grad_out, *q_rows, *grad_out_rows;  // packed: queries are the outputs, or the inputs
  float *template_q, *grad_logits;               // packed
  float *p, *grad_p;                             // (keys of a block, queries)
  float *p_rows, *grad_p_rows;                   // the same as rows of E, where E is not float
  float *keys, *rows, *grad_q;                   // (D, keys of a block) of E, (keys of a block, D), (D, queries)
  float *middle, *delta;                         // one number for each query
  size_t total = 0;

  Scratch(const Call<E>& call, float* memory) {
    const auto packed = [&](int outputs, int inputs) {
      return PackedLayout(*call.gemm, outputs, inputs, 1, 1).total / sizeof(float);
    };
    const auto take = [&](size_t floats) {
      float* at = memory ? memory + total : nullptr;
      total += aligned(floats);
      return at;
    };
    const size_t D = call.D, queries = call.queries;
    q = take(packed(call.queries, call.D));
    grad_out = take(packed(call.queries, call.D));
    q_rows = take(packed(call.D, call.N));
    grad_out_rows = take(packed(call.D, call.N));
    template_q = take(packed(call.queries, call.D));
    grad_logits = take(packed(call.queries, kKeys));
    p = take(kKeys * queries);
    grad_p = take(kKeys * queries);
    p_rows = take(sizeof(E) < sizeof(float) ? kKeys * queries / 2 : 0);
    grad_p_rows = take(sizeof(E) < sizeof(float) ? kKeys * queries / 2 : 0);
    keys = take(D * kKeys);
    rows = take(kKeys * D);
    grad_q = take(D * queries);
    middle = take(queries);
    delta = take(queries);
  }
};

// K-groups of `count` outputs that lie side by side: of one float, or of a pair of bfloat16, of two inputs that lie
// `input` elements apart, of which the second may be missing.
void pack_groups(const float* from, ptrdiff_t, bool, int count, uint32_t* to) {
  std::memcpy(to, from, sizeof(float) * count);
}
void pack_groups(const uint16_t* from, ptrdiff_t input, bool pair, int count, uint32_t* to) {
  for (int c = 0; c < count; ++c) to[c] = from[c] | (pair ? static_cast<uint32_t>(from[c + input]) << 16 : 0);
}

// Packs weights without a bias: output o of input i lies at values[o * output + i * input], of which one stride is 1;
// those from `given` on are 0.
template <class E>
void pack(const PackedLayout& layout, const E* values, ptrdiff_t output, ptrdiff_t input, int given, float* packed) {
  constexpr int kInputs = sizeof(float) / sizeof(E);  // of a K-group
  std::memset(packed + layout.bias / sizeof(float), 0, sizeof(float) * layout.columns);
  for (int p = 0; p < layout.panels; ++p) {
    const int begin = layout.first_vector(p) * layout.width;
    const int columns = layout.first_vector(p + 1) * layout.width - begin;
    const int there = std::clamp(std::min(given, layout.outputs) - begin, 0, columns);
    auto* to = reinterpret_cast<uint32_t*>(packed + layout.panel(p) / sizeof(float));
    const E* from = values + begin * output;
    if (there < columns) std::memset(to, 0, sizeof(uint32_t) * layout.groups * columns);
    if (output != 1) {  // K-groups lie in memory as they are wanted, but row by row: all are whole, as those of D are
      ostf::transpose(reinterpret_cast<const uint32_t*>(from), output / kInputs, to, columns, there, layout.groups);
      continue;
    }
    for (int i = 0; i < layout.inputs; i += kInputs, to += columns, from += kInputs * input) {
      pack_groups(from, input, i + 1 < layout.inputs, there, to);
    }
  }
}

// The gradients of one head of one batch item.
template <class E>
class Head {
 public:
  Head(const Call<E>& call, int b, int h, float* memory) : call_(call), scratch_(call, memory) {
    const ptrdiff_t C = static_cast<ptrdiff_t>(call.H) * call.D;
    row_ = 3 * C;
    out_row_ = C;
    const ptrdiff_t at = b * call.N * row_ + static_cast<ptrdiff_t>(h) * call.D;
    const ptrdiff_t out_at = b * call.N * C + static_cast<ptrdiff_t>(h) * call.D;
    q_ = call.qkv + at;
    k_ = q_ + C;
    v_ = k_ + C;
    to_q_ = call.grad + at;
    out_ = call.out + out_at;
    grad_out_ = call.grad_out + out_at;
    lse_ = call.lse + (static_cast<ptrdiff_t>(b) * call.H + h) * call.N;
    if (!call.grad_score) return;
    score_ = call.grad_score + static_cast<ptrdiff_t>(b) * (call.N - call.T);
    mask_ = call.mask + (call.mask_batch > 1 ? static_cast<ptrdiff_t>(b) * call.T : 0);
    const auto selected = std::count_if(mask_, mask_ + call.T, [](uint8_t each) { return each != 0; });
    share_ = 1.0f / (static_cast<float>(std::max<ptrdiff_t>(selected, 1)) * static_cast<float>(call.H));
  }

  void run() {
    const PackedLayout by_query(*call_.gemm, call_.queries, call_.D, 1, 1), by_row(*call_.gemm, call_.D, call_.N, 1, 1);
    pack(by_query, q_, row_, 1, call_.N, scratch_.q);
    pack(by_query, grad_out_, out_row_, 1, call_.N, scratch_.grad_out);
    pack(by_row, q_, 1, row_, call_.D, scratch_.q_rows);
    pack(by_row, grad_out_, 1, out_row_, call_.D, scratch_.grad_out_rows);
    find_constants();
    if (score_) add_score_to_delta();
    for (int first = 0; first < call_.N; first += kKeys) {
      block(by_query, by_row, first, std::min(kKeys, call_.N - first));
    }
    for (int i = 0; i < call_.N; i += kKeys) {
      const int count = std::min(kKeys, call_.N - i);
      ostf::transpose(scratch_.grad_q + i, call_.queries, scratch_.rows, call_.D, call_.D, count);
      store_rows(scratch_.rows, to_q_ + i * row_, count);
    }
  }

 private:
  // For each query: what is subtracted from its logits, and delta, the sum over keys of probability times the
  // probability's gradient. Delta equals the sum over channels of output times the output's gradient.
  void find_constants() {
    const float root = std::sqrt(static_cast<float>(call_.D));
    for (int i = 0; i < call_.queries; ++i) {
      scratch_.middle[i] = i < call_.N ? lse_[i] * root : 0;
      float sums[8] = {};
      for (int d = 0; i < call_.N && d < call_.D; ++d) {
        sums[d % 8] += widen(out_[i * out_row_ + d]) * widen(grad_out_[i * out_row_ + d]);
      }
      scratch_.delta[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]) + (sums[4] + sums[5]) + (sums[6] + sums[7]);
    }
  }

  // The template queries' probabilities of search tokens have a gradient from the score too.
  void add_score_to_delta() {
    const int width = call_.gemm->width, padded = (call_.T + width - 1) / width * width;
    const PackedLayout layout(*call_.gemm, padded, call_.D, 1, 1);
    pack(layout, q_, row_, 1, call_.T, scratch_.template_q);
    for (int first = call_.T; first < call_.N; first += kKeys) {
      const int keys = std::min(kKeys, call_.N - first);
      multiply(layout, scratch_.template_q, k_ + first * row_, row_, keys, scratch_.p);
      call_.softmax->probabilities(scratch_.p, keys, padded, call_.D, scratch_.middle);
      for (int key = 0; key < keys; ++key) {
        const float gradient = share_ * score_[first + key - call_.T];
        for (int t = 0; t < call_.T; ++t) {
          if (mask_[t]) scratch_.delta[t] += gradient * scratch_.p[static_cast<ptrdiff_t>(key) * padded + t];
        }
      }
    }
  }

  void block(const PackedLayout& by_query, const PackedLayout& by_row, int first, int keys) {
    const int D = call_.D, queries = call_.queries;
    const Scratch<E>& s = scratch_;
    multiply(by_query, s.q, k_ + first * row_, row_, keys, s.p);
    call_.softmax->probabilities(s.p, keys, queries, D, s.middle);
    multiply(by_query, s.grad_out, v_ + first * row_, row_, keys, s.grad_p);
    if (score_) add_score(first, keys);
    call_.softmax->logit_gradients(s.p, s.grad_p, keys, queries, s.delta, 1 / std::sqrt(static_cast<float>(D)));

    const E* p = as_rows(s.p, keys, s.p_rows);
    const E* grad_logits = as_rows(s.grad_p, keys, s.grad_p_rows);
    multiply(by_row, s.grad_out_rows, p, queries, keys, s.rows);
    store_rows(s.rows, to_q_ + first * row_ + 2 * out_row_, keys);
    multiply(by_row, s.q_rows, grad_logits, queries, keys, s.rows);
    store_rows(s.rows, to_q_ + first * row_ + out_row_, keys);

    const PackedLayout by_key(*call_.gemm, queries, keys, 1, 1);
    pack(by_key, grad_logits, 1, queries, queries, s.grad_logits);
    E* turned = reinterpret_cast<E*>(s.keys);
    ostf::transpose(k_ + first * row_, row_, turned, kKeys, keys, D);
    for (int d = 0; keys % 2 && d < D; ++d) turned[d * kKeys + keys] = 0;  // paired with zero weights
    multiply(by_key, s.grad_logits, turned, kKeys, D, s.grad_q, first > 0);
  }

  // out (count, outputs) = rows (count, inputs), `pitch` elements apart, times packed weights, + out if `add`.
  void multiply(const PackedLayout& layout, const float* packed, const E* rows, ptrdiff_t pitch, int count, float* out,
                bool add = false) const {
    const auto bytes = static_cast<ptrdiff_t>(sizeof(E)) * pitch;
    const ostf::Gemm gemm = {1, count, 1, reinterpret_cast<const char*>(rows), 0, 0, bytes, 0, nullptr, OSTF_NONE,
                             add ? out : nullptr, 0, out, false, 0};
    run_gemm(*call_.gemm, layout, reinterpret_cast<const char*>(packed), gemm, 1);
  }

  void store(const float* values, int count, E* to) const {
    if constexpr (sizeof(E) == sizeof(float)) {
      std::memcpy(to, values, sizeof(float) * count);
    } else {
      call_.gemm->pack_row(OSTF_F32, values, count, -1, to, nullptr);
    }
  }

  // A block (keys, queries) as rows of a matmul.
  const E* as_rows(const float* block, int keys, float* memory) const {
    if constexpr (sizeof(E) == sizeof(float)) {
      return block;
    } else {
      E* rows = reinterpret_cast<E*>(memory);
      store(block, keys * call_.queries, rows);
      return rows;
    }
  }

  void add_score(int first, int keys) const {
    for (int key = std::max(0, call_.T - first); key < keys; ++key) {
      const float gradient = share_ * score_[first + key - call_.T];
      for (int t = 0; t < call_.T; ++t) {
        if (mask_[t]) scratch_.grad_p[static_cast<ptrdiff_t>(key) * call_.queries + t] += gradient;
      }
    }
  }

  void store_rows(const float* rows, E* to, int count) const {
    for (int i = 0; i < count; ++i) store(rows + i * call_.D, call_.D, to + i * row_);
  }

  const Call<E>& call_;
  const Scratch<E> scratch_;
  const E *q_, *k_, *v_, *out_, *grad_out_;
  const float *lse_, *score_ = nullptr;
  const uint8_t* mask_ = nullptr;
  E* to_q_;
  ptrdiff_t row_, out_row_;  // floats from one token to the next in qkv and in out
  float share_ = 0;          // weight of one selected row and head in the score
};

template <class E>
int run(const ostf_tensor* qkv, const ostf_tensor* template_mask, const ostf_tensor* out, const ostf_tensor* lse,
        const ostf_tensor* grad_out, const ostf_tensor* grad_score, const ostf_tensor* grad, int threads,
        const LinearKernel& gemm, const ostf::AttentionKernel& softmax) {
  Call<E> call = {};
  call.B = static_cast<int>(qkv->shape[0]);
  call.N = static_cast<int>(qkv->shape[1]);
  call.H = static_cast<int>(qkv->shape[3]);
  call.D = static_cast<int>(qkv->shape[4]);
  const int64_t B = call.B, N = call.N, H = call.H, D = call.D;
  if (N < 1 || H < 1 || D < 1 || D > kMaxWidth || D * sizeof(E) % sizeof(float) != 0) return OSTF_EINVAL;
  const int dtype = qkv->dtype;
  if (!ostf::is(qkv, dtype, {B, N, 3, H, D}) || !ostf::is(out, dtype, {B, N, H * D}) ||
      !ostf::is(lse, OSTF_F32, {B, H, N}) || !ostf::is(grad_out, dtype, {B, N, H * D}) ||
      !ostf::is(grad, dtype, {B, N, 3, H, D})) {
    return OSTF_EINVAL;
  }
  if (grad_score) {
    if (!template_mask || template_mask->ndim < 1 || template_mask->ndim > 2) return OSTF_EINVAL;
    const bool mask_of_each = template_mask->ndim == 2;
    const int64_t T = template_mask->shape[mask_of_each];
    if (T < 1 || T > N || !ostf::is(grad_score, OSTF_F32, {B, N - T}) ||
        !(mask_of_each ? ostf::is(template_mask, OSTF_BOOL, {B, T})
                       : ostf::is(template_mask, OSTF_BOOL, {T}))) {
      return OSTF_EINVAL;
    }
    call.T = static_cast<int>(T);
    call.mask_batch = mask_of_each ? call.B : 1;
    call.mask = ostf::data<const uint8_t>(template_mask);
  }
  if (B == 0) return OSTF_OK;
  call.qkv = ostf::data<const E>(qkv);
  call.out = ostf::data<const E>(out);
  call.lse = ostf::data<const float>(lse);
  call.grad_out = ostf::data<const E>(grad_out);
  call.grad_score = call.T < call.N ? ostf::data<const float>(grad_score) : nullptr;
  call.grad = ostf::data<E>(grad);
  call.gemm = &gemm;
  call.softmax = &softmax;
  call.queries = (call.N + gemm.width - 1) / gemm.width * gemm.width;

  const int heads = call.B * call.H, workers = std::min(threads, heads);
  const size_t each = Scratch<E>(call, nullptr).total;
  static thread_local ostf::Arena arena;
  auto* memory = static_cast<float*>(arena.reserve(sizeof(float) * each * workers));
  if (!memory) return OSTF_ENOMEM;
  ostf::parallel_for(heads, workers, [&](int worker, int64_t first, int64_t last) {
    for (auto head = static_cast<int>(first); head < last; ++head) {
      Head<E>(call, head / call.H, head % call.H, memory + each * worker).run();
    }
  });
  return OSTF_OK;
}

}  // namespace

int ostf_cpu_attention_backward(const ostf_tensor* qkv, const ostf_tensor* template_mask, const ostf_tensor* out,
                                const ostf_tensor* lse, const ostf_tensor* grad_out, const ostf_tensor* grad_score,
                                const ostf_tensor* grad, int threads) {
  if (!ostf::has_rank(qkv, 5) || threads < 1 || ostf::level() < 0) return OSTF_EINVAL;
#if defined(OSTF_X86)
  const auto call = [&](auto run, const LinearKernel& gemm, const ostf::AttentionKernel& softmax) {
    return run(qkv, template_mask, out, lse, grad_out, grad_score, grad, threads, gemm, softmax);
  };
  const int level = ostf::level();
  if (qkv->dtype == OSTF_BF16 && level >= ostf::kAvx512Bf16) {
    return call(run<uint16_t>, ostf::linear_avx512_bf16, ostf::attention_avx512);
  }
  if (qkv->dtype == OSTF_F32 && level >= ostf::kAvx512) {
    return call(run<float>, ostf::linear_avx512, ostf::attention_avx512);
  }
  if (qkv->dtype == OSTF_F32 && level >= ostf::kAvx2) return call(run<float>, ostf::linear_avx2, ostf::attention_avx2);
#endif
  return OSTF_EDTYPE;
}
