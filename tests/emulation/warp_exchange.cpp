// What the lanes of a warp exchange in each collective of cuda_emulation.h, and the bank conflicts of doing so.
#include <vector>

#include "cuda_emulation.h"

namespace cuemu {

Counts counts;

// Eight 16-byte accesses share one pass over the banks; equal addresses are one access.
void count_phase(const uintptr_t* address) {
  int per_bank[8] = {};
  for (int i = 0; i < 8; ++i) {
    if (address[i] && std::find(address, address + i, address[i]) == address + i) ++per_bank[address[i] / 16 % 8];
  }
  ++counts.shared_phases;
  counts.bank_conflicts += std::max(0, *std::max_element(per_bank, per_bank + 8) - 1);
}

void exchange_none(uint32_t, LaneData*) {}

void exchange_vote(uint32_t mask, LaneData* lanes) {
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1) && *static_cast<const int*>(lanes[i].in)) votes |= 1u << i;
  }
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) *static_cast<uint32_t*>(lanes[i].out) = votes;
  }
}

void distribute_matrices(LaneData* lanes, bool transposed) {
  const MatrixRow* rows[32];
  uintptr_t address[32];
  for (int i = 0; i < 32; ++i) {
    rows[i] = static_cast<const MatrixRow*>(lanes[i].in);
    address[i] = reinterpret_cast<uintptr_t>(rows[i]->address);
  }
  for (int matrix = 0; matrix < 4; ++matrix) {
    count_phase(address + 8 * matrix);
    for (int i = 0; i < 32; ++i) {
      const int row = i / 4, column = i % 4 * 2;
      const MatrixRow* const* m = rows + 8 * matrix;
      const uint32_t low = transposed ? m[column]->element[row] : m[row]->element[column];
      const uint32_t high = transposed ? m[column + 1]->element[row] : m[row]->element[column + 1];
      static_cast<uint32_t*>(lanes[i].out)[matrix] = low | high << 16;
    }
  }
}
void exchange_ldmatrix(uint32_t, LaneData* lanes) { distribute_matrices(lanes, false); }
void exchange_ldmatrix_transposed(uint32_t, LaneData* lanes) { distribute_matrices(lanes, true); }

const float* half_values() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (int i = 0; i < 65536; ++i) values[i] = __half2float(__half(__half_raw{static_cast<uint16_t>(i)}));
    return values;
  }();
  return table.data();
}

template <class T, int kDepth>
void exchange_mma(uint32_t, LaneData* lanes) {
  static const float* halves = half_values();
  const auto value = [](uint32_t word, int part) {
    const uint32_t bits = word >> 16 * part & 0xFFFF;
    return std::is_same_v<T, __half> ? halves[bits] : cuemu_bits<float>(bits << 16);
  };
  ++counts.mma;
  float a[16][kDepth], b[kDepth][8], d[16][8];
  for (int i = 0; i < 32; ++i) {
    const auto& in = *static_cast<const MmaOperands*>(lanes[i].in);
    const int row = i / 4, column = i % 4 * 2;
    for (int part = 0; part < 2; ++part) {
      for (int k = 0; k < kDepth / 8; ++k) {
        a[row][8 * k + column + part] = value(in.a[2 * k], part);
        a[row + 8][8 * k + column + part] = value(in.a[2 * k + 1], part);
        b[8 * k + column + part][row] = value(in.b[k], part);
      }
      d[row][column + part] = in.c[part];
      d[row + 8][column + part] = in.c[2 + part];
    }
  }
  for (int i = 0; i < 16; ++i) {
    float sum[8] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int j = 0; j < 8; ++j) sum[j] += a[i][k] * b[k][j];
    }
    for (int j = 0; j < 8; ++j) d[i][j] += sum[j];
  }
  for (int i = 0; i < 32; ++i) {
    float* out = static_cast<float*>(lanes[i].out);
    for (int part = 0; part < 2; ++part) {
      out[part] = d[i / 4][i % 4 * 2 + part];
      out[2 + part] = d[i / 4 + 8][i % 4 * 2 + part];
    }
  }
}
template void exchange_mma<__half, 16>(uint32_t, LaneData*);
template void exchange_mma<__nv_bfloat16, 16>(uint32_t, LaneData*);
template void exchange_mma<__half, 8>(uint32_t, LaneData*);

}  // namespace cuemu
