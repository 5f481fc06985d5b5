// The level of instruction set in use: what the machine can run, or less where the user asks for less.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/features.h"

// Kernels for newer x86 processors are compiled into the one binary with GCC's or Clang's target pragmas.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define OSTF_X86 1
#endif

// Compilers that know AVX-VNNI.
#if defined(OSTF_X86) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define OSTF_AVX_VNNI 1
#endif

namespace ostf {

// By increasing ability.
enum Level { kPortable, kAvx2, kAvxVnni, kAvx512, kAvx512Bf16 };
constexpr const char* kLevelNames[] = {"portable", "avx2", "avx_vnni", "avx512", "avx512_bf16"};

// The machine's level, or a lower one named by OSTRACK_FAST_CPU_CAPABILITY (to compare, and to test on one machine what
// others will run). -1 if that names none.
inline int level() {
  static const int chosen = [] {
    const CpuFeatures& has = cpu_features();
    const bool avx512 = has.avx2 && has.avx512f && has.avx512bw && has.avx512dq && has.avx512vl;
    const int below = !has.avx2 ? kPortable : has.avx_vnni ? kAvxVnni : kAvx2;
    const int able = !avx512 ? below : has.avx512_bf16 ? kAvx512Bf16 : kAvx512;
    const char* wanted = std::getenv("OSTRACK_FAST_CPU_CAPABILITY");
    if (!wanted || !*wanted) return able;
    for (int i = 0; i <= kAvx512Bf16; ++i) {
      if (std::strcmp(wanted, kLevelNames[i]) == 0) return std::min(i, able);
    }
    return -1;
  }();
  return chosen;
}

}  // namespace ostf
