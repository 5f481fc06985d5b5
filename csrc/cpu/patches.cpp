// Images cut into the square patches of a ViT on the CPU. PyTorch's copy would do it too, but on the threads of OpenMP,
// which go on spinning for milliseconds and keep ours from the cores.
#include <cstring>

#include "cpu/parallel.h"
#include "tensor.h"

int ostf_cpu_patches(const ostf_tensor* image, const ostf_tensor* patches, int threads) {
  if (!ostf::has_rank(image, 4) || !ostf::has_rank(patches, 5) || threads < 1) return OSTF_EINVAL;
  const int64_t B = image->shape[0], channels = image->shape[1], height = image->shape[2], width = image->shape[3];
  const int64_t P = patches->shape[4], size = ostf::element_size(image->dtype);
  if (size == 0) return OSTF_EDTYPE;
  if (P < 1 || height % P != 0 || width % P != 0 ||
      !ostf::is(image, image->dtype, {B, channels, height, width}) ||
      !ostf::is(patches, image->dtype, {B, height / P * (width / P), channels, P, P})) {
    return OSTF_EINVAL;
  }
  const int64_t rows = height / P, columns = width / P;
  const auto* from = ostf::data<const char>(image);
  auto* to = ostf::data<char>(patches);
  // An item is a row of patches; of that it is a channel's row of pixels that is read, and one of each patch written.
  ostf::parallel_for(B * rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / rows, top = item % rows * P;
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t y = 0; y < P; ++y) {
          const char* pixels = from + ((b * channels + c) * height + top + y) * width * size;
          char* line = to + ((item * columns * channels + c) * P + y) * P * size;
          for (int64_t x = 0; x < columns; ++x) {
            std::memcpy(line + x * channels * P * P * size, pixels + x * P * size, P * size);
          }
        }
      }
    }
  });
  return OSTF_OK;
}
