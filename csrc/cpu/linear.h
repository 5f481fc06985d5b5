// Types that linear.cpp, the GEMM driver and the kernels of each instruction set share.
//
// The GEMM multiplies rows of activations (R,I) with prepacked weights (I,O). Both are stored in K-groups: the 4 bytes
// of neighbouring inputs that one lane of a multiply-add instruction takes (one float, two bf16 or four int8), or four
// times that where four instructions share an addition. A 3 x 3 convolution is the same GEMM summed over 9 taps, each of
// which reads the rows at another offset in an image with a zero border.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/capability.h"

namespace ostf {

constexpr int kMaxQuantizedInputs = 1 << 17;  // products of so many int8 pairs add up in 32 bits

// The largest micro-tile of any kernel: 9 x 48 with AVX-512, whose 27 sums and 4 operands fit the 32 registers.
constexpr int kMaxTileRows = 9, kMaxTileColumns = 48, kMaxTileVectors = 3;

// How weights and activations are encoded, which fixes the number of inputs in a K-group.
// kInt8Eights is kInt8 for processors without VNNI: eight products are added in 16 bits, which weights must fit.
enum Encoding { kFloat, kBf16, kInt8, kInt8Eights };
inline int inputs_per_group(Encoding encoding) {
  constexpr int kInputs[] = {1, 2, 4, 16};
  return kInputs[encoding];
}
inline bool quantized(Encoding encoding) { return encoding >= kInt8; }

// The epilogue of a tile: what is added to its sums, and where the result goes.
struct Epilogue {
  const float* bias;
  int activation;  // ostf_activation
  const float* residual;  // float32, or null
  void* out;              // float32 or bfloat16
  bool out_bf16;
  int row_stride;  // elements from one row of residual and out to the next
  int columns;     // columns of the panel that exist; the others are padding
};

// One tile of the result: up to the kernel's `rows` rows by the columns of one panel of weights.
struct Tile {
  const char* rows;  // K-groups of the first row, tap 0
  ptrdiff_t pitch;   // bytes from one row to the next
  int taps;          // 1 or 9; tap t reads the rows that lie (t / 3) * line + t % 3 further on
  int line;          // rows
  int groups;        // K-groups of one tap
  const uint32_t* weights;  // (taps, groups, columns of the panel)
  const char* prefetch;     // weights of the next panel

  // int8 only: sum over taps of row_scale * column_scale * (integer sum + offset).
  const float* row_scale;     // (rows, scale_pitch)
  const float* column_scale;  // (taps, column_pitch)
  const int32_t* offset;      // likewise; what the sums start from
  int scale_pitch, column_pitch;

  Epilogue epilogue;
};

// A finished accumulator tile whose epilogue is interleaved with the next tile's main loop where registers allow: loads,
// stores and permutations then run on ports that the multiply-adds leave idle.
struct PendingTile {
  Epilogue epilogue = {};       // advanced row by row
  const float* sums = nullptr;  // accumulators of the next vector
  int left = 0;                 // vectors that still need their epilogue
  int vector = 0, vectors = 0;  // the next one of its row, and how many a row has
  int turn = 0;                 // which of the buffers holds the sums
  alignas(64) float buffer[2][kMaxTileRows * kMaxTileColumns];
};

// The code of one instruction set for one encoding.
struct LinearKernel {
  Encoding encoding;
  int width;    // columns in a vector register
  int vectors;  // registers in a row of the largest tile: width * vectors columns are a panel of weights
  int rows;     // rows of the largest tile
  int zero;     // the byte whose repetition encodes zeros
  int row_group_bytes;  // bytes of a K-group of activations
  int group_words;      // 32-bit words of a K-group of weights
  int row_dtype;        // dtype whose rows need no encoding (OSTF_F32 or OSTF_BF16), or -1

  // The prologue: encodes `count` elements of a row (OSTF_F32 or OSTF_BF16), normalized first if norm_eps >= 0. The
  // quantized kernels write the row's scale.
  void (*pack_row)(int dtype, const void* row, int count, float norm_eps, void* groups, float* scale);
  // By vectors - 1 and rows - 1: runs the pending tile's epilogue and leaves this tile pending.
  void (*tile[kMaxTileVectors][kMaxTileRows])(const Tile& tile, PendingTile& pending);
  void (*flush)(PendingTile& pending);
};

// The kernel of a compute dtype, or null where this machine (or OSTRACK_FAST_CPU_CAPABILITY) has none.
const LinearKernel* linear_kernel(int dtype);

#if defined(OSTF_X86)
extern const LinearKernel linear_avx2;
extern const LinearKernel linear_avx2_bf16;
extern const LinearKernel linear_avx2_int8;
extern const LinearKernel linear_avx_vnni;
extern const LinearKernel linear_avx512;
extern const LinearKernel linear_avx512_bf16;
extern const LinearKernel linear_avx512_vnni;
#endif

// Layout of the prepacked weights: for each group of a grouped convolution, for each panel, (taps, K-groups, vectors,
// words of a K-group, columns of a vector); then for every column (padded to whole vectors) the bias; and in int8,
// (taps, columns), the scale and the offset of the integer sum.
struct PackedLayout {
  int taps, conv_groups;
  int inputs, outputs;  // channels of one convolution group
  int groups;           // K-groups of one tap
  int group_words;      // 32-bit words of one
  int width;            // columns in a vector
  int vectors, panels;  // counts for one convolution group
  int columns;          // padded columns of all convolution groups
  size_t bias, scale, offset, total;  // in bytes

  PackedLayout(const LinearKernel& kernel, int O, int I, int taps, int conv_groups);

  // Vectors before panel p, counting the panels of all convolution groups; `panels * conv_groups` gives the end.
  int first_vector(int p) const;
  size_t panel(int p) const { return sizeof(uint32_t) * width * taps * groups * group_words * first_vector(p); }
};

inline int ceil_div(int count, int divisor) { return (count + divisor - 1) / divisor; }

// Where the i-th of `parts` nearly equal parts of `count` begins.
inline int part_begin(int i, int parts, int count) {
  return static_cast<int>(static_cast<int64_t>(i) * count / parts);
}

// Writes weight (O,taps,I/conv_groups) and bias (O) to packed, layout.total bytes.
void pack_weights(const LinearKernel& kernel, const PackedLayout& layout, const float* weight, const float* bias,
                  char* packed, int threads);

// Bytes from one packed row of so many K-groups to the next: an odd number of cache lines, so that the rows of a tile do
// not fall into the same sets of the cache.
inline ptrdiff_t row_pitch(const LinearKernel& kernel, ptrdiff_t groups) {
  return (groups * kernel.row_group_bytes + 63) / 64 * 64 | 64;
}

// The rows of a GEMM lie in lines of `length` rows, and a batch item has lines_per_item of them. A tile stays within a
// line, so its rows are evenly spaced. Strides are in bytes for `rows` and in elements for residual and out.
struct Gemm {
  int lines, length, lines_per_item;
  const char* rows;
  ptrdiff_t item, line, pitch;  // from one item, line, row to the next
  int tap_line;                 // rows from one line to the next, for the taps of a convolution
  const float* scale;           // (rows, conv_groups), int8 only
  int activation;  // ostf_activation
  const float* residual;
  ptrdiff_t residual_item;
  void* out;
  bool out_bf16;
  ptrdiff_t out_item;
  int row_stride = 0;  // elements from one row of residual and out to the next, where they are not dense
};

void run_gemm(const LinearKernel& kernel, const PackedLayout& layout, const char* packed, const Gemm& gemm,
              int threads);

}  // namespace ostf
