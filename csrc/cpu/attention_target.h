// Before any region that switches an instruction set on: standard headers (whose inline functions must stay compiled
// for the base machine, since the linker keeps one copy for all files), intrinsics, and the macros that open and close
// such a region. The files therefore need no compiler flags of their own.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/attention.h"
#include "cpu/half.h"
#include "ostrack_fast.h"

#if defined(__GNUC__)
#define OSTF_INLINE inline __attribute__((always_inline))
#else
#define OSTF_INLINE inline
#endif

#if defined(OSTF_ATTENTION_X86)
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
