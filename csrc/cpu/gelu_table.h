// GELU with the exact erf, as piecewise polynomials whose coefficients fit vector registers.
#pragma once

namespace ostf {

// A function of |x| as polynomials on Pieces intervals. With y = min(|x| * kScale, kLast), polynomial round(y) has the
// argument y - round(y). The pieces reach to |x| = Reach / 11.
template <int Pieces, int Degree, int Reach>
struct GeluTable {
  static constexpr int kPieces = Pieces, kDegree = Degree;
  static constexpr float kLast = Pieces - 0.5001f;
  static constexpr float kScale = (Pieces - 0.5f) * 11 / Reach;
  alignas(64) float coefficient[kDegree + 1][kPieces];
};

// |x| * (1 - Phi(|x|)), Phi the normal distribution function: gelu(x) = max(x, 0) - that. Beyond its reach below 1e-7.
template <int Pieces, int Degree>
using GeluValues = GeluTable<Pieces, Degree, 62>;
// The derivative of that: gelu'(x) is 1 - it for x > 0, and it for x < 0. Beyond its reach it is 4e-8 at most.
template <int Pieces, int Degree>
using GeluSlopes = GeluTable<Pieces, Degree, 66>;

// One register for each power: of AVX-512, of AVX2.
extern const GeluValues<16, 5> gelu_values_16;
extern const GeluValues<8, 7> gelu_values_8;
extern const GeluSlopes<16, 5> gelu_slopes_16;
extern const GeluSlopes<8, 7> gelu_slopes_8;

}  // namespace ostf
