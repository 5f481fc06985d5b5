// parallel_for: split a range over threads of our own.
//
// No thread waits for one that has not taken work. A barrier, as an OpenMP team has at the end of every region, waits
// for all: where another process keeps a core busy, one frame of a small network on two threads took 460 ms behind
// libgomp's barriers, 74 ms on one thread, and takes 70 ms this way (Zen 3, 2 cores). Threads watch for the next range for
// a moment before they sleep, since the next layer follows within microseconds and waking a thread takes tens of them.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace ostf {
namespace detail {

// The core that this thread runs on, or -1 where the system does not tell.
inline int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to another core that it may run on, if there is one. Where the other cores sleep, Linux may wake a
// thread on the core of the thread that wakes it, and leave both there for tens of milliseconds (seen in a virtual machine).
inline void leave_core([[maybe_unused]] int core) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) {
    sched_setaffinity(0, sizeof allowed, &allowed);
  }
#endif
}

// One parallel_for in flight. A thread claims part of the remaining range, so parts shrink towards the end and threads
// finish at about the same time, even where a core is slow or busy.
struct Job {
  void (*call)(void* body, int64_t begin, int64_t end);
  void* body;
  int64_t n;
  int64_t shares;
  int helpers;                 // threads still wanted beside the caller; guarded by the pool's mutex
  std::atomic<int> inside{0};  // helpers now in this job; written under the pool's mutex
  const int core = current_core();  // the caller's
  int elsewhere = 0;                // helpers that worked on another core; guarded by the pool's mutex
  std::atomic<int64_t> next{0};

  // Does parts until none is left; returns how much of the range this thread did.
  int64_t run() {
    int64_t did = 0;
    for (int64_t begin = 0; begin < n;) {
      const int64_t end = begin + std::max<int64_t>(1, (n - begin) / shares);
      if (next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
        call(body, begin, end);
        did += end - begin;
        begin = next.load(std::memory_order_relaxed);
      }
    }
    return did;
  }
};

inline thread_local bool inside_parallel_for = false;

// What ostf_cpu_use_openmp set for this thread.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
inline thread_local OpenMpParallel openmp_parallel = nullptr;

using Clock = std::chrono::steady_clock;

// Whether `done` comes true within 50 microseconds.
template <class F>
bool soon(F done) {
  const auto end = Clock::now() + std::chrono::microseconds(50);
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
#if defined(__x86_64__) || defined(_M_X64)
      _mm_pause();
#endif
    }
    if (Clock::now() >= end) return false;
  }
}

// Tells when the caller is better off alone. Where another process keeps a core busy, the system stops a helper for
// milliseconds in the middle of its part, and the caller waits; or it runs the helper on the caller's core, which saves
// nothing. Where waiting costs more than half of what helpers save, the caller works alone for a while and then tries
// again; the more trials fail, the later. Guarded by the pool's mutex, but for `now`.
class Solitude {
 public:
  bool now(Clock::time_point time) const { return time.time_since_epoch().count() < end_.load(std::memory_order_relaxed); }

  // After a job: how long the caller worked, how long it waited then, and how much of the range it did.
  void note(const Job& job, Clock::duration worked, Clock::duration waited, int64_t did, Clock::time_point time) {
    if (did == 0) return;  // no telling what the helpers saved
    const double share = std::min<double>(job.elsewhere, static_cast<double>(job.n - did) / static_cast<double>(did));
    const auto saved = std::chrono::duration_cast<Clock::duration>(worked * share);
    lost_ = std::max(Clock::duration::zero(), lost_ + waited - saved / 2);
    if (lost_ < kPatience) return;
    const Clock::duration since = time.time_since_epoch() - Clock::duration(end_.load(std::memory_order_relaxed));
    length_ = since < kLongest ? std::min<Clock::duration>(2 * length_, kLongest) : kShortest;
    end_.store((time + length_).time_since_epoch().count(), std::memory_order_relaxed);
    lost_ = Clock::duration::zero();
  }

 private:
  static constexpr std::chrono::milliseconds kPatience{5}, kShortest{100}, kLongest{1000};
  std::atomic<Clock::rep> end_{0};
  Clock::duration lost_{0}, length_{kShortest};
};

// The caller works too and waits only for threads that have taken work, so a pool with fewer threads than asked for (none
// could be started) is slower, never wrong.
class Pool {
 public:
  static Pool& instance() { return **slot(); }

  void run(Job& job) {
    const Clock::time_point begin = Clock::now();
    if (solitude_.now(begin)) return job.call(job.body, 0, job.n);
    std::unique_lock<std::mutex> lock(mutex_);
    grow(job.helpers);
    jobs_.push_back(&job);
    waiting_.store(static_cast<int>(jobs_.size()), std::memory_order_relaxed);
    const bool asleep = asleep_ > 0;
    lock.unlock();
    if (asleep) ready_.notify_all();
    const int64_t did = job.run();
    const Clock::time_point finished = Clock::now();
    lock.lock();
    withdraw(&job);
    if (job.inside.load(std::memory_order_relaxed) != 0) {
      lock.unlock();
      soon([&] { return job.inside.load(std::memory_order_acquire) == 0; });
      lock.lock();
      done_.wait(lock, [&] { return job.inside.load(std::memory_order_relaxed) == 0; });
    }
    const Clock::time_point end = Clock::now();
    solitude_.note(job, finished - begin, end - finished, did, end);
  }

 private:
  // Never destroyed, because its threads may outlive static destructors. A forked child has none of the threads, and
  // perhaps a mutex that one of them held: it begins with a new pool.
  static Pool** slot() {
    static Pool* pool = nullptr;
    static const bool once = [] {
      pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
      pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
      return true;
    }();
    (void)once;
    return &pool;
  }

  void grow(int count) {
    try {
      for (; threads_ < count; ++threads_) std::thread([this] { loop(); }).detach();
    } catch (const std::system_error&) {
      return;  // the system gives no more threads: the existing ones and the caller do the work
    }
  }

  void loop() {
    inside_parallel_for = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      bool slept = false;
      if (jobs_.empty()) {
        lock.unlock();
        soon([&] { return waiting_.load(std::memory_order_relaxed) > 0; });
        lock.lock();
        slept = jobs_.empty();
        ++asleep_;
        ready_.wait(lock, [&] { return !jobs_.empty(); });
        --asleep_;
      }
      Job* job = jobs_.front();
      job->inside.fetch_add(1, std::memory_order_relaxed);
      if (--job->helpers == 0) withdraw(job);
      lock.unlock();
      if (slept && job->core >= 0 && current_core() == job->core) leave_core(job->core);
      job->run();
      const int core = current_core();
      lock.lock();
      withdraw(job);
      if (core < 0 || core != job->core) ++job->elsewhere;
      if (job->inside.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }
  }

  void withdraw(const Job* job) {
    const auto it = std::find(jobs_.begin(), jobs_.end(), job);
    if (it != jobs_.end()) jobs_.erase(it);
    waiting_.store(static_cast<int>(jobs_.size()), std::memory_order_relaxed);
  }

  std::mutex mutex_;
  std::condition_variable ready_, done_;
  std::vector<Job*> jobs_;       // those that still want threads
  std::atomic<int> waiting_{0};  // how many those are, to be read without the mutex
  int threads_ = 0, asleep_ = 0;
  Solitude solitude_;
};

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
  if (detail::openmp_parallel) {
    const auto work = [](void* shared) { static_cast<detail::Job*>(shared)->run(); };
    return detail::openmp_parallel(work, &job, static_cast<unsigned>(team), 0);
  }
  detail::Pool::instance().run(job);
}

}  // namespace ostf
