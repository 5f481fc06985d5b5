#include "cpu/gelu_table.h"

#include <cmath>

namespace {

double above(double x) { return 0.5 * std::erfc(x * 0.70710678118654752); }  // 1 - Phi(x)
double value(double x) { return x * above(x); }
double slope(double x) { return above(x) - x * std::exp(-0.5 * x * x) * 0.39894228040143268; }

// In each piece, the polynomial through the function at the Chebyshev points, first in Newton's form; at 0 exact.
template <class Table>
Table interpolated(double (*function)(double)) {
  constexpr int n = Table::kDegree + 1;
  Table result;
  for (int piece = 0; piece < Table::kPieces; ++piece) {
    double t[n], newton[n], c[n] = {};
    for (int i = 0; i < n; ++i) {
      t[i] = 0.5 * std::cos(3.14159265358979324 * (i + 0.5) / n);
      const double x = (piece + t[i]) / static_cast<double>(Table::kScale);
      newton[i] = function(x);
    }
    for (int order = 1; order < n; ++order) {
      for (int i = n - 1; i >= order; --i) newton[i] = (newton[i] - newton[i - 1]) / (t[i] - t[i - order]);
    }
    for (int i = n - 1; i >= 0; --i) {  // c(t) = c(t) * (t - t[i]) + newton[i]
      for (int j = n - 1; j > 0; --j) c[j] = c[j - 1] - t[i] * c[j];
      c[0] = newton[i] - t[i] * c[0];
    }
    if (piece == 0) c[0] = function(0);  // so that gelu(0) = 0, and is x / 2 for tiny x
    for (int i = 0; i < n; ++i) result.coefficient[i][piece] = static_cast<float>(c[i]);
  }
  return result;
}

}  // namespace

const ostf::GeluValues<16, 5> ostf::gelu_values_16 = interpolated<ostf::GeluValues<16, 5>>(value);
const ostf::GeluValues<8, 7> ostf::gelu_values_8 = interpolated<ostf::GeluValues<8, 7>>(value);
const ostf::GeluSlopes<16, 5> ostf::gelu_slopes_16 = interpolated<ostf::GeluSlopes<16, 5>>(slope);
const ostf::GeluSlopes<8, 7> ostf::gelu_slopes_8 = interpolated<ostf::GeluSlopes<8, 7>>(slope);
