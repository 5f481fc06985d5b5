// The GEMM driver: cuts the result into tasks and tiles.
#include <algorithm>

#include "cpu/linear.h"
#include "cpu/parallel.h"

namespace ostf {
namespace {

// Bytes of activations in a block of rows. A block may exceed the L2 cache: its rows stream by in order, which the
// hardware prefetcher foresees, while smaller blocks would read the weights more often (measured on Zen 5, 1 MiB of L2).
constexpr int64_t kRowBytes = 2000000;

// A task is one block of rows by one panel of weights, which stays in the L2 cache while the block's rows pass by.
class Task {
 public:
  Task(const LinearKernel& kernel, const PackedLayout& layout, const char* packed, const Gemm& gemm)
      : kernel_(kernel), layout_(layout), packed_(packed), gemm_(gemm) {
    tiles_per_line_ = ceil_div(gemm.length, kernel.rows);
    rows_ = gemm.length / tiles_per_line_;
    longer_ = gemm.length % tiles_per_line_;
    tiles = gemm.lines * tiles_per_line_;
    row_stride_ = gemm.row_stride ? gemm.row_stride : layout.outputs * layout.conv_groups;
  }

  // `next` points to the weights that are read after these.
  void run(int panel, const char* next, int first_tile, int last_tile, PendingTile& pending) const {
    const int conv_group = panel / layout_.panels;
    const int vector = layout_.first_vector(panel), vectors = layout_.first_vector(panel + 1) - vector;
    const int column = (vector - conv_group * layout_.vectors) * layout_.width;  // in the convolution group
    const ptrdiff_t bytes = layout_.panel(panel + 1) - layout_.panel(panel);
    const ptrdiff_t share = bytes / (last_tile - first_tile) / 64 * 64;  // bytes to prefetch with each tile
    Tile tile = panel_tile(panel, vector);
    tile.epilogue.columns = std::min(vectors * layout_.width, layout_.outputs - column);
    tile.prefetch = next;
    int line = first_tile / tiles_per_line_, at = first_tile % tiles_per_line_;
    for (int t = first_tile; t < last_tile; ++t, ++at, tile.prefetch += share) {
      if (at == tiles_per_line_) ++line, at = 0;
      const int row = at * rows_ + std::min(at, longer_), rows = rows_ + (at < longer_);
      place(tile, line, row, conv_group, conv_group * layout_.outputs + column);
      kernel_.tile[vectors - 1][rows - 1](tile, pending);
    }
  }

  int tiles;

 private:
  Tile panel_tile(int panel, int vector) const {
    const size_t lane = sizeof(float) * vector * layout_.width;
    Tile tile = {};
    tile.pitch = gemm_.pitch;
    tile.taps = layout_.taps;
    tile.line = gemm_.tap_line;
    tile.groups = layout_.groups;
    tile.weights = reinterpret_cast<const uint32_t*>(packed_ + layout_.panel(panel));
    tile.column_scale = reinterpret_cast<const float*>(packed_ + layout_.scale + lane);
    tile.offset = reinterpret_cast<const int32_t*>(packed_ + layout_.offset + lane);
    tile.scale_pitch = layout_.conv_groups;
    tile.column_pitch = layout_.columns;
    tile.epilogue.bias = reinterpret_cast<const float*>(packed_ + layout_.bias + lane);
    tile.epilogue.activation = gemm_.activation;
    tile.epilogue.out_bf16 = gemm_.out_bf16;
    tile.epilogue.row_stride = row_stride_;
    return tile;
  }

  // Points the tile at its rows, residual and result.
  void place(Tile& tile, int line, int row, int conv_group, int output) const {
    const auto start = [&](ptrdiff_t item, ptrdiff_t next) {
      return line / gemm_.lines_per_item * item + line % gemm_.lines_per_item * next;
    };
    const ptrdiff_t from = start(gemm_.item, gemm_.line) + row * gemm_.pitch;
    tile.rows = gemm_.rows + from + static_cast<ptrdiff_t>(conv_group) * layout_.groups * kernel_.row_group_bytes;
    if (gemm_.scale) tile.row_scale = gemm_.scale + from / gemm_.pitch * tile.scale_pitch + conv_group;
    const ptrdiff_t within = static_cast<ptrdiff_t>(row) * row_stride_ + output;
    const ptrdiff_t next = static_cast<ptrdiff_t>(gemm_.length) * row_stride_;
    if (gemm_.residual) tile.epilogue.residual = gemm_.residual + start(gemm_.residual_item, next) + within;
    const ptrdiff_t to = start(gemm_.out_item, next) + within;
    tile.epilogue.out = static_cast<char*>(gemm_.out) + to * (gemm_.out_bf16 ? 2 : 4);
  }

  const LinearKernel& kernel_;
  const PackedLayout& layout_;
  const char* packed_;
  const Gemm& gemm_;
  int tiles_per_line_, row_stride_;
  int rows_, longer_;  // rows of a tile; the first `longer_` tiles of a line have one more
};

}  // namespace

void run_gemm(const LinearKernel& kernel, const PackedLayout& layout, const char* packed, const Gemm& gemm,
              int threads) {
  const Task task(kernel, layout, packed, gemm);
  const int panels = layout.panels * layout.conv_groups;
  const int64_t bytes = static_cast<int64_t>(gemm.lines) * gemm.length * layout.groups * kernel.row_group_bytes;
  const int blocks = std::min(static_cast<int>((bytes + kRowBytes - 1) / kRowBytes), task.tiles);
  // Threads share out a block's tiles, not its panels: so they all end within about one tile's time.
  const int parts = threads > 1 ? task.tiles / blocks : 1;
  parallel_for(static_cast<int64_t>(blocks) * panels * parts, threads, [&](int64_t first, int64_t last) {
    PendingTile pending;
    for (int64_t i = first; i < last;) {
      const int64_t end = std::min((i / parts + 1) * parts, last);  // of the parts of one block and panel
      const int block = static_cast<int>(i / parts / panels), panel = static_cast<int>(i / parts % panels);
      const int begin = part_begin(block, blocks, task.tiles);
      const int tiles = part_begin(block + 1, blocks, task.tiles) - begin;
      const auto tile = [&](int64_t part) { return begin + part_begin(static_cast<int>(part), parts, tiles); };
      const int next = block + 1 < blocks ? (panel + 1) % panels : panel + 1;  // that this thread reads, most likely
      task.run(panel, packed + layout.panel(next), tile(i % parts), tile(i % parts + end - i), pending);
      i = end;
    }
    kernel.flush(pending);
  });
}

}  // namespace ostf
