// What every entry function asks of the views it gets.
#pragma once
#include <climits>
#include <cstdint>
#include <initializer_list>

#include "ostrack_fast.h"

namespace ostf {

inline int64_t element_size(int dtype) {
  switch (dtype) {
    case OSTF_I8:
    case OSTF_U8:
    case OSTF_BOOL:
      return 1;
    case OSTF_F16:
    case OSTF_BF16:
      return 2;
    case OSTF_F32:
    case OSTF_I32:
      return 4;
    case OSTF_I64:
    case OSTF_F64:
      return 8;
    default:
      return 0;
  }
}

inline bool is_float(int dtype) { return dtype == OSTF_F32 || dtype == OSTF_F16 || dtype == OSTF_BF16; }

inline bool has_elements(const ostf_tensor& t) {
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return false;
  }
  return true;
}

// A view of `ndim` dimensions, each of a size that an int holds, with memory behind it unless it is empty.
inline bool has_rank(const ostf_tensor* t, int ndim) {
  if (t == nullptr || t->ndim != ndim) return false;
  for (int i = 0; i < ndim; ++i) {
    if (t->shape[i] < 0 || t->shape[i] > INT_MAX) return false;
  }
  return t->data != nullptr || !has_elements(*t);
}

// Whether the dimensions from `first` on lie row by row without gaps.
inline bool is_dense(const ostf_tensor& t, int first = 0) {
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= first; --i) {
    if (t.shape[i] != 1 && t.stride[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

// Whether `t` is not null, has this dtype and shape, and is dense from dimension `first` on.
inline bool is(const ostf_tensor* t, int dtype, std::initializer_list<int64_t> shape, int first = 0) {
  if (!has_rank(t, static_cast<int>(shape.size())) || t->dtype != dtype) return false;
  int i = 0;
  for (const int64_t size : shape) {
    if (t->shape[i++] != size) return false;
  }
  return !has_elements(*t) || is_dense(*t, first);
}

template <class T>
T* data(const ostf_tensor* t) {
  return t ? static_cast<T*>(t->data) : nullptr;
}

}  // namespace ostf
