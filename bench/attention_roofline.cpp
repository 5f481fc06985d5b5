// The least time bfloat16 attention could take on this processor, were nothing but arithmetic left of it.
//
//   g++ -O2 -mavx512f -mavx512bf16 bench/attention_roofline.cpp -o attention_roofline && ./attention_roofline
//
// For 16 logits of head dimension 64 both products need 64 multiply-adds of bf16 pairs. The softmax needs at least
// three more instructions of the same units (the scale, and two multiply-adds for an exponential whose table lies in
// registers); its additions, maxima, roundings, permutations and conversions run on others. Everything here stays in
// registers and nothing depends on anything: no load, no store, no packing, no sum across lanes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#define DOT(n) "vdpbf16ps %%zmm30,%%zmm31,%%zmm" #n "\n"
#define DOTS DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12) DOT(13) \
    DOT(14) DOT(15)
#define SOFTMAX                                                                                       \
  "vsubps %%zmm30,%%zmm31,%%zmm16\n vmulps %%zmm30,%%zmm31,%%zmm17\n vmaxps %%zmm30,%%zmm31,%%zmm18\n" \
  "vaddps %%zmm30,%%zmm31,%%zmm19\n vsubps %%zmm30,%%zmm31,%%zmm20\n vsubps %%zmm30,%%zmm31,%%zmm21\n" \
  "vpermps %%zmm30,%%zmm31,%%zmm22\n vpermps %%zmm30,%%zmm31,%%zmm23\n vpermps %%zmm30,%%zmm31,%%zmm24\n" \
  "vfmadd231ps %%zmm30,%%zmm31,%%zmm25\n vfmadd231ps %%zmm30,%%zmm31,%%zmm26\n"                        \
  "vscalefps %%zmm30,%%zmm31,%%zmm27\n vaddps %%zmm30,%%zmm31,%%zmm28\n"
#define ALL                                                                                                       \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", \
      "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25",  \
      "zmm26", "zmm27", "zmm28", "zmm30", "zmm31"

// Nanoseconds a round, the best of many runs.
template <class F>
double nanoseconds(F round) {
  constexpr long kRounds = 100000;
  double best = 1e9;
  for (int run = 0; run < 60; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    for (long i = 0; i < kRounds; ++i) round();
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    best = std::min(best, time.count() / kRounds);
  }
  return best;
}

int main() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16")) {
    std::puts("this processor has no AVX-512 BF16");
    return EXIT_FAILURE;
  }
  __asm__ volatile("vpxorq %%zmm30,%%zmm30,%%zmm30\n vpxorq %%zmm31,%%zmm31,%%zmm31\n" ::: "zmm30", "zmm31");
  const double products = nanoseconds([] { __asm__ volatile(DOTS DOTS DOTS DOTS ::: ALL); });
  const double both = nanoseconds([] { __asm__ volatile(DOTS SOFTMAX DOTS DOTS DOTS ::: ALL); });
  std::printf("16 logits: products %.2f ns (%.0f GFLOP/s), with their softmax %.2f ns\n", products, 64 * 64 / products,
              both);
  for (const int N : {320, 720}) {
    const double vectors = 12.0 * N * N / 16;
    std::printf("12 heads, N = %d, one thread: products %.0f us, with softmax %.0f us\n", N, vectors * products / 1e3,
                vectors * both / 1e3);
  }
  return EXIT_SUCCESS;
}
