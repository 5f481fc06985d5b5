// Put tokens back on their grid on the CPU: transposed into channel planes, or row by row with the LayerNorm on the way.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "cpu/places.h"
#include "ostrack_fast.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

constexpr int kPlaces = 16;    // grid places in a tile: a row of a tile is written as one or two cache lines
constexpr int kChannels = 32;  // channels in a tile

// Transposes B x B elements: rows[j][i] -> to[i * stride + j]. B elements fill 16 bytes.
template <class E>
struct Block {
  static constexpr int B = 16 / sizeof(E);

#if defined(__SSE2__)
  static __m128i low(__m128i a, __m128i b) { return pick<sizeof(E)>(a, b, false); }
  static __m128i high(__m128i a, __m128i b) { return pick<sizeof(E)>(a, b, true); }

  template <size_t size>
  static __m128i pick(__m128i a, __m128i b, bool upper) {
    if (size == 2) return upper ? _mm_unpackhi_epi16(a, b) : _mm_unpacklo_epi16(a, b);
    if (size == 4) return upper ? _mm_unpackhi_epi32(a, b) : _mm_unpacklo_epi32(a, b);
    return upper ? _mm_unpackhi_epi64(a, b) : _mm_unpacklo_epi64(a, b);
  }

  static void transpose(const E* const* rows, E* to, ptrdiff_t stride) {
    __m128i a[B], b[B];
    for (int j = 0; j < B; ++j) a[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j]));
    // Each round interleaves row j with row j + B / 2; after log2(B) rounds rows are columns.
    for (int step = 1; step < B; step *= 2) {
      for (int j = 0; j < B / 2; ++j) {
        b[2 * j] = low(a[j], a[j + B / 2]);
        b[2 * j + 1] = high(a[j], a[j + B / 2]);
      }
      std::copy(b, b + B, a);
    }
    for (int i = 0; i < B; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride), a[i]);
  }
#else
  static void transpose(const E* const* rows, E* to, ptrdiff_t stride) {
    for (int i = 0; i < B; ++i) {
      for (int j = 0; j < B; ++j) to[i * stride + j] = rows[j][i];
    }
  }
#endif
};

template <class E>
void to_planes(const E* tokens, const std::vector<int32_t>& token_at, E* map, int B, int K, int C, int places,
               int threads) {
  const int64_t strips = (C + kChannels - 1) / kChannels;
  ostf::parallel_for(B * strips, threads, [&](int64_t begin, int64_t end) {
    static const E nothing[kChannels] = {};
    constexpr int side = Block<E>::B;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / strips;
      const int first = static_cast<int>(item % strips) * kChannels;
      const int channels = std::min(kChannels, C - first);
      const E* entry = tokens + b * K * C + first;
      E* out = map + (b * C + first) * places;
      for (int p = 0; p < places; p += kPlaces) {
        const int count = std::min(kPlaces, places - p);
        const E* rows[kPlaces];
        for (int j = 0; j < count; ++j) {
          const int32_t token = token_at[b * places + p + j];
          rows[j] = token < 0 ? nothing : entry + static_cast<int64_t>(token) * C;
        }
        const int whole_places = count - count % side, whole_channels = channels - channels % side;
        for (int c = 0; c < whole_channels; c += side) {
          for (int j = 0; j < whole_places; j += side) {
            const E* block[side];
            for (int i = 0; i < side; ++i) block[i] = rows[j + i] + c;
            Block<E>::transpose(block, out + static_cast<int64_t>(c) * places + p + j, places);
          }
        }
        for (int c = 0; c < channels; ++c) {
          for (int j = c < whole_channels ? whole_places : 0; j < count; ++j) {
            out[static_cast<int64_t>(c) * places + p + j] = rows[j][c];
          }
        }
      }
    }
  });
}

float widen(float value, int) { return value; }
float widen(uint16_t value, int dtype) {
  return dtype == OSTF_F16 ? ostf::f16_to_float(value) : ostf::bf16_to_float(value);
}
void narrow(float value, int, float* to) { *to = value; }
void narrow(float value, int dtype, uint16_t* to) {
  *to = dtype == OSTF_F16 ? ostf::float_to_f16(value) : ostf::float_to_bf16(value);
}

// The sum of term(c) over c in [0, C), in as many independent parts as make whole vectors.
template <class Term>
float sum_of(int C, Term term) {
  constexpr int kParts = 16;
  float parts[kParts] = {};
  int c = 0;
  for (; c + kParts <= C; c += kParts) {
    for (int i = 0; i < kParts; ++i) parts[i] += term(c + i);
  }
  for (; c < C; ++c) parts[0] += term(c);
  float sum = 0.0f;
  for (const float part : parts) sum += part;
  return sum;
}

// LayerNorm of one row in float32: passes over values that lie in the cache.
template <class From, class To>
void norm_row(int from_dtype, const From* from, const float* weight, const float* bias, float eps, int to_dtype, To* to,
              int C) {
  const float mean = sum_of(C, [&](int c) { return widen(from[c], from_dtype); }) / static_cast<float>(C);
  const float squares = sum_of(C, [&](int c) {
    const float distance = widen(from[c], from_dtype) - mean;
    return distance * distance;
  });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(C) + eps);
  for (int c = 0; c < C; ++c) {
    narrow((widen(from[c], from_dtype) - mean) * scale * weight[c] + bias[c], to_dtype, to + c);
  }
}

template <class From, class To>
void to_rows(int from_dtype, const From* tokens, const std::vector<int32_t>& token_at, const float* weight,
             const float* bias, float eps, int to_dtype, To* map, int B, int K, int C, int places, int threads) {
  ostf::parallel_for(static_cast<int64_t>(B) * places, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int32_t token = token_at[at];
      To* to = map + at * C;
      if (token < 0) {
        std::memset(to, 0, sizeof(To) * C);
      } else {
        norm_row(from_dtype, tokens + (at / places * K + token) * C, weight, bias, eps, to_dtype, to, C);
      }
    }
  });
}

}  // namespace

int ostf_cpu_restore(int elem_size, const void* tokens, const int64_t* ids, void* map, int B, int K, int C, int F,
                     int threads) {
  if (B < 0 || K < 0 || C <= 0 || F <= 0 || F > 4096) return OSTF_EINVAL;
  const int places = F * F;
  std::vector<int32_t> token_at;
  if (const int status = ostf::places_of(ids, B, K, places, token_at)) return status;
  switch (elem_size) {
    case 2:
      to_planes(static_cast<const uint16_t*>(tokens), token_at, static_cast<uint16_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    case 4:
      to_planes(static_cast<const uint32_t*>(tokens), token_at, static_cast<uint32_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    case 8:
      to_planes(static_cast<const uint64_t*>(tokens), token_at, static_cast<uint64_t*>(map), B, K, C, places, threads);
      return OSTF_OK;
    default:
      return OSTF_EDTYPE;
  }
}

int ostf_cpu_restore_norm(int dtype, const void* tokens, const int64_t* ids, const float* weight, const float* bias,
                          double eps, int map_dtype, void* map, int B, int K, int C, int F, int threads) {
  if (B < 0 || K < 0 || C <= 0 || F <= 0 || F > 4096 || !(eps >= 0.0)) return OSTF_EINVAL;
  for (const int kind : {dtype, map_dtype}) {
    if (kind != OSTF_F32 && kind != OSTF_F16 && kind != OSTF_BF16) return OSTF_EDTYPE;
  }
  const int places = F * F;
  std::vector<int32_t> token_at;
  if (const int status = ostf::places_of(ids, B, K, places, token_at)) return status;
  const auto run = [&](const auto* from, auto* to) {
    to_rows(dtype, from, token_at, weight, bias, static_cast<float>(eps), map_dtype, to, B, K, C, places, threads);
  };
  if (dtype == OSTF_F32) {
    const auto* from = static_cast<const float*>(tokens);
    map_dtype == OSTF_F32 ? run(from, static_cast<float*>(map)) : run(from, static_cast<uint16_t*>(map));
  } else {
    const auto* from = static_cast<const uint16_t*>(tokens);
    map_dtype == OSTF_F32 ? run(from, static_cast<float*>(map)) : run(from, static_cast<uint16_t*>(map));
  }
  return OSTF_OK;
}
