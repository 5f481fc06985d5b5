// Memory that the calling thread keeps for its next call: fresh pages would cost as much as a small call's arithmetic.
#pragma once
#include <cstddef>
#include <new>

namespace ostf {

class Arena {
 public:
  ~Arena() { release(); }

  // At least `bytes` bytes that start on a cache line, or null; what the last call got is no longer valid.
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      release();
      memory_ = ::operator new(bytes, kAlignment, std::nothrow);
      size_ = memory_ ? bytes : 0;
    }
    return memory_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() {
    ::operator delete(memory_, kAlignment);
    memory_ = nullptr;
    size_ = 0;
  }

  void* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ostf
