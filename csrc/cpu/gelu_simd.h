// GELU and its derivative over the vectors of one instruction set (linear_simd_*.h, included before).
namespace {

template <class Table>
OSTF_INLINE Vec gelu_polynomial(const Table& table, Vec y) {
  Vec t;
  const Ints piece = gelu_piece(y, &t);
  Vec p = gelu_coefficient(table.coefficient[Table::kDegree], piece);
  OSTF_UNROLL for (int i = Table::kDegree - 1; i >= 0; --i) {
    p = fma(p, t, gelu_coefficient(table.coefficient[i], piece));
  }
  return p;
}

OSTF_INLINE Vec gelu(Vec x) {
  const auto& table = gelu_values();
  const Vec p = gelu_polynomial(table, min(mul(abs(x), set(table.kScale)), set(table.kLast)));
  return sub(max(zero(), x), p);  // this order of operands passes NaN on
}

[[maybe_unused]] OSTF_INLINE Vec gelu_slope(Vec x) {
  const auto& table = gelu_slopes();
  const Vec p = gelu_polynomial(table, min(set(table.kLast), mul(abs(x), set(table.kScale))));  // as does this
  return by_sign(x, sub(set(1.0f), p), p);
}

}  // namespace
