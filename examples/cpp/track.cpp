// Tracks a target through a video with an exported OSTrack, and prints a line x,y,w,h,score for every frame.
//
//     ostrack-fast export --layout opencv-dnn -o small.onnx
//     track small.onnx video.mp4 195,64,336,259 96 192
//
// The last two arguments are the sides of the template and of the search region in pixels, as the model has them: 96 and
// 192 for the shipped weights, 128 and 256 for OSTrack-256. A sixth sets the search factor, 4 unless given (5 for
// OSTrack-384). The frames may also be images: give a pattern such as frames/%08d.jpg. Needs OpenCV 4.6 or later.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <opencv2/dnn.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>

namespace {

struct Box {
  double x, y, w, h;
};

double crop_side(const Box& box, double factor) { return std::ceil(std::sqrt(box.w * box.h) * factor); }

// The square around a box, resized and normalized as ImageNet's images: a blob (1,3,size,size). Outside of the frame it
// is black, and the frame's last row and column count as outside, as in the published code.
cv::Mat crop(const cv::Mat& frame, const Box& box, double factor, int size) {
  const int side = static_cast<int>(crop_side(box, factor));
  const int left = static_cast<int>(std::nearbyint(box.x + 0.5 * box.w - 0.5 * side));
  const int top = static_cast<int>(std::nearbyint(box.y + 0.5 * box.h - 0.5 * side));
  const cv::Rect inside = cv::Rect(left, top, side, side) & cv::Rect(0, 0, frame.cols - 1, frame.rows - 1);
  cv::Mat square = cv::Mat::zeros(side, side, CV_8UC3);
  if (!inside.empty()) frame(inside).copyTo(square(inside - cv::Point(left, top)));
  cv::Mat patch;
  cv::resize(square, patch, cv::Size(size, size));
  patch.convertTo(patch, CV_32F, 1 / 255.0);
  cv::subtract(patch, cv::Scalar(0.406, 0.456, 0.485), patch);  // OpenCV's order: blue, green, red
  cv::divide(patch, cv::Scalar(0.225, 0.224, 0.229), patch);
  return cv::dnn::blobFromImage(patch, 1.0, cv::Size(), cv::Scalar(), /*swapRB=*/true);
}

// The box in units of its template crop, xywh, as a blob (1,4): the crop's centre is that of its middle pixels.
cv::Mat template_box(const Box& box, double factor, int size) {
  const double side = crop_side(box, factor), w = box.w / side, h = box.h / side, centre = 0.5 - 0.5 / size;
  const cv::Vec4f found(static_cast<float>(centre - 0.5 * w), static_cast<float>(centre - 0.5 * h), static_cast<float>(w),
                        static_cast<float>(h));
  return cv::Mat(found, true).reshape(1, 1);
}

// The network's maps -> the target's box in the frame, and its score. A Hann window favours small motion.
Box decode(const std::vector<cv::Mat>& maps, const cv::Size& frame, const Box& around, double factor, double& score) {
  const int grid = maps[0].size[3], cells = grid * grid;
  const auto* scores = maps[0].ptr<float>();
  const auto* sizes = maps[1].ptr<float>();
  const auto* offsets = maps[2].ptr<float>();
  const auto hann = [grid](int i) { return 0.5 * (1 - std::cos(2 * CV_PI / (grid + 1) * (i + 1))); };
  int best = 0;
  double highest = -1;
  for (int cell = 0; cell < cells; ++cell) {
    const double response = scores[cell] * hann(cell / grid) * hann(cell % grid);
    if (response > highest) highest = response, best = cell;
  }
  score = scores[best];
  const double side = crop_side(around, factor);
  const double w = sizes[best] * side, h = sizes[cells + best] * side;
  const double cx = (best % grid + offsets[best]) / grid * side, cy = (best / grid + offsets[cells + best]) / grid * side;
  const double x = around.x + 0.5 * around.w - 0.5 * side + cx - 0.5 * w;
  const double y = around.y + 0.5 * around.h - 0.5 * side + cy - 0.5 * h;
  // At least `margin` pixels of the box stay inside of the frame.
  const double margin = 10;
  const double x1 = std::min(std::max(0.0, x), frame.width - margin), x2 = std::min(std::max(margin, x + w), frame.width + 0.0);
  const double y1 = std::min(std::max(0.0, y), frame.height - margin), y2 = std::min(std::max(margin, y + h), frame.height + 0.0);
  return {x1, y1, std::max(margin, x2 - x1), std::max(margin, y2 - y1)};
}

void print(const Box& box, double score) { std::printf("%.3f,%.3f,%.3f,%.3f,%.4f\n", box.x, box.y, box.w, box.h, score); }

void track(int count, char** arguments) {
  Box box{};
  if (count < 6 || std::sscanf(arguments[3], "%lf,%lf,%lf,%lf", &box.x, &box.y, &box.w, &box.h) != 4)
    throw std::runtime_error("usage: track FILE.onnx VIDEO x,y,w,h TEMPLATE_SIZE SEARCH_SIZE [SEARCH_FACTOR]");
  const int template_size = std::stoi(arguments[4]), search_size = std::stoi(arguments[5]);
  const double search_factor = count > 6 ? std::stod(arguments[6]) : 4.0;
  cv::VideoCapture video(arguments[2]);
  cv::Mat frame;
  if (!video.read(frame)) throw std::runtime_error(std::string("no frame can be read from ") + arguments[2]);
  cv::dnn::Net net = cv::dnn::readNet(arguments[1]);
  const std::vector<std::string> names = {"score_map", "size_map", "offset_map"};
  net.setInput(crop(frame, box, 2.0, template_size), "template");
  // The shipped network is told its target's box, published ones are not: layer 0 holds the inputs.
  if (net.getLayer(0)->outputNameToIndex("template_box") >= 0)
    net.setInput(template_box(box, 2.0, template_size), "template_box");
  for (print(box, 1.0); video.read(frame);) {
    net.setInput(crop(frame, box, search_factor, search_size), "search");
    std::vector<cv::Mat> maps;
    net.forward(maps, names);
    double score = 0;
    box = decode(maps, frame.size(), box, search_factor, score);
    print(box, score);
  }
}

}  // namespace

int main(int count, char** arguments) try {
  track(count, arguments);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
