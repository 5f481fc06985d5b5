// Prepacking the weights of linear layers and 3 x 3 convolutions.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/half.h"
#include "cpu/linear.h"
#include "cpu/parallel.h"

namespace ostf {
namespace {

// A column's quantization step: its largest weight becomes 127. Where `eights` are added in signed 16 bits, two products
// of unsigned activations, up to 255, must fit: two neighbours of one sign may together become 128 at most. So must eight
// of signed ones, up to 127: the magnitudes of eight weights may together become 254, and 258 when they are rounded.
float quantization_step(const float* values, int count, bool eights) {
  float largest = 0, largest_pair = 0, largest_eight = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  for (int i = 0; eights && i < count; i += 16) {
    float group[16] = {}, sum[2] = {};
    std::copy(values + i, values + std::min(i + 16, count), group);
    for (int pair = 0; pair < 8; ++pair) {
      const float a = group[2 * pair], b = group[2 * pair + 1], magnitude = std::fabs(a) + std::fabs(b);
      if ((a < 0) == (b < 0)) largest_pair = std::max(largest_pair, magnitude);
      sum[pair % 2] += magnitude;
    }
    largest_eight = std::max({largest_eight, sum[0], sum[1]});
  }
  return std::max({largest / 127.0f, largest_pair / 128.0f, largest_eight / 254.0f});
}

// Both halves of 128 may round up: then the smaller weight gives way by one.
void keep_pair(int8_t& a, int8_t& b) {
  if (std::abs(a + b) > 128 && (a ^ b) >= 0) (std::abs(a) < std::abs(b) ? a : b) += a > 0 ? -1 : 1;
}

// One column in int8. Activations are unsigned bytes, packed with 128 added, and `offset` takes that off the sum, or for
// `eights` the last word of each K-group.
void quantize(const PackedLayout& layout, bool eights, const float* values, char* groups, ptrdiff_t next, float* scale,
              int32_t* offset) {
  const int count = layout.inputs, group_inputs = inputs_per_group(eights ? kInt8Eights : kInt8);
  const ptrdiff_t word = sizeof(uint32_t) * layout.width;  // from one word of a K-group to the next
  *scale = quantization_step(values, count, eights);
  const auto whole = [&](int i) {
    const float rounded = i < count && *scale > 0 ? std::nearbyint(values[i] / *scale) : 0.0f;
    return static_cast<int8_t>(std::clamp(rounded, -127.0f, 127.0f));
  };
  int32_t sum = 0;
  for (int i = 0; i < count; i += 2) {
    int8_t pair[] = {whole(i), whole(i + 1)};
    if (eights) keep_pair(pair[0], pair[1]);
    char* group = groups + i / group_inputs * next;
    std::memcpy(group + i % group_inputs / 4 * word + i % 4, pair, sizeof pair);
    if (eights) *reinterpret_cast<uint16_t*>(group + 4 * word + i % 4) -= 128 * (pair[0] + pair[1]);
    sum += pair[0] + pair[1];
  }
  *offset = eights ? 0 : -128 * sum;
}

// The weights of one column and tap, whose K-groups lie `next` bytes apart. `at` is the column in the tap's scales.
void pack_column(const LinearKernel& kernel, const PackedLayout& layout, const float* values, char* groups,
                 ptrdiff_t next, char* packed, ptrdiff_t at) {
  if (kernel.encoding == kFloat) {
    for (int i = 0; i < layout.inputs; ++i) std::memcpy(groups + i * next, values + i, sizeof(float));
    return;
  }
  if (kernel.encoding == kBf16) {
    for (int i = 0; i < layout.inputs; ++i) {
      const uint16_t rounded = float_to_bf16(values[i]);
      std::memcpy(groups + i / 2 * next + i % 2 * 2, &rounded, 2);
    }
    return;
  }
  quantize(layout, kernel.encoding == kInt8Eights, values, groups, next,
           reinterpret_cast<float*>(packed + layout.scale) + at, reinterpret_cast<int32_t*>(packed + layout.offset) + at);
}

}  // namespace

PackedLayout::PackedLayout(const LinearKernel& kernel, int O, int I, int taps, int conv_groups)
    : taps(taps), conv_groups(conv_groups), inputs(I / conv_groups), outputs(O / conv_groups), width(kernel.width) {
  groups = ceil_div(inputs, inputs_per_group(kernel.encoding));
  group_words = kernel.group_words;
  vectors = ceil_div(outputs, width);
  panels = ceil_div(vectors, kernel.vectors);
  columns = conv_groups * vectors * width;
  constexpr size_t lane = sizeof(uint32_t);
  bias = lane * columns * taps * groups * group_words;
  scale = bias + lane * columns;
  const size_t scales = quantized(kernel.encoding) ? lane * columns * taps : 0;
  offset = scale + scales;
  total = offset + scales;
}

int PackedLayout::first_vector(int p) const { return p / panels * vectors + part_begin(p % panels, panels, vectors); }

void pack_weights(const LinearKernel& kernel, const PackedLayout& layout, const float* weight, const float* bias,
                  char* packed, int threads) {
  std::memset(packed, 0, layout.total);
  parallel_for(layout.panels * layout.conv_groups, threads, [&](int64_t first, int64_t last) {
    for (int p = static_cast<int>(first); p < last; ++p) {
      const int conv_group = p / layout.panels;
      const int vector = layout.first_vector(p), columns = (layout.first_vector(p + 1) - vector) * layout.width;
      const int begin = vector * layout.width - conv_group * layout.vectors * layout.width;
      const ptrdiff_t word = sizeof(uint32_t), next = word * columns * layout.group_words;
      for (int c = 0; c < columns && begin + c < layout.outputs; ++c) {
        const int output = conv_group * layout.outputs + begin + c, column = vector * layout.width + c;
        reinterpret_cast<float*>(packed + layout.bias)[column] = bias[output];
        for (int tap = 0; tap < layout.taps; ++tap) {
          const ptrdiff_t row = static_cast<ptrdiff_t>(output) * layout.taps + tap;
          char* groups = packed + layout.panel(p) + tap * layout.groups * next +
                         word * (c / layout.width * layout.width * layout.group_words + c % layout.width);
          const ptrdiff_t at = static_cast<ptrdiff_t>(tap) * layout.columns + column;
          pack_column(kernel, layout, weight + row * layout.inputs, groups, next, packed, at);
        }
      }
    }
  });
}

}  // namespace ostf
