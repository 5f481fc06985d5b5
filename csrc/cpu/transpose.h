// A matrix transposed, by blocks in registers.
#pragma once
#include <algorithm>
#include <cstddef>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ostf {

// Transposes B x B elements: rows[j][i] -> to[i * stride + j]. B elements fill 16 bytes.
template <class E>
struct TransposedBlock {
  static constexpr int B = 16 / sizeof(E);

#if defined(__SSE2__)
  static __m128i low(__m128i a, __m128i b) { return pick<sizeof(E)>(a, b, false); }
  static __m128i high(__m128i a, __m128i b) { return pick<sizeof(E)>(a, b, true); }

  template <size_t size>
  static __m128i pick(__m128i a, __m128i b, bool upper) {
    if (size == 2) return upper ? _mm_unpackhi_epi16(a, b) : _mm_unpacklo_epi16(a, b);
    if (size == 4) return upper ? _mm_unpackhi_epi32(a, b) : _mm_unpacklo_epi32(a, b);
    return upper ? _mm_unpackhi_epi64(a, b) : _mm_unpacklo_epi64(a, b);
  }

  static void transpose(const E* const* rows, E* to, ptrdiff_t stride) {
    __m128i a[B], b[B];
    for (int j = 0; j < B; ++j) a[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j]));
    // Each round interleaves row j with row j + B / 2; after log2(B) rounds rows are columns.
    for (int step = 1; step < B; step *= 2) {
      for (int j = 0; j < B / 2; ++j) {
        b[2 * j] = low(a[j], a[j + B / 2]);
        b[2 * j + 1] = high(a[j], a[j + B / 2]);
      }
      std::copy(b, b + B, a);
    }
    for (int i = 0; i < B; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride), a[i]);
  }
#else
  static void transpose(const E* const* rows, E* to, ptrdiff_t stride) {
    for (int i = 0; i < B; ++i) {
      for (int j = 0; j < B; ++j) to[i * stride + j] = rows[j][i];
    }
  }
#endif
};

constexpr int kRowsAhead = 48;  // between the row that is read and the one that is prefetched

// Hardware does not foresee rows that lie pages apart.
template <class E>
void prefetch_row(const E* row, int count) {
  constexpr int kLine = 64 / sizeof(E);
  for (int at = 0; at < count; at += kLine) __builtin_prefetch(row + at);
}

// to[j * to_next + i] = from[i * from_next + j]. Columns of `from` should be few: they are in use at a time.
template <class E>
void transpose(const E* from, ptrdiff_t from_next, E* to, ptrdiff_t to_next, int rows, int columns) {
  using Block = TransposedBlock<E>;
  constexpr int side = Block::B;
  const int whole_rows = rows - rows % side, whole_columns = columns - columns % side;
  for (int i = 0; i < whole_rows; i += side) {
    for (int j = 0; j < whole_columns; j += side) {
      const E* block[side];
      for (int r = 0; r < side; ++r) block[r] = from + (i + r) * from_next + j;
      Block::transpose(block, to + j * to_next + i, to_next);
    }
    for (int r = i + kRowsAhead; r < std::min(i + kRowsAhead + side, rows); ++r) {
      prefetch_row(from + r * from_next, columns);
    }
  }
  for (int j = 0; j < columns; ++j) {
    for (int i = j < whole_columns ? whole_rows : 0; i < rows; ++i) to[j * to_next + i] = from[i * from_next + j];
  }
}

}  // namespace ostf
