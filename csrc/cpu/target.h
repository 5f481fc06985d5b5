// Before any region that switches an instruction set on: standard headers (whose inline functions must stay compiled
// for the base machine, since the linker keeps one copy for all files), intrinsics, and the macros that open and close
// such a region. The files therefore need no compiler flags of their own.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/capability.h"
#include "cpu/half.h"
#include "ostrack_fast.h"

#if defined(__GNUC__) || defined(__clang__)
#define OSTF_INLINE inline __attribute__((always_inline))
#define OSTF_INLINED __attribute__((always_inline))  // for a lambda
#define OSTF_NOINLINE __attribute__((noinline))
#else
#define OSTF_INLINE inline
#define OSTF_INLINED
#define OSTF_NOINLINE
#endif

// Before a loop of few, known steps: all of them at once, as arrays of registers need it.
#if defined(__clang__)
#define OSTF_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define OSTF_UNROLL _Pragma("GCC unroll 16")
#else
#define OSTF_UNROLL
#endif

#if defined(OSTF_X86)
#if !defined(__clang__)  // GCC 12 calls its own intrinsics' "undefined" operands uninitialized (GCC bug 105593)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#define OSTF_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define OSTF_TARGET_BEGIN(isa) OSTF_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define OSTF_TARGET_END OSTF_PRAGMA(clang attribute pop)
#else
#define OSTF_TARGET_BEGIN(isa) OSTF_PRAGMA(GCC push_options) OSTF_PRAGMA(GCC target(isa))
#define OSTF_TARGET_END OSTF_PRAGMA(GCC pop_options)
#endif
#endif
