// Products of large float32 matrices by 7 products of quarters instead of 8 (V. Strassen, Gaussian Elimination is not
// Optimal, 1969), since those of whole matrices run at 95 % of what the processor's multiply-adds allow:
//
//   M1 = (A11 + A22) (B11 + B22)    M2 = (A21 + A22) B11    M3 = A11 (B12 - B22)    M4 = A22 (B21 - B11)
//   M5 = (A11 + A12) B22            M6 = (A21 - A11) (B11 + B12)                    M7 = (A12 - A22) (B21 + B22)
//
//   C11 = M1 + M4 - M5 + M7    C12 = M3 + M5    C21 = M2 + M4    C22 = M1 - M2 + M3 + M6
//
// Each element rounds in proportion to the largest ones of the matrices, not to those of its row and column: by the
// norm of the result, 1.5 times as much as MKL. What is not finite spreads to other rows and columns.
#include <atomic>

#include "cpu/arena.h"
#include "cpu/matmul.h"
#include "cpu/parallel.h"

namespace ostf {
namespace {

constexpr int kProducts = 7;
constexpr int kChunk = 96;  // columns of a quarter at a time: products with a block of rows stay in the cache
constexpr int kRows = 60;   // of a quarter in a block
constexpr int kMostSummed = 2048;  // inputs at a time, for the same reason
constexpr int kLeast = 512;  // rows, inputs and outputs: with fewer, sums of quarters cost more than they save

// The sums of B's quarters. B11 and B22 lie where M2 and M5 read them.
void add_right(const float* __restrict b11, const float* __restrict b12, const float* __restrict b21,
               const float* __restrict b22, ptrdiff_t count, float* __restrict m1, float* __restrict m3,
               float* __restrict m4, float* __restrict m6, float* __restrict m7) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    m1[i] = b11[i] + b22[i];
    m3[i] = b12[i] - b22[i];
    m4[i] = b21[i] - b11[i];
    m6[i] = b11[i] + b12[i];
    m7[i] = b21[i] + b22[i];
  }
}

// The sums of A's quarters. A11 and A22 lie where M3 and M4 read them.
void add_left(const float* __restrict a11, const float* __restrict a12, const float* __restrict a21,
              const float* __restrict a22, ptrdiff_t count, float* __restrict m1, float* __restrict m2,
              float* __restrict m5, float* __restrict m6, float* __restrict m7) {
  for (ptrdiff_t i = 0; i < count; ++i) {
    m1[i] = a11[i] + a22[i];
    m2[i] = a21[i] + a22[i];
    m5[i] = a11[i] + a12[i];
    m6[i] = a21[i] - a11[i];
    m7[i] = a12[i] - a22[i];
  }
}

// The result but for M6 and M7, of M1 to M5, which lie `next` floats apart; with the bias, or kMore: with what is there.
template <bool kMore>
void add_products(const float* __restrict m, ptrdiff_t next, const float* __restrict left_bias,
                  const float* __restrict right_bias, float* __restrict c11, float* __restrict c12,
                  float* __restrict c21, float* __restrict c22) {
  for (int i = 0; i < kChunk; ++i) {
    const float m1 = m[i], m2 = m[next + i], m3 = m[2 * next + i], m4 = m[3 * next + i], m5 = m[4 * next + i];
    c11[i] = (kMore ? c11[i] : left_bias[i]) + (m1 + m4 - m5);
    c12[i] = (kMore ? c12[i] : right_bias[i]) + (m3 + m5);
    c21[i] = (kMore ? c21[i] : left_bias[i]) + (m2 + m4);
    c22[i] = (kMore ? c22[i] : right_bias[i]) + (m1 - m2 + m3);
  }
}

class Quarters {
 public:
  // `count` of the summed dimension from `first` on; what comes after the first ones is added to `out`.
  Quarters(const LinearKernel& kernel, const ostf_tensor& a, const ostf_tensor& b, const float* bias,
           const ostf_tensor& out, const MatmulGelu& gelu, int first, int count)
      : kernel_(kernel),
        gelu_(gelu),
        rows_(static_cast<int>(a.shape[0] / 2)),
        inputs_(count / 2),
        columns_(static_cast<int>(b.shape[1] / 2)),
        more_(first > 0),
        last_(first + count == a.shape[1]),
        from_a_(a, 1),
        from_b_(b, 0),
        a_(data<const float>(&a) + first * from_a_.summed),
        b_(data<const float>(&b) + first * from_b_.summed),
        bias_(bias),
        out_(data<float>(&out)),
        layout_(kernel, kChunk, inputs_, 1, 1),
        bytes_((layout_.total + 63) / 64 * 64) {}

  int run(int threads) {
    static thread_local Arena arena;
    const int chunks = columns_ / kChunk;
    right_ = static_cast<char*>(arena.reserve(bytes_ * chunks * kProducts));
    if (!right_) return OSTF_ENOMEM;
    std::atomic<bool> enough{true};  // memory
    parallel_for(static_cast<int64_t>(chunks) * layout_.panels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && enough; ++i) {
        if (!pack_right(static_cast<int>(i / layout_.panels), static_cast<int>(i % layout_.panels))) enough = false;
      }
    });
    const int tiles = ceil_div(rows_, kernel_.rows);
    const int blocks = std::min(tiles, ceil_div(ceil_div(rows_, kRows), threads) * threads);  // as many for each thread
    const auto start = [&](int64_t i) {
      return std::min(rows_, part_begin(static_cast<int>(i), blocks, tiles) * kernel_.rows);
    };
    parallel_for(blocks, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end && enough; ++i) {
        if (!multiply(start(i), start(i + 1) - start(i))) enough = false;
      }
    });
    return enough ? OSTF_OK : OSTF_ENOMEM;
  }

 private:
  char* packed(int chunk, int product) const { return right_ + (chunk * kProducts + product - 1) * bytes_; }

  // One panel of all seven right factors.
  bool pack_right(int chunk, int panel) const {
    static thread_local Arena arena;
    const int column = layout_.first_vector(panel) * layout_.width;
    const int width = layout_.first_vector(panel + 1) * layout_.width - column;
    const ptrdiff_t count = static_cast<ptrdiff_t>(inputs_) * width;
    auto* others = static_cast<float*>(arena.reserve(2 * sizeof(float) * count));
    if (!others) return false;
    if (panel == 0) {
      for (int m = 1; m <= kProducts; ++m) {
        std::memset(packed(chunk, m) + layout_.bias, 0, sizeof(float) * layout_.columns);
      }
    }
    const auto to = [&](int product) { return reinterpret_cast<float*>(packed(chunk, product) + layout_.panel(panel)); };
    float* const quarters[] = {to(2), others, others + count, to(5)};
    for (int q = 0; q < 4; ++q) {
      const float* from = b_ + q / 2 * inputs_ * from_b_.summed;
      from += (q % 2 * columns_ + chunk * kChunk + column) * from_b_.next;
      pack_panel(from, from_b_, inputs_, width, quarters[q], width);
      if (gelu_.of_b) gelu_.kernel->single(quarters[q], nullptr, quarters[q], count);
    }
    add_right(quarters[0], quarters[1], quarters[2], quarters[3], count, to(1), to(3), to(4), to(6), to(7));
    return true;
  }

  // `count` rows from `row` on, and those as far into the lower half.
  bool multiply(int row, int count) const {
    static thread_local Arena arena;
    const ptrdiff_t pitch = row_pitch(kernel_, inputs_) / static_cast<ptrdiff_t>(sizeof(float));
    const ptrdiff_t floats = pitch * count;
    const ptrdiff_t sums = static_cast<ptrdiff_t>(count) * kChunk;
    auto* left = static_cast<float*>(arena.reserve(sizeof(float) * ((kProducts + 2) * floats + 5 * sums)));
    if (!left) return false;
    const auto factor = [&](int product) { return left + (product - 1) * floats; };
    float* const quarters[] = {factor(3), left + kProducts * floats, left + (kProducts + 1) * floats, factor(4)};
    for (int q = 0; q < 4; ++q) {
      const float* from = a_ + (q / 2 * rows_ + row) * from_a_.next + q % 2 * inputs_ * from_a_.summed;
      if (from_a_.summed != 1) {
        pack_rows(from, from_a_.summed, inputs_, count, quarters[q], pitch);
        continue;
      }
      for (int r = 0; r < count; ++r, from += from_a_.next) {
        float* to = quarters[q] + r * pitch;
        if (gelu_.of_a) {
          gelu_.kernel->single(from, nullptr, to, inputs_);
        } else {
          std::copy_n(from, inputs_, to);
        }
      }
    }
    for (int r = 0; r < count; ++r) {
      const ptrdiff_t at = r * pitch;
      add_left(quarters[0] + at, quarters[1] + at, quarters[2] + at, quarters[3] + at, inputs_, factor(1) + at,
               factor(2) + at, factor(5) + at, factor(6) + at, factor(7) + at);
    }

    const int stride = 2 * columns_;
    float* const products = left + (kProducts + 2) * floats;
    for (int chunk = 0; chunk < columns_ / kChunk; ++chunk) {
      const auto product = [&](int m, const float* residual, float* to, int to_stride) {
        const Gemm gemm = {1, count, 1, reinterpret_cast<const char*>(factor(m)), 0, 0,
                           pitch * static_cast<ptrdiff_t>(sizeof(float)), 0, nullptr, OSTF_NONE, residual, 0, to,
                           false, 0, to_stride};
        run_gemm(kernel_, layout_, packed(chunk, m), gemm, 1);
      };
      for (int m = 1; m <= 5; ++m) product(m, nullptr, products + (m - 1) * sums, kChunk);
      float* const c11 = out_ + static_cast<ptrdiff_t>(row) * stride + chunk * kChunk;
      float* const c22 = c11 + static_cast<ptrdiff_t>(rows_) * stride + columns_;
      static constexpr float kNoBias[kChunk] = {};
      const float* left_bias = bias_ ? bias_ + chunk * kChunk : kNoBias;
      const float* right_bias = bias_ ? left_bias + columns_ : kNoBias;
      const auto add = more_ ? add_products<true> : add_products<false>;
      for (int r = 0; r < count; ++r) {
        float *upper = c11 + static_cast<ptrdiff_t>(r) * stride, *lower = c22 + static_cast<ptrdiff_t>(r) * stride;
        add(products + r * kChunk, sums, left_bias, right_bias, upper, upper + columns_, lower - columns_, lower);
      }
      product(6, c22, c22, stride);
      product(7, c11, c11, stride);
    }
    for (int half = 0; gelu_.slopes && last_ && half < 2; ++half) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(half * rows_ + row) * stride;
      gelu_.kernel->single(gelu_.slopes + at, out_ + at, out_ + at, static_cast<int64_t>(count) * stride);
    }
    return true;
  }

  const LinearKernel& kernel_;
  const MatmulGelu& gelu_;
  const int rows_, inputs_, columns_;  // of a quarter
  const bool more_, last_;
  const MatrixStrides from_a_, from_b_;
  const float *a_, *b_, *bias_;
  float* out_;
  const PackedLayout layout_;  // of a chunk's columns for one product
  const size_t bytes_;         // of it
  char* right_ = nullptr;      // (chunks, products, bytes)
};

}  // namespace

// Wider vectors multiply faster than memory lets sums be added: there two threads gain nothing.
bool strassen_pays(const LinearKernel& kernel, int64_t rows, int64_t inputs, int64_t outputs) {
  const bool even = rows % 2 == 0 && inputs % 2 == 0 && outputs % (2 * kChunk) == 0;
  return even && kernel.width <= 8 && std::min({rows, inputs, outputs}) >= kLeast;
}

int multiply_quarters(const LinearKernel& kernel, const ostf_tensor& a, const ostf_tensor& b, const float* bias,
                      const ostf_tensor& out, const MatmulGelu& gelu, int threads) {
  const int pairs = static_cast<int>(a.shape[1] / 2), parts = ceil_div(pairs, kMostSummed / 2);
  for (int part = 0; part < parts; ++part) {
    const int first = 2 * part_begin(part, parts, pairs), end = 2 * part_begin(part + 1, parts, pairs);
    const int status = Quarters(kernel, a, b, bias, out, gelu, first, end - first).run(threads);
    if (status != OSTF_OK) return status;
  }
  return OSTF_OK;
}

}  // namespace ostf
