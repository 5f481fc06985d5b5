// GELU with the exact erf, as piecewise polynomials whose coefficients fit vector registers.
#pragma once

namespace ostf {

// |x| * (1 - Phi(|x|)), Phi the normal distribution function, as polynomials on Pieces intervals: gelu(x) =
// max(x, 0) - that. With y = min(|x| * kScale, kLast), polynomial round(y) has the argument y - round(y). Beyond kLast
// the function is below 1e-7.
template <int Pieces, int Degree>
struct GeluTable {
  static constexpr int kPieces = Pieces, kDegree = Degree;
  static constexpr float kLast = Pieces - 0.5001f;
  static constexpr float kScale = (Pieces - 0.5f) * 11 / 62;  // the pieces reach to |x| = 62 / 11
  alignas(64) float coefficient[kDegree + 1][kPieces];
};

extern const GeluTable<16, 5> gelu_table_16;  // one AVX-512 register for each power
extern const GeluTable<8, 7> gelu_table_8;    // one AVX2 register for each power

}  // namespace ostf
