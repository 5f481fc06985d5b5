// From the box found in the crop to the box in the frame, on the CPU.
#include <algorithm>
#include <cmath>

#include "ostrack_fast.h"

int ostf_cpu_advance(const float* found, const double* box, int height, int width, double factor, double margin,
                     double* moved, int B, int /*threads: four numbers a target*/) {
  if (B < 0 || height < 1 || width < 1 || !(factor > 0.0) || !(margin >= 0.0)) return OSTF_EINVAL;
  for (int b = 0; b < B; ++b, found += 4, box += 4, moved += 4) {
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
