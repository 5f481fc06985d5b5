// Crop, zero border, bilinear resize and normalization on the CPU in one pass over the output rows.
//
// The resize is that of OpenCV on uint8: weights of 11 bits; each product with a horizontal weight pair is cut to 15
// bits, each product with a vertical weight to 10, and the sum is rounded. Its two special cases need no code: with equal
// sizes every weight is 0 or 2048, and at exactly half size all weights are 1024, which gives OpenCV's 2 x 2 mean.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "tensor.h"

#if defined(__SSE4_1__)
#include <smmintrin.h>
#endif

namespace {

constexpr int kPixel = 3;
constexpr double kLongest = 1 << 28;  // coordinates beyond this would overflow the integer arithmetic
constexpr int kSpare = 16;            // bytes after a row that a vector load may touch

struct Frame {
  const uint8_t* data;
  int height;
  int width;
};

// Two weights in one 32-bit word, the operand layout of the multiply-add instruction.
struct Weights {
  int16_t first;
  int16_t second;
};

// Where a crop lies in its frame, and the taps of its resize. Columns and rows outside of [*_begin, *_end), in crop
// coordinates, are border.
struct Window {
  int left, top, side;
  int column_begin, column_end, row_begin, row_end;
  bool inside;                  // no border columns: rows are read without a copy
  std::vector<int32_t> column;  // byte offset of each output column's first tap in a prepared row
  std::vector<Weights> column_weights;
  std::vector<int32_t> row;  // first of the two source rows, not yet clipped
  std::vector<Weights> row_weights;
};

Weights weights_at(float fraction) {
  return {static_cast<int16_t>(std::lrintf((1.0f - fraction) * 2048.0f)),
          static_cast<int16_t>(std::lrintf(fraction * 2048.0f))};
}

bool place_window(const Frame& frame, const double* box, double factor, int Z, Window& window) {
  const double x = box[0], y = box[1], w = box[2], h = box[3];
  if (!(w > 0 && h > 0)) return false;
  const double side = std::ceil(std::sqrt(w * h) * factor);
  const double left = std::nearbyint(x + 0.5 * w - side * 0.5);
  const double top = std::nearbyint(y + 0.5 * h - side * 0.5);
  if (!(side >= 1 && side <= kLongest && std::fabs(left) <= kLongest && std::fabs(top) <= kLongest)) return false;
  window.side = static_cast<int>(side);
  window.left = static_cast<int>(left);
  window.top = static_cast<int>(top);
  // The published code never reads the frame's last column and row.
  window.column_begin = std::min(std::max(-window.left, 0), window.side);
  window.column_end = std::max(std::min(window.side, frame.width - 1 - window.left), window.column_begin);
  window.row_begin = std::max(-window.top, 0);
  window.row_end = std::min(window.side, frame.height - 1 - window.top);
  window.inside = window.column_begin == 0 && window.column_end == window.side;

  const double step = 1.0 / (static_cast<double>(Z) / window.side);  // twice rounded, as OpenCV does
  const int last = window.side - 1;
  for (int i = 0; i < Z; ++i) {
    const auto position = static_cast<float>((i + 0.5) * step - 0.5);
    const int tap = static_cast<int>(std::floor(position));
    const float fraction = position - static_cast<float>(tap);
    window.row[i] = tap;
    window.row_weights[i] = weights_at(fraction);
    window.column_weights[i] = weights_at(tap < 0 || tap >= last ? 0.0f : fraction);
    int column = std::min(std::max(tap, 0), last);
    if (!window.inside) {
      // A prepared row is two border pixels, the visible ones, and two border pixels.
      column = std::min(std::max(column - window.column_begin, -2), window.column_end - window.column_begin) + 2;
    }
    window.column[i] = column * kPixel;
  }
  return true;
}

// One source row resized horizontally: planes (3, stride) of 15-bit values.
void resize_row(const uint8_t* row, const Window& window, int Z, int stride, int16_t* planes) {
  const int32_t* column = window.column.data();
  const Weights* weights = window.column_weights.data();
  int x = 0;
#if defined(__SSE4_1__)
  const __m128i pair = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  const __m128i by_channel = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, -1, -1, -1, -1);
  const auto taps = [&](int i, __m128i weight) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + column[i]));
    return _mm_srli_epi32(_mm_madd_epi16(_mm_shuffle_epi8(bytes, pair), weight), 4);
  };
  for (; x + 4 <= Z; x += 4) {
    const __m128i weight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + x));
    __m128i a = _mm_packs_epi32(taps(x, _mm_shuffle_epi32(weight, 0x00)), taps(x + 1, _mm_shuffle_epi32(weight, 0x55)));
    __m128i b =
        _mm_packs_epi32(taps(x + 2, _mm_shuffle_epi32(weight, 0xaa)), taps(x + 3, _mm_shuffle_epi32(weight, 0xff)));
    a = _mm_shuffle_epi8(a, by_channel);
    b = _mm_shuffle_epi8(b, by_channel);
    const __m128i red_green = _mm_unpacklo_epi32(a, b);
    const __m128i blue = _mm_unpackhi_epi32(a, b);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(planes + x), red_green);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(planes + stride + x), _mm_unpackhi_epi64(red_green, red_green));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(planes + 2 * stride + x), blue);
  }
#endif
  for (; x < Z; ++x) {
    const uint8_t* tap = row + column[x];
    for (int c = 0; c < kPixel; ++c) {
      planes[c * stride + x] =
          static_cast<int16_t>((tap[c] * weights[x].first + tap[c + kPixel] * weights[x].second) >> 4);
    }
  }
}

// Two resized rows to one row of pixels. `count` is a multiple of 8.
void blend_rows(const int16_t* upper, const int16_t* lower, Weights weights, int count, uint8_t* pixels) {
#if defined(__SSE4_1__)
  const __m128i first = _mm_set1_epi16(weights.first);
  const __m128i second = _mm_set1_epi16(weights.second);
  for (int i = 0; i < count; i += 8) {
    const __m128i u = _mm_mulhi_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper + i)), first);
    const __m128i l = _mm_mulhi_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lower + i)), second);
    const __m128i rounded = _mm_srai_epi16(_mm_add_epi16(_mm_add_epi16(u, l), _mm_set1_epi16(2)), 2);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(pixels + i), _mm_packus_epi16(rounded, rounded));
  }
#else
  for (int i = 0; i < count; ++i) {
    const int sum = ((upper[i] * weights.first) >> 16) + ((lower[i] * weights.second) >> 16);
    pixels[i] = static_cast<uint8_t>(std::min((sum + 2) >> 2, 255));
  }
#endif
}

// Eight pixels at a time come in one register: reading each from memory behind the stores halves the speed.
template <class E>
void look_up(const uint8_t* pixels, const E* values, int count, E* out) {
  constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  int x = 0;
  for (; x + 8 <= count; x += 8) {
    uint64_t eight;
    std::memcpy(&eight, pixels + x, 8);
    for (int k = 0; k < 8; ++k) out[x + k] = values[(eight >> (kLittleEndian ? 8 * k : 56 - 8 * k)) & 255];
  }
  for (; x < count; ++x) out[x] = values[pixels[x]];
}

// Resizes source rows on demand and keeps the last two, which neighbouring output rows share.
class RowCache {
 public:
  RowCache(const Frame& frame, int Z, int stride)
      : frame_(frame), Z_(Z), stride_(stride), prepared_(new(std::nothrow) uint8_t[(frame.width + 4) * kPixel + kSpare]),
        planes_(new(std::nothrow) int16_t[2 * kPixel * stride]()) {}

  bool usable() const { return prepared_ && planes_; }

  void start(const Window& window) {
    window_ = &window;
    held_[0] = held_[1] = -1;
    const int visible = (window.column_end - window.column_begin) * kPixel;
    std::memset(prepared_.get(), 0, 2 * kPixel);
    std::memset(prepared_.get() + 2 * kPixel + visible, 0, 2 * kPixel + kSpare);
  }

  // The rows at indices `upper` and `lower` of the crop, resized horizontally.
  void fetch(int upper, int lower, const int16_t** upper_planes, const int16_t** lower_planes) {
    *upper_planes = planes_.get() + slot(upper, lower) * kPixel * stride_;
    *lower_planes = planes_.get() + slot(lower, upper) * kPixel * stride_;
  }

 private:
  int slot(int row, int keep) {
    for (int s = 0; s < 2; ++s) {
      if (held_[s] == row) return s;
    }
    const int s = held_[0] == keep ? 1 : 0;
    held_[s] = row;
    int16_t* planes = planes_.get() + s * kPixel * stride_;
    const Window& window = *window_;
    if (row < window.row_begin || row >= window.row_end) {
      std::memset(planes, 0, sizeof(int16_t) * kPixel * stride_);
      return s;
    }
    const uint8_t* source = frame_.data + (static_cast<int64_t>(window.top + row) * frame_.width) * kPixel;
    source += static_cast<int64_t>(window.left + window.column_begin) * kPixel;
    if (!window.inside) {
      std::memcpy(prepared_.get() + 2 * kPixel, source, (window.column_end - window.column_begin) * kPixel);
      source = prepared_.get();
    }
    resize_row(source, window, Z_, stride_, planes);
    return s;
  }

  Frame frame_;
  int Z_, stride_;
  std::unique_ptr<uint8_t[]> prepared_;
  std::unique_ptr<int16_t[]> planes_;
  const Window* window_ = nullptr;
  int held_[2] = {-1, -1};
};

// `values` (3,256): what each pixel value becomes, in the output's bits.
template <class E>
int crop(const Frame& frame, const std::vector<Window>& windows, const E* values, E* patch, int Z, int threads) {
  const int stride = (Z + 7) / 8 * 8;
  const auto B = static_cast<int64_t>(windows.size());
  std::atomic<int> status{OSTF_OK};
  ostf::parallel_for(B * Z, threads, [&](int64_t begin, int64_t end) {
    RowCache rows(frame, Z, stride);
    const std::unique_ptr<uint8_t[]> pixels(new (std::nothrow) uint8_t[kPixel * stride]);
    if (!rows.usable() || !pixels) {
      status = OSTF_ENOMEM;
      return;
    }
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / Z;
      const int y = static_cast<int>(item % Z);
      const Window& window = windows[b];
      if (y == 0 || item == begin) rows.start(window);
      const int last = window.side - 1;
      const int16_t *upper, *lower;
      rows.fetch(std::min(std::max(window.row[y], 0), last), std::min(std::max(window.row[y] + 1, 0), last), &upper,
                 &lower);
      blend_rows(upper, lower, window.row_weights[y], kPixel * stride, pixels.get());
      for (int c = 0; c < kPixel; ++c) {
        look_up(pixels.get() + c * stride, values + c * 256, Z, patch + ((b * kPixel + c) * Z + y) * Z);
      }
    }
  });
  return status;
}

}  // namespace

int ostf_cpu_crop(const ostf_tensor* frame, const ostf_tensor* box, const ostf_tensor* mean,
                  const ostf_tensor* inv_std, const ostf_tensor* patch, const ostf_tensor* scale, double factor,
                  int threads) {
  if (!ostf::has_rank(frame, 3) || !ostf::has_rank(patch, 4) || threads < 1) return OSTF_EINVAL;
  const int height = static_cast<int>(frame->shape[0]), width = static_cast<int>(frame->shape[1]);
  const int B = static_cast<int>(patch->shape[0]), Z = static_cast<int>(patch->shape[3]);
  const int dtype = patch->dtype;
  if (!ostf::is_float(dtype)) return OSTF_EDTYPE;
  if (Z < 1 || Z > 1 << 14 || height < 1 || width < 1 || width > 1 << 20 || !(factor > 0.0) ||
      !ostf::is(frame, OSTF_U8, {height, width, 3}) || !ostf::is(box, OSTF_F64, {B, 4}) ||
      !ostf::is(mean, OSTF_F32, {3}) || !ostf::is(inv_std, OSTF_F32, {3}) || !ostf::is(patch, dtype, {B, 3, Z, Z}) ||
      !ostf::is(scale, OSTF_F64, {B})) {
    return OSTF_EINVAL;
  }
  const Frame image{ostf::data<const uint8_t>(frame), height, width};
  std::vector<Window> windows;
  try {
    windows.resize(B);
    for (Window& window : windows) {
      window.column.resize(Z);
      window.column_weights.resize(Z);
      window.row.resize(Z);
      window.row_weights.resize(Z);
    }
  } catch (const std::bad_alloc&) {
    return OSTF_ENOMEM;
  }
  for (int b = 0; b < B; ++b) {
    if (!place_window(image, ostf::data<const double>(box) + b * 4, factor, Z, windows[b])) return OSTF_EINVAL;
    ostf::data<double>(scale)[b] = static_cast<double>(Z) / windows[b].side;
  }

  // A channel has only 256 values, so a table serves every dtype at the same cost and rounds exactly.
  uint32_t wide[kPixel * 256];
  uint16_t narrow[kPixel * 256];
  for (int i = 0; i < kPixel * 256; ++i) {
    const int c = i / 256;
    const float pixel = static_cast<float>(i % 256) / 255.0f;
    const float value = (pixel - ostf::data<const float>(mean)[c]) * ostf::data<const float>(inv_std)[c];
    wide[i] = ostf::float_bits(value);
    narrow[i] = dtype == OSTF_F16 ? ostf::float_to_f16(value) : ostf::float_to_bf16(value);
  }
  if (dtype == OSTF_F32) return crop(image, windows, wide, ostf::data<uint32_t>(patch), Z, threads);
  return crop(image, windows, narrow, ostf::data<uint16_t>(patch), Z, threads);
}
