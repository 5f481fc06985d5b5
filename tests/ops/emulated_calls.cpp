// Calls every CPU kernel that runs without AVX2 on fixed inputs and prints the results, one line a call. Built for two
// processors, the two must print the same numbers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "cpu/half.h"
#include "ostrack_fast.h"

namespace {

uint32_t state = 1;

float uniform() {  // in (-1, 1), the same on every machine
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(state >> 8) - (1 << 23)) / (1 << 23);
}

std::vector<float> numbers(size_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = 2 * uniform();
  return values;
}

std::vector<uint16_t> halves(size_t count) {
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = ostf::float_to_bf16(2 * uniform());
  return values;
}

std::vector<int64_t> permuted(int count) {
  std::vector<int64_t> ids(count);
  for (int i = 0; i < count; ++i) ids[i] = (i * 7 + 3) % count;  // 7 divides none of the counts
  return ids;
}

void check(int status, int expected, const char* name) {
  if (status == expected) return;
  std::fprintf(stderr, "%s: status %d, not %d\n", name, status, expected);
  std::exit(1);
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s", name);
  for (const T value : values) std::printf(" %.9g", static_cast<double>(value));
  std::printf("\n");
}

void print(const char* name, const std::vector<uint16_t>& values) {
  std::vector<float> wide;
  for (const uint16_t value : values) wide.push_back(ostf::bf16_to_float(value));
  print(name, wide);
}

template <class T> struct code_of;
template <> struct code_of<float> { static constexpr ostf_dtype value = OSTF_F32; };
template <> struct code_of<double> { static constexpr ostf_dtype value = OSTF_F64; };
template <> struct code_of<uint16_t> { static constexpr ostf_dtype value = OSTF_BF16; };
template <> struct code_of<uint8_t> { static constexpr ostf_dtype value = OSTF_U8; };
template <> struct code_of<int64_t> { static constexpr ostf_dtype value = OSTF_I64; };

// A dense view; with `strides` (in elements), one of a part of what `values` holds.
template <class T>
ostf_tensor view(const T* values, std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides = {}) {
  ostf_tensor tensor = {const_cast<T*>(values), code_of<T>::value, static_cast<int32_t>(shape.size()), {}, {}};
  int64_t dense = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    tensor.shape[i] = shape.begin()[i];
    tensor.stride[i] = strides.size() ? strides.begin()[i] : dense;
    dense *= tensor.shape[i];
  }
  return tensor;
}

template <class T>
ostf_tensor view(const std::vector<T>& values, std::initializer_list<int64_t> shape) {
  return view(values.data(), shape);
}

template <class T>
void attention(const std::vector<T>& qkv, const char* name, int threads) {
  constexpr int B = 2, N = 70, T_ = 20, H = 2, D = 33, row = 3 * H * D;
  std::vector<uint8_t> mask(T_);
  mask[3] = mask[17] = 1;
  std::vector<T> out(B * N * H * D);
  std::vector<float> score(B * (N - T_)), lse(B * H * N);
  const ostf_tensor q = view(qkv.data(), {B, N, H, D}, {N * row, row, D, 1});
  const ostf_tensor kv = view(qkv.data() + H * D, {B, N, 2, H, D}, {N * row, row, H * D, D, 1});
  ostf_tensor selected = view(mask, {T_});
  selected.dtype = OSTF_BOOL;
  const ostf_tensor outs = view(out, {B, N, H * D}), scores = view(score, {B, N - T_}), lses = view(lse, {B, H, N});
  check(ostf_cpu_attention(&q, &kv, &selected, &outs, &scores, &lses, threads), OSTF_OK, name);
  print(name, out);
  print("score", score);
  print("lse", lse);
}

void tokens(int threads) {
  constexpr int B = 2, T = 4, S = 25, K = 18, C = 37, F = 5;
  std::vector<int64_t> ids, left(B * K), removed(B * (S - K));
  for (int b = 0; b < B; ++b) {
    for (const int64_t id : permuted(S)) ids.push_back(id);
  }
  std::vector<float> out(B * (T + K) * C), map(B * C * F * F);
  const std::vector<float> before = numbers(B * (T + S) * C), score = numbers(B * S);
  const ostf_tensor all = view(before, {B, T + S, C}), scores = view(score, {B, S}), cells = view(ids, {B, S});
  const ostf_tensor outs = view(out, {B, T + K, C}), lefts = view(left, {B, K}), gone = view(removed, {B, S - K});
  check(ostf_cpu_eliminate(&all, &scores, &cells, &outs, &lefts, &gone, threads), OSTF_OK, "eliminate");
  print("eliminate", out);
  print("ids", left);
  print("removed", removed);
  const std::vector<float> kept = numbers(B * K * C), weight = numbers(C), bias = numbers(C);
  const std::vector<float> products = numbers(B * K * 9 * C);
  const ostf_tensor keeps = view(kept, {B, K, C}), weights = view(weight, {C}), biases = view(bias, {C});
  const ostf_tensor dense = view(map, {B, C, F, F}), last = view(map.data(), {B, C, F, F}, {F * F * C, 1, F * C, C});
  check(ostf_cpu_restore(&keeps, &lefts, nullptr, nullptr, &dense, 0, threads), OSTF_OK, "restore");
  print("restore", map);
  check(ostf_cpu_restore(&keeps, &lefts, &weights, &biases, &last, 1e-6, threads), OSTF_OK, "restore with a LayerNorm");
  print("restore_norm", map);
  const ostf_tensor taps = view(products, {B, K, 9, C}), cells_of_map = view(map, {B, F, F, C});
  check(ostf_cpu_restore_conv3x3(&taps, &lefts, &biases, &cells_of_map, OSTF_RELU, threads), OSTF_OK,
        "restore_conv3x3");
  print("restore_conv3x3", map);
}

void frame(int threads) {
  constexpr int B = 2, Z = 24, F = 5, height = 37, width = 53;
  std::vector<uint8_t> pixels(height * width * 3);
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(127 * uniform() + 128);
  std::vector<double> boxes = {5, 6, 20, 11, -30.5, -9, 70.25, 60}, scale(B), moved(B * 4);
  const std::vector<float> mean(3, 0.5f), window = numbers(F * F);
  const std::vector<float> score = numbers(B * F * F), size = numbers(2 * B * F * F), offset = numbers(2 * B * F * F);
  std::vector<float> patch(B * 3 * Z * Z), box(B * 4), best(B);
  const ostf_tensor image = view(pixels, {height, width, 3}), before = view(boxes, {B, 4}), mid = view(mean, {3});
  const ostf_tensor patches = view(patch, {B, 3, Z, Z}), scales = view(scale, {B});
  check(ostf_cpu_crop(&image, &before, &mid, &mid, &patches, &scales, 4.0, threads), OSTF_OK, "crop");
  print("crop", patch);
  print("scale", scale);
  const ostf_tensor score_map = view(score, {B, 1, F, F}), size_map = view(size, {B, 2, F, F});
  const ostf_tensor offset_map = view(offset, {B, 2, F, F}), hann = view(window, {F, F});
  const ostf_tensor found = view(box, {B, 4}), bests = view(best, {B}), after = view(moved, {B, 4});
  check(ostf_cpu_decode(&score_map, &size_map, &offset_map, &hann, &found, &bests, threads), OSTF_OK, "decode");
  print("decode", box);
  print("best", best);
  check(ostf_cpu_update_box(&found, &before, &after, height, width, 4.0, 10.0, threads), OSTF_OK, "update_box");
  print("update_box", moved);
}

}  // namespace

int main() {
  int64_t bytes;
  const float one = 1;
  const ostf_tensor weight = view(&one, {4, 1, 4});
  for (const int dtype : {OSTF_F32, OSTF_BF16, OSTF_I8}) {  // PyTorch's run here
    check(ostf_cpu_linear_packed_bytes(&weight, dtype, 1, &bytes), OSTF_EDTYPE, "linear");
  }
  for (const int threads : {1, 2}) {
    constexpr int count = 2 * 70 * 3 * 2 * 33;
    attention(numbers(count), "attention_float32", threads);
    attention(halves(count), "attention_bfloat16", threads);
    tokens(threads);
    frame(threads);
  }
}
