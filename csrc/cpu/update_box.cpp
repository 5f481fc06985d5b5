// From the box found in the crop to the box in the frame, on the CPU.
#include <algorithm>
#include <cmath>

#include "tensor.h"

// One thread does it all: a target has only four numbers.
int ostf_cpu_update_box(const ostf_tensor* found_boxes, const ostf_tensor* boxes, const ostf_tensor* moved_boxes,
                        int64_t height, int64_t width, double factor, double margin, int /*threads*/) {
  if (height < 1 || width < 1 || !(factor > 0.0) || !(margin >= 0.0) || !ostf::has_rank(boxes, 2)) return OSTF_EINVAL;
  const int64_t B = boxes->shape[0];
  if (!ostf::is(found_boxes, OSTF_F32, {B, 4}) || !ostf::is(boxes, OSTF_F64, {B, 4}) ||
      !ostf::is(moved_boxes, OSTF_F64, {B, 4})) {
    return OSTF_EINVAL;
  }
  const auto* found = ostf::data<const float>(found_boxes);
  const auto* box = ostf::data<const double>(boxes);
  auto* moved = ostf::data<double>(moved_boxes);
  for (int64_t b = 0; b < B; ++b, found += 4, box += 4, moved += 4) {
    const double side = std::ceil(std::sqrt(box[2] * box[3]) * factor);
    const double frame[2] = {static_cast<double>(width), static_cast<double>(height)};
    for (int axis = 0; axis < 2; ++axis) {
      const double extent = found[2 + axis] * side;
      const double corner = box[axis] + 0.5 * box[2 + axis] - 0.5 * side + found[axis] * side - 0.5 * extent;
      // Compared this way round, so that NaN stays NaN and is seen by the caller.
      double low = corner < 0.0 ? 0.0 : corner, high = corner + extent;
      low = low > frame[axis] - margin ? frame[axis] - margin : low;
      high = high < margin ? margin : high;
      high = high > frame[axis] ? frame[axis] : high;
      moved[axis] = low;
      moved[2 + axis] = high - low < margin ? margin : high - low;
    }
  }
  return OSTF_OK;
}
