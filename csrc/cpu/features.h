// What the processor at hand can do. Kernels for anything beyond x86-64-v2 look here before they run.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ostf {

struct CpuFeatures {
  bool avx2 = false;  // with FMA and F16C, as on every processor that has it
  bool avx_vnni = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
  bool avx512_vnni = false, avx512_bf16 = false, avx512_fp16 = false;
  bool amx_tile = false, amx_int8 = false, amx_bf16 = false;
};

inline CpuFeatures detect_cpu_features() {
  CpuFeatures found;
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return found;  // without XSAVE no AVX registers are saved
  const bool fma_f16c = (c >> 12 & 1) && (c >> 29 & 1);
  uint32_t saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));  // the registers the system saves on a switch
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const bool tiles = (saved & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint32_t subleaves = a;
  found.avx2 = ymm && fma_f16c && (b >> 5 & 1);
  found.avx512f = zmm && (b >> 16 & 1);
  found.avx512dq = zmm && (b >> 17 & 1);
  found.avx512bw = zmm && (b >> 30 & 1);
  found.avx512vl = zmm && (b >> 31 & 1);
  found.avx512_vnni = zmm && (c >> 11 & 1);
  found.avx512_fp16 = zmm && (d >> 23 & 1);
  found.amx_bf16 = tiles && (d >> 22 & 1);
  found.amx_tile = tiles && (d >> 24 & 1);
  found.amx_int8 = tiles && (d >> 25 & 1);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx_vnni = found.avx2 && (a >> 4 & 1);
    found.avx512_bf16 = zmm && (a >> 5 & 1);
  }
#endif
  return found;
}

inline const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect_cpu_features();
  return found;
}

}  // namespace ostf
