// One fiber: a stack of its own that is entered and left, with what the sanitizers have to be told about it.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <deque>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBER_ASAN 1
#endif

#ifdef CUEMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace cuemu {

inline void tsan_acquire([[maybe_unused]] void* key) {
#ifdef CUEMU_TSAN
  __tsan_acquire(key);
#endif
}
inline void tsan_release([[maybe_unused]] void* key) {
#ifdef CUEMU_TSAN
  __tsan_release(key);
#endif
}

inline void tsan_write([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef CUEMU_TSAN
  __tsan_write_range(address, bytes);
#endif
}

// The runtime's own malloc and memcpy, which ThreadSanitizer intercepts, are no accesses of the emulated program.
struct TsanIgnore {
#ifdef CUEMU_TSAN
  TsanIgnore() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~TsanIgnore() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  TsanIgnore() {}
#endif
};

class Fiber {
 public:
  // Ready to run `entry` from its beginning, as a thread that nothing orders after anything before.
  void start(void (*entry)()) {
    entry_ = entry;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#ifdef CUEMU_TSAN
    if (stack_) munmap(stack_, kStack);  // forgets the accesses of the thread that had this stack before
    stack_ = nullptr;
    tsan_ = __tsan_create_fiber(0);
#endif
    if (!stack_) stack_ = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, kFlags, -1, 0));
    if (stack_ == MAP_FAILED) throw std::bad_alloc();
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(stack_, kStack);
    fake_stack_ = nullptr;
#endif
#ifdef __x86_64__
    void** top = reinterpret_cast<void**>(stack_ + kStack);
    *--top = nullptr;  // the return address nobody uses; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&Fiber::trampoline);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::trampoline, 0);
#endif
  }

  // From the main stack: run until the fiber leaves.
  void enter() {
    running_ = this;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&main_fake_stack_, stack_, kStack);
#endif
#ifdef CUEMU_TSAN
    main_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, 1);  // 1: the switch itself orders nothing
#endif
#ifdef __x86_64__
    swap(&main_pointer_, pointer_);
#else
    swapcontext(&main_context_, &context_);
#endif
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
  }

  // From the fiber: back to the main stack.
  void leave(bool forever = false) {
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(forever ? nullptr : &fake_stack_, main_bottom_, main_size_);
#endif
#ifdef CUEMU_TSAN
    __tsan_switch_to_fiber(main_tsan_, 1);
#endif
    if (forever) ended_ = true;
#ifdef __x86_64__
    swap(&pointer_, main_pointer_);
#else
    swapcontext(&context_, &main_context_);
#endif
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_, &main_bottom_, &main_size_);
#endif
  }

  // After its thread ended, or was given up.
  void finish() {
#ifdef CUEMU_TSAN
    // ThreadSanitizer gives a new fiber the identity of one destroyed some time ago, and sees no race within an
    // identity: those of the last blocks are kept, so that blocks race with each other.
    if (ended_) retired_.push_back(tsan_);
    if (retired_.size() > 1024) {
      __tsan_destroy_fiber(retired_.front());
      retired_.pop_front();
    }
#endif
    ended_ = false;
  }

 private:
#ifdef FIBER_ASAN
  static constexpr size_t kStack = 256 << 10;
#else
  static constexpr size_t kStack = 32 << 10;
#endif

  static void trampoline() {
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
#endif
    Fiber* me = running_;
    me->entry_();
    me->leave(true);
    __builtin_trap();
  }

#ifdef __x86_64__
  __attribute__((naked, noinline)) static void swap(void** /*save*/, void* /*load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  void* pointer_ = nullptr;
  static inline void* main_pointer_ = nullptr;
#else
  ucontext_t context_;
  static inline ucontext_t main_context_;
#endif
  char* stack_ = nullptr;
  void (*entry_)() = nullptr;
  bool ended_ = false;
  static inline Fiber* running_ = nullptr;
#ifdef FIBER_ASAN
  void* fake_stack_ = nullptr;
  static inline void* main_fake_stack_ = nullptr;
  static inline const void* main_bottom_ = nullptr;
  static inline size_t main_size_ = 0;
#endif
#ifdef CUEMU_TSAN
  void* tsan_ = nullptr;
  static inline std::deque<void*> retired_;
  static inline void* main_tsan_ = nullptr;
#endif
};

}  // namespace cuemu
