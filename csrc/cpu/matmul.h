// What the two ways to multiply matrices that change from call to call share: matmul.cpp takes rows times columns,
// matmul_strassen.cpp quarters of large matrices.
#pragma once
#include <algorithm>
#include <cstring>

#include "cpu/gelu.h"
#include "cpu/linear.h"
#include "cpu/transpose.h"
#include "tensor.h"

namespace ostf {

// Strides of a matrix, of which one is 1: along the summed dimension, and from one vector along it to the next.
struct MatrixStrides {
  ptrdiff_t summed, next;

  MatrixStrides(const ostf_tensor& t, int summed_dimension) {
    // A dimension of one element may have any stride.
    const auto stride = [&](int i) { return t.shape[i] == 1 ? ptrdiff_t{1} : static_cast<ptrdiff_t>(t.stride[i]); };
    summed = stride(summed_dimension);
    next = stride(1 - summed_dimension);
  }
};

// Where GELU stands in a product: gelu(a) b, a gelu(b), or (a b) times its derivative at the elements of `slopes`.
struct MatmulGelu {
  const GeluKernel* kernel;
  bool of_a, of_b;
  const float* slopes;
};

constexpr int kStrip = 64;  // columns that are transposed together: few pages and cache lines are in use at a time

// `columns` columns of the right matrix for a panel of `width`: input by input.
inline void pack_panel(const float* from, const MatrixStrides& by, int inputs, int columns, float* to, int width) {
  if (columns < width) std::memset(to, 0, sizeof(float) * inputs * width);
  if (by.next == 1) {
    for (int i = 0; i < inputs; ++i) {
      if (i + kRowsAhead < inputs) prefetch_row(from + (i + kRowsAhead) * by.summed, columns);
      std::copy_n(from + i * by.summed, columns, to + static_cast<ptrdiff_t>(i) * width);
    }
    return;
  }
  for (int i = 0; i < inputs; i += kStrip) {
    transpose(from + i, by.next, to + static_cast<ptrdiff_t>(i) * width, width, columns, std::min(kStrip, inputs - i));
  }
}

// `count` rows of the left matrix, `pitch` floats apart, from columns that lie `next` apart.
inline void pack_rows(const float* from, ptrdiff_t next, int inputs, int count, float* to, ptrdiff_t pitch) {
  for (int r = 0; r < count; r += kStrip) {
    transpose(from + r, next, to + r * pitch, pitch, inputs, std::min(kStrip, count - r));
  }
}

// Whether quarters of matrices of (rows, inputs) and (inputs, outputs) are multiplied faster.
bool strassen_pays(const LinearKernel& kernel, int64_t rows, int64_t inputs, int64_t outputs);

// out = a b + bias, which may be null; OSTF_ENOMEM, or OSTF_OK.
int multiply_quarters(const LinearKernel& kernel, const ostf_tensor& a, const ostf_tensor& b, const float* bias,
                      const ostf_tensor& out, const MatmulGelu& gelu, int threads);

}  // namespace ostf
