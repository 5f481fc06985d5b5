// parallel_for: split a range over threads.
//
// The threads are those of the OpenMP runtime that PyTorch has already loaded, found at run time by name. They still
// spin when a PyTorch operation has just ended, so a region costs one or two microseconds where a thread of our own takes
// tens to wake, and no second set of threads fights them for the cores. Linking an OpenMP runtime instead could load a
// second one, or fail to load on a machine that has none. Where the process holds no such runtime, a private pool does.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace ostf {
namespace detail {

// One parallel_for in flight. A thread claims a share of what is left, so ranges shrink towards the end and all threads
// finish at about the same time, however slow or busy a core is.
struct Job {
  void (*call)(void* body, int64_t begin, int64_t end);
  void* body;
  int64_t n;
  int64_t shares;
  int helpers;     // pool only: threads still wanted beside the caller; guarded by the pool's mutex
  int inside = 0;  // pool only: threads now in this job; guarded by the pool's mutex
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t begin = 0; begin < n;) {
      const int64_t end = begin + std::max<int64_t>(1, (n - begin) / shares);
      if (next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
        call(body, begin, end);
        begin = next.load(std::memory_order_relaxed);
      }
    }
  }
};

inline thread_local bool inside_parallel_for = false;

// The caller works too and waits only for threads that have taken work, so a pool with fewer threads than asked for (none
// could be started, or the process has forked) is slower, never wrong.
class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: its threads may outlive static destructors
    return *pool;
  }

  void run(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    grow(job.helpers);
    jobs_.push_back(&job);
    lock.unlock();
    ready_.notify_all();
    job.run();
    lock.lock();
    withdraw(&job);
    done_.wait(lock, [&] { return job.inside == 0; });
  }

 private:
  void grow(int count) {
    try {
      for (; threads_ < count; ++threads_) std::thread([this] { loop(); }).detach();
    } catch (const std::system_error&) {
      return;  // no more threads to be had: those there are, and the caller, do the work
    }
  }

  void loop() {
    inside_parallel_for = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ready_.wait(lock, [&] { return !jobs_.empty(); });
      Job* job = jobs_.front();
      ++job->inside;
      if (--job->helpers == 0) withdraw(job);
      lock.unlock();
      job->run();
      lock.lock();
      withdraw(job);
      if (--job->inside == 0) done_.notify_all();
    }
  }

  void withdraw(const Job* job) {
    const auto it = std::find(jobs_.begin(), jobs_.end(), job);
    if (it != jobs_.end()) jobs_.erase(it);
  }

  std::mutex mutex_;
  std::condition_variable ready_, done_;
  std::vector<Job*> jobs_;  // those that still want threads
  int threads_ = 0;
};

// GOMP_parallel, the stable entry point that GCC compiles `#pragma omp parallel` to; LLVM's and Intel's runtimes export it
// too. Null where no runtime is loaded.
using OpenMPParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

inline OpenMPParallel loaded_openmp() {
#if defined(__linux__)
  static const OpenMPParallel found = [] {
    for (const char* name : {"libgomp.so.1", "libomp.so", "libiomp5.so"}) {
      if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) {
        if (void* symbol = dlsym(library, "GOMP_parallel")) return reinterpret_cast<OpenMPParallel>(symbol);
      }
    }
    return OpenMPParallel{nullptr};
  }();
  return found;
#else
  return nullptr;
#endif
}

}  // namespace detail

// Calls body(begin, end) for disjoint ranges that cover [0, n), on at most `threads` threads, and returns when all are
// done. Where the ranges begin and which thread takes which is not fixed, so results must not depend on it. The body
// must not throw. Called from inside a body it runs serially.
template <class F>
void parallel_for(int64_t n, int threads, F body) {
  if (n <= 0) return;
  const int64_t team = std::min<int64_t>(threads, n);
  if (team <= 1 || detail::inside_parallel_for) {
    body(int64_t{0}, n);
    return;
  }
  detail::Job job;
  job.call = [](void* f, int64_t begin, int64_t end) {
    const bool nested = detail::inside_parallel_for;
    detail::inside_parallel_for = true;
    (*static_cast<F*>(f))(begin, end);
    detail::inside_parallel_for = nested;
  };
  job.body = &body;
  job.n = n;
  job.shares = 2 * team;
  job.helpers = static_cast<int>(team) - 1;
  if (const auto openmp = detail::loaded_openmp()) {
    openmp([](void* data) { static_cast<detail::Job*>(data)->run(); }, &job, static_cast<unsigned>(team), 0);
  } else {
    detail::Pool::instance().run(job);
  }
}

}  // namespace ostf
