// What linear.cpp and its per-instruction-set kernels share.
//
// A product of rows with packed weights, rows (R,I) x weights (I,O), sums over 4-byte "units": one float, two
// neighbouring bf16 or four neighbouring bytes, the operands of one multiply-add instruction. A 3 x 3 convolution is
// the same product summed over 9 taps, each of which reads the rows at another offset in an image with a zero border.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/capability.h"

namespace ostf {

constexpr int kLinearWidth = 16;   // output columns in a vector
constexpr int kLinearVectors = 3;  // vectors in the widest panel of weights
constexpr int kLinearRows = 9;     // rows in the tallest tile: 9 x 3 sums and 4 operands fit the 32 registers

// Units of bytes that share a scale: 64 inputs. The largest magnitude of a whole row would leave the rest few steps.
constexpr int kLinearByteSlice = 16;

enum LinearActivation { kNoActivation, kGelu, kRelu };

// What becomes of a tile's sums.
struct LinearResult {
  const float* bias;
  LinearActivation activation;
  const float* residual;  // float32, or null
  void* out;              // float32 or bfloat16
  bool out_bf16;
  int width;    // elements from one row of residual and out to the next
  int columns;  // of the panel that exist
};

// One tile of the result: up to kLinearRows rows by the columns of one panel.
struct LinearTile {
  const char* rows;  // units of the first row, tap 0
  ptrdiff_t pitch;   // bytes from one row to the next
  int taps;          // 1 or 9; tap t reads rows that lie (t / 3) * line + t % 3 further on
  int line;
  int units;                // of one tap
  const uint32_t* weights;  // (taps, units, vectors of the panel, kLinearWidth)
  const char* prefetch;     // weights that will be wanted soon

  // Bytes only: result = sum over taps and slices of row_scale * column_scale * (sum of products + offset).
  const float* row_scale;     // (places, scale_pitch), the slices of this group
  const float* column_scale;  // (taps, slices, column_pitch)
  const int32_t* offset;      // likewise
  int slices;                 // of one tap
  int scale_pitch, column_pitch;

  LinearResult result;
};

// A tile whose sums are there. They become results while the sums of the next tile are taken: what a result needs
// beside them runs on units of the processor that products leave idle.
struct LinearPending {
  LinearResult result = {};           // from the row at hand on
  const float* sums = nullptr;        // of the vector that comes next
  int left = 0;                       // vectors that have not become results
  int vector = 0, vectors = 0;        // the next one of its row, and how many a row has
  int turn = 0;                       // which of the buffers holds the sums
  alignas(64) float buffer[2][kLinearRows * kLinearVectors * kLinearWidth];
};

// One instruction set's code for one kind of unit.
struct LinearKernel {
  // Packs `count` elements of a row (OSTF_F32 or OSTF_BF16), normalized first if norm_eps >= 0. The kernel of bytes
  // alone writes a scale for every slice.
  void (*pack_row)(int dtype, const void* row, int count, float norm_eps, void* units, float* scale);
  // By vectors - 1 and rows - 1: finishes the pending tile and leaves this one pending.
  void (*tile[kLinearVectors][kLinearRows])(const LinearTile& tile, LinearPending& pending);
  void (*finish)(LinearPending& pending);
};

#if defined(OSTF_X86)
extern const LinearKernel linear_avx512;
extern const LinearKernel linear_avx512_bf16;
extern const LinearKernel linear_avx512_vnni;
#endif

// |x| * (1 - Phi(|x|)), Phi the normal distribution function, as 16 polynomials: gelu(x) = max(x, 0) - that.
// With y = min(|x| * kScale, kLast), polynomial round(y) has the argument y - round(y). What lies beyond kLast is below
// 1e-7.
struct GeluTable {
  static constexpr int kPieces = 16, kDegree = 5;
  static constexpr float kScale = 2.75f;
  static constexpr float kLast = 15.4999f;
  alignas(64) float coefficient[kDegree + 1][kPieces];
};
extern const GeluTable gelu_table;

}  // namespace ostf
