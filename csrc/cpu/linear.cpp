// Linear layers and 3 x 3 convolutions on the CPU: checks, the packed weights, how a product is cut into tasks.
#include "cpu/linear.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "cpu/arena.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "ostrack_fast.h"

namespace {

using ostf::kLinearRows;
using ostf::kLinearVectors;
using ostf::kLinearWidth;
using ostf::LinearKernel;
using ostf::LinearPending;
using ostf::LinearTile;

// Rows worked on at once. A block may exceed the L2 cache: its rows stream by in order, which the processor foresees,
// while smaller blocks would read the weights more often (measured on Zen 5, 1 MiB of L2).
constexpr int64_t kRowBytes = 2000000;

// The kernel of a dtype, or null where this machine (or OSTRACK_FAST_CPU_CAPABILITY) has none.
const LinearKernel* choose([[maybe_unused]] int dtype) {
#if defined(OSTF_X86)
  if (dtype == OSTF_F32 && ostf::level() >= ostf::kAvx512) return &ostf::linear_avx512;
  if (dtype == OSTF_BF16 && ostf::level() >= ostf::kAvx512Bf16) return &ostf::linear_avx512_bf16;
  if (dtype == OSTF_I8 && ostf::level() >= ostf::kAvx512 && ostf::cpu_features().avx512_vnni) {
    return &ostf::linear_avx512_vnni;
  }
#endif
  return nullptr;
}

int parts(int count, int largest) { return (count + largest - 1) / largest; }

// Where the i-th of `parts` nearly equal parts of `count` begins.
int part(int i, int parts, int count) { return static_cast<int>(static_cast<int64_t>(i) * count / parts); }

// The packed weights: for each group, for each panel of up to kLinearVectors vectors of columns, (taps, units,
// columns). Then, for every column (padded), the bias; and for bytes, (taps, slices, columns), the scale and what a sum
// starts from, as activations are packed with an offset.
struct Layout {
  int dtype, taps, groups;
  int inputs, outputs;  // of one group
  int step, units;      // elements in a unit, units of one tap of one group
  int slices;           // of one tap that have a scale: bytes only
  int vectors, panels;  // of one group
  int columns;          // of all groups, padded
  size_t bias, scale, offset, total;  // in bytes

  Layout(int dtype, int O, int I, int taps, int groups)
      : dtype(dtype), taps(taps), groups(groups), inputs(I / groups), outputs(O / groups) {
    step = dtype == OSTF_F32 ? 1 : dtype == OSTF_BF16 ? 2 : 4;
    units = parts(inputs, step);
    slices = dtype == OSTF_I8 ? parts(units, ostf::kLinearByteSlice) : 0;
    vectors = parts(outputs, kLinearWidth);
    panels = parts(vectors, kLinearVectors);
    columns = groups * vectors * kLinearWidth;
    const size_t lane = sizeof(uint32_t);
    bias = lane * columns * taps * units;
    scale = bias + lane * columns;
    offset = scale + lane * columns * taps * slices;
    total = offset + lane * columns * taps * slices;
  }

  // Vectors before panel p, the panels of all groups counted through; `panels * groups` gives the end.
  int first_vector(int p) const { return p / panels * vectors + part(p % panels, panels, vectors); }
  size_t panel(int p) const { return sizeof(uint32_t) * kLinearWidth * taps * units * first_vector(p); }
};

bool valid(int O, int I, int taps, int groups) {
  return O >= 1 && I >= 1 && groups >= 1 && O % groups == 0 && I % groups == 0 && (taps == 1 || taps == 9);
}

// The rows of a product lie in lines of `length` rows, and a batch item has `per_item` lines. A tile never leaves its
// line, so that its rows are evenly spaced.
struct Lines {
  int count, length, per_item;

  ptrdiff_t start(int line, ptrdiff_t item, ptrdiff_t next) const {
    return line / per_item * item + line % per_item * next;
  }
};

struct Input {
  const char* rows;
  ptrdiff_t item, line, pitch;  // bytes to the next item, line, row
  int line_places;              // rows from one line to the next, where taps differ by lines
  const float* scale;           // (places, groups, slices), of bytes only
};

struct Output {
  ostf::LinearActivation activation;
  const float* residual;
  ptrdiff_t residual_item;  // elements to the next item
  void* out;
  bool bf16;
  ptrdiff_t item;
};

// Tasks are blocks of rows by panels of weights. A panel stays in the L2 cache while all rows of a block pass by.
void multiply(const LinearKernel& kernel, const Layout& layout, const char* packed, const Lines& lines,
              const Input& input, const Output& output, int threads) {
  const int per_line = parts(lines.length, kLinearRows);
  const int tiles = lines.count * per_line;
  const int panels = layout.panels * layout.groups;
  const int64_t bytes = static_cast<int64_t>(lines.count) * lines.length * layout.units * 4;
  int blocks = static_cast<int>((bytes + kRowBytes - 1) / kRowBytes);
  if (threads > 1) blocks = std::max(blocks, parts(4 * threads, panels));
  blocks = std::min(blocks, tiles);

  const int outputs = layout.outputs * layout.groups;
  LinearTile common = {};
  common.pitch = input.pitch;
  common.taps = layout.taps;
  common.line = input.line_places;
  common.units = layout.units;
  common.slices = layout.slices;
  common.scale_pitch = layout.groups * layout.slices;
  common.column_pitch = layout.columns;
  common.result.activation = output.activation;
  common.result.out_bf16 = output.bf16;
  common.result.width = outputs;

  ostf::parallel_for(static_cast<int64_t>(blocks) * panels, threads, [&](int64_t first, int64_t last) {
    LinearPending pending;
    for (int64_t task = first; task < last; ++task) {
      const int block = static_cast<int>(task / panels), p = static_cast<int>(task % panels);
      const int group = p / layout.panels;
      const int vector = layout.first_vector(p), vectors = layout.first_vector(p + 1) - vector;
      const int column = (vector - group * layout.vectors) * kLinearWidth;  // in the group
      const int first_tile = part(block, blocks, tiles), last_tile = part(block + 1, blocks, tiles);

      LinearTile tile = common;
      tile.weights = reinterpret_cast<const uint32_t*>(packed + layout.panel(p));
      tile.prefetch = packed + (task + 1 < last ? layout.panel(static_cast<int>((task + 1) % panels)) : layout.bias);
      const ptrdiff_t share = (layout.panel(p + 1) - layout.panel(p)) / (last_tile - first_tile) / 64 * 64;
      const size_t lane = sizeof(float) * vector * kLinearWidth;
      tile.result.bias = reinterpret_cast<const float*>(packed + layout.bias + lane);
      tile.column_scale = reinterpret_cast<const float*>(packed + layout.scale + lane);
      tile.offset = reinterpret_cast<const int32_t*>(packed + layout.offset + lane);
      tile.result.columns = std::min(vectors * kLinearWidth, layout.outputs - column);
      for (int t = first_tile; t < last_tile; ++t) {
        const int line = t / per_line;
        const int row = part(t % per_line, per_line, lines.length);
        const int rows = part(t % per_line + 1, per_line, lines.length) - row;
        const ptrdiff_t from = lines.start(line, input.item, input.line) + row * input.pitch;
        tile.rows = input.rows + from + static_cast<ptrdiff_t>(group) * layout.units * 4;
        if (input.scale) tile.row_scale = input.scale + from / input.pitch * tile.scale_pitch + group * layout.slices;
        const ptrdiff_t within = static_cast<ptrdiff_t>(row) * outputs + group * layout.outputs + column;
        const ptrdiff_t next = static_cast<ptrdiff_t>(lines.length) * outputs;
        if (output.residual) {
          tile.result.residual = output.residual + lines.start(line, output.residual_item, next) + within;
        }
        const ptrdiff_t to = lines.start(line, output.item, next) + within;
        tile.result.out = static_cast<char*>(output.out) + to * (output.bf16 ? 2 : 4);
        kernel.tile[vectors - 1][rows - 1](tile, pending);
        tile.prefetch += share;
      }
    }
    kernel.finish(pending);
  });
}

// Weights of one column in one slice, quantized. Activations are packed with 128 added, for the instruction multiplies
// unsigned bytes with signed ones: `offset` takes that off a sum.
void pack_bytes(const float* values, int count, char* units, ptrdiff_t next, float* scale, int32_t* offset) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  *scale = largest / 127.0f;
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) {
    const float rounded = *scale > 0 ? std::nearbyint(values[i] / *scale) : 0.0f;
    const auto whole = static_cast<int8_t>(std::clamp(rounded, -127.0f, 127.0f));
    std::memcpy(units + i / 4 * next + i % 4, &whole, 1);
    sum += whole;
  }
  *offset = -128 * sum;
}

ptrdiff_t row_pitch(const Layout& layout) {
  // An odd number of cache lines, so that the rows of a tile do not fall into the same sets of the cache.
  return (static_cast<ptrdiff_t>(layout.groups) * layout.units * 4 + 63) / 64 * 64 | 64;
}

int size_of(int dtype) { return dtype == OSTF_BF16 ? 2 : 4; }

bool float_or_bf16(int dtype) { return dtype == OSTF_F32 || dtype == OSTF_BF16; }

bool activation_of(int code, ostf::LinearActivation* activation) {
  if (code < ostf::kNoActivation || code > ostf::kRelu) return false;
  *activation = static_cast<ostf::LinearActivation>(code);
  return true;
}

void* scratch(size_t bytes) {
  static thread_local ostf::Arena arena;
  return arena.reserve(bytes);
}

}  // namespace

const ostf::GeluTable ostf::gelu_table = [] {
  // In each piece the polynomial through the function at the Chebyshev points, in Newton's form first.
  constexpr int n = GeluTable::kDegree + 1;
  GeluTable result;
  for (int piece = 0; piece < GeluTable::kPieces; ++piece) {
    double t[n], newton[n], c[n] = {};
    for (int i = 0; i < n; ++i) {
      t[i] = 0.5 * std::cos(3.14159265358979324 * (i + 0.5) / n);
      const double x = (piece + t[i]) / GeluTable::kScale;
      newton[i] = 0.5 * x * std::erfc(x * 0.70710678118654752);
    }
    for (int order = 1; order < n; ++order) {
      for (int i = n - 1; i >= order; --i) newton[i] = (newton[i] - newton[i - 1]) / (t[i] - t[i - order]);
    }
    for (int i = n - 1; i >= 0; --i) {  // c(t) = c(t) * (t - t[i]) + newton[i]
      for (int j = n - 1; j > 0; --j) c[j] = c[j - 1] - t[i] * c[j];
      c[0] = newton[i] - t[i] * c[0];
    }
    if (piece == 0) c[0] = 0;  // so that gelu(0) = 0, and is x / 2 for tiny x
    for (int i = 0; i < n; ++i) result.coefficient[i][piece] = static_cast<float>(c[i]);
  }
  return result;
}();

int ostf_cpu_linear_packed_bytes(int dtype, int O, int I, int taps, int groups, int64_t* bytes) {
  if (!valid(O, I, taps, groups)) return OSTF_EINVAL;
  if (ostf::level() < 0) return OSTF_EINVAL;
  if (!choose(dtype)) return OSTF_EDTYPE;
  *bytes = static_cast<int64_t>(Layout(dtype, O, I, taps, groups).total);
  return OSTF_OK;
}

int ostf_cpu_linear_pack(int dtype, const float* weight, const float* bias, void* packed, int O, int I, int taps,
                         int groups, int threads) {
  if (!valid(O, I, taps, groups) || threads < 1) return OSTF_EINVAL;
  if (ostf::level() < 0) return OSTF_EINVAL;
  if (!choose(dtype)) return OSTF_EDTYPE;
  const Layout layout(dtype, O, I, taps, groups);
  const float* end = weight + static_cast<ptrdiff_t>(O) * taps * layout.inputs;
  const auto finite = [](float value) { return std::isfinite(value); };
  if (dtype == OSTF_I8 && !std::all_of(weight, end, finite)) return OSTF_EINVAL;  // no byte stands for them
  auto* base = static_cast<char*>(packed);
  std::memset(base, 0, layout.total);
  ostf::parallel_for(layout.panels * groups, threads, [&](int64_t first, int64_t last) {
    for (int p = static_cast<int>(first); p < last; ++p) {
      const int group = p / layout.panels;
      const int vector = layout.first_vector(p), wide = (layout.first_vector(p + 1) - vector) * kLinearWidth;
      const int begin = (vector - group * layout.vectors) * kLinearWidth;
      char* panel = base + layout.panel(p);
      for (int c = 0; c < wide && begin + c < layout.outputs; ++c) {
        const int output = group * layout.outputs + begin + c, column = vector * kLinearWidth + c;
        const float* from = weight + static_cast<ptrdiff_t>(output) * taps * layout.inputs;
        reinterpret_cast<float*>(base + layout.bias)[column] = bias[output];
        for (int tap = 0; tap < taps; ++tap) {
          char* units = panel + (static_cast<ptrdiff_t>(tap) * layout.units * wide + c) * 4;
          const ptrdiff_t next = static_cast<ptrdiff_t>(wide) * 4;  // bytes from one unit of the column to the next
          const float* values = from + static_cast<ptrdiff_t>(tap) * layout.inputs;
          if (dtype == OSTF_F32) {
            for (int i = 0; i < layout.inputs; ++i) std::memcpy(units + i * next, values + i, 4);
          } else if (dtype == OSTF_BF16) {
            for (int i = 0; i < layout.inputs; ++i) {
              const uint16_t rounded = ostf::float_to_bf16(values[i]);
              std::memcpy(units + i / 2 * next + i % 2 * 2, &rounded, 2);
            }
          } else {
            for (int slice = 0; slice < layout.slices; ++slice) {
              const ptrdiff_t at = static_cast<ptrdiff_t>(tap * layout.slices + slice) * layout.columns + column;
              const int first = slice * 4 * ostf::kLinearByteSlice;
              const int last = std::min(first + 4 * ostf::kLinearByteSlice, layout.inputs);
              pack_bytes(values + first, last - first, units + first / 4 * next, next,
                         reinterpret_cast<float*>(base + layout.scale) + at,
                         reinterpret_cast<int32_t*>(base + layout.offset) + at);
            }
          }
        }
      }
    }
  });
  return OSTF_OK;
}

int ostf_cpu_linear(int dtype, const void* packed, int x_dtype, const void* x, int64_t x_item, const float* residual,
                    int64_t residual_item, int out_dtype, void* out, int64_t out_item, int B, int R, int O, int I,
                    double norm_eps, int activation, int threads) {
  Output output = {ostf::kNoActivation, residual, residual_item, out, out_dtype == OSTF_BF16, out_item};
  if (!valid(O, I, 1, 1) || B < 0 || R < 0 || threads < 1) return OSTF_EINVAL;
  if (static_cast<int64_t>(B) * R > INT_MAX) return OSTF_EINVAL;
  if (!activation_of(activation, &output.activation) || ostf::level() < 0) return OSTF_EINVAL;
  const LinearKernel* kernel = choose(dtype);
  if (!kernel || !float_or_bf16(x_dtype) || !float_or_bf16(out_dtype)) return OSTF_EDTYPE;
  if (B == 0 || R == 0) return OSTF_OK;

  const Layout layout(dtype, O, I, 1, 1);
  const int element = size_of(x_dtype);
  const auto* from = static_cast<const char*>(x);
  Lines lines = {B, R, 1};
  Input input = {from, x_item * element, 0, static_cast<ptrdiff_t>(I) * element, 0, nullptr};
  if (norm_eps >= 0 || x_dtype != dtype || I % layout.step != 0) {
    const ptrdiff_t pitch = row_pitch(layout);
    const ptrdiff_t rows = static_cast<ptrdiff_t>(B) * R;
    auto* to = static_cast<char*>(scratch((pitch + sizeof(float) * layout.slices) * rows));
    if (!to) return OSTF_ENOMEM;
    auto* scale = reinterpret_cast<float*>(to + pitch * rows);
    ostf::parallel_for(rows, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        kernel->pack_row(x_dtype, from + (row / R * x_item + row % R * I) * element, I, static_cast<float>(norm_eps),
                         to + row * pitch, scale + row * layout.slices);
      }
    });
    input = {to, R * pitch, 0, pitch, 0, scale};
  }
  // Items that follow each other everywhere are one long line, which cuts into fuller tiles.
  const auto dense = [&](ptrdiff_t item, ptrdiff_t row) { return item == R * row; };
  if (dense(input.item, input.pitch) && dense(out_item, O) && (!residual || dense(residual_item, O))) {
    lines = {1, B * R, 1};
  }
  multiply(*kernel, layout, static_cast<const char*>(packed), lines, input, output, threads);
  return OSTF_OK;
}

int ostf_cpu_conv3x3(int dtype, const void* packed, int x_dtype, const void* x, int out_dtype, void* out, int B, int F,
                     int O, int I, int groups, int activation, int threads) {
  const int64_t item = static_cast<int64_t>(F) * F * O;
  Output output = {ostf::kNoActivation, nullptr, 0, out, out_dtype == OSTF_BF16, item};
  if (!valid(O, I, 9, groups) || B < 0 || F < 1 || F > 4096 || threads < 1) return OSTF_EINVAL;
  if (B > INT_MAX / F) return OSTF_EINVAL;
  if (!activation_of(activation, &output.activation) || ostf::level() < 0) return OSTF_EINVAL;
  const LinearKernel* kernel = choose(dtype);
  if (!kernel || !float_or_bf16(x_dtype) || !float_or_bf16(out_dtype)) return OSTF_EDTYPE;
  if (B == 0) return OSTF_OK;

  const Layout layout(dtype, O, I, 9, groups);
  const ptrdiff_t pitch = row_pitch(layout);
  const int side = F + 2;
  const ptrdiff_t places = static_cast<ptrdiff_t>(B) * side * side;
  const ptrdiff_t scales = static_cast<ptrdiff_t>(groups) * layout.slices;
  auto* to = static_cast<char*>(scratch((pitch + sizeof(float) * scales) * places));
  if (!to) return OSTF_ENOMEM;
  auto* scale = reinterpret_cast<float*>(to + pitch * places);
  const int element = size_of(x_dtype);
  const int zero = dtype == OSTF_I8 ? 128 : 0;
  ostf::parallel_for(static_cast<int64_t>(B) * side, threads, [&](int64_t first, int64_t last) {
    for (int64_t place = first * side; place < last * side; ++place) {
      const int64_t row = place / side % side - 1, column = place % side - 1;
      char* units = to + place * pitch;
      if (row < 0 || row >= F || column < 0 || column >= F) {
        std::memset(units, zero, pitch);
        std::fill_n(scale + place * scales, scales, 0.0f);
        continue;
      }
      const char* from = static_cast<const char*>(x) + ((place / side / side * F + row) * F + column) * I * element;
      for (int g = 0; g < groups; ++g) {
        kernel->pack_row(x_dtype, from + static_cast<ptrdiff_t>(g) * layout.inputs * element, layout.inputs, -1.0f,
                         units + static_cast<ptrdiff_t>(g) * layout.units * 4,
                         scale + place * scales + g * layout.slices);
      }
    }
  });
  const Lines lines = {B * F, F, F};
  const Input input = {to, side * side * pitch, side * pitch, pitch, side, scale};
  multiply(*kernel, layout, static_cast<const char*>(packed), lines, input, output, threads);
  return OSTF_OK;
}
