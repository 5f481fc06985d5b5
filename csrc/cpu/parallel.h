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
#include <type_traits>
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

// One parallel_for in flight. Each worker owns an equal part of the range and does it in order, half of what is left at
// a time, so that what its cache holds or has fetched ahead serves it next. A worker whose part is done takes the last
// half of the largest part that is left, so that all finish at about the same time, even where a core is slow or busy.
class Job {
 public:
  static constexpr int kMaxParts = 64;  // more workers than that share them

  using Call = void (*)(void* body, int worker, int64_t begin, int64_t end);

  Job(Call call, void* body, int64_t n, int team)
      : helpers(team - 1), call_(call), body_(body), n_(n), parts_(std::min(team, kMaxParts)) {
    for (int64_t i = 0; i < parts_; ++i) left_[i].range = pair(n * i / parts_, n * (i + 1) / parts_);
  }

  int64_t size() const { return n_; }

  // Does parts until none is left; returns how much of the range this worker did.
  int64_t run(int worker) {
    int64_t did = 0;
    for (int64_t begin, end; take(left_[worker % parts_].range, begin, end); did += end - begin) {
      call_(body_, worker, begin, end);
    }
    return did;
  }

  void run_alone() { call_(body_, 0, 0, n_); }

  int helpers;                 // threads still wanted beside the caller; guarded by the pool's mutex
  std::atomic<int> inside{0};  // helpers now in this job; written under the pool's mutex
  const int core = current_core();  // the caller's
  int elsewhere = 0;                // helpers that worked on another core; guarded by the pool's mutex
  std::atomic<int> arrived{0};      // workers of an OpenMP team

 private:
  using Range = std::atomic<uint64_t>;  // from the low half to the high one; it only shrinks

  static uint64_t pair(int64_t begin, int64_t end) { return static_cast<uint64_t>(end) << 32 | begin; }
  static int64_t begin_of(uint64_t range) { return static_cast<uint32_t>(range); }
  static int64_t end_of(uint64_t range) { return static_cast<int64_t>(range >> 32); }
  static int64_t size_of(uint64_t range) { return end_of(range) - begin_of(range); }

  // The next range to do, for the worker whose part is `own`, or false.
  bool take(Range& own, int64_t& begin, int64_t& end) {
    for (uint64_t left = own.load(std::memory_order_relaxed); size_of(left) > 0;) {
      begin = begin_of(left);
      end = begin + (size_of(left) + 1) / 2;
      if (own.compare_exchange_weak(left, pair(end, end_of(left)), std::memory_order_relaxed)) return true;
    }
    for (;;) {
      Range* largest = nullptr;
      uint64_t left = 0;
      for (int i = 0; i < parts_; ++i) {
        const uint64_t each = left_[i].range.load(std::memory_order_relaxed);
        if (size_of(each) > size_of(left)) left = each, largest = &left_[i].range;
      }
      if (!largest) return false;
      end = end_of(left);
      begin = end - (size_of(left) + 1) / 2;
      if (largest->compare_exchange_weak(left, pair(begin_of(left), begin), std::memory_order_relaxed)) return true;
    }
  }

  Call call_;
  void* body_;
  int64_t n_;
  int parts_;
  struct alignas(64) Part {
    Range range;
  } left_[kMaxParts];
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
    const double others = static_cast<double>(job.size() - did) / static_cast<double>(did);
    const double share = std::min<double>(job.elsewhere, others);
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
    if (solitude_.now(begin)) return job.run_alone();
    std::unique_lock<std::mutex> lock(mutex_);
    grow(job.helpers);
    jobs_.push_back(&job);
    waiting_.store(static_cast<int>(jobs_.size()), std::memory_order_relaxed);
    const bool asleep = asleep_ > 0;
    lock.unlock();
    if (asleep) ready_.notify_all();
    const int64_t did = job.run(0);
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
      const int worker = job->helpers--;
      if (worker == 1) withdraw(job);
      lock.unlock();
      if (slept && job->core >= 0 && current_core() == job->core) leave_core(job->core);
      job->run(worker);
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
// must not throw. Called from inside a body it runs serially. A body(worker, begin, end) is told the number of its worker,
// below `threads`, which no other thread has meanwhile.
template <class F>
void parallel_for(int64_t n, int threads, F body) {
  if (n <= 0) return;
  const auto call = [](void* f, [[maybe_unused]] int worker, int64_t begin, int64_t end) {
    const bool nested = detail::inside_parallel_for;
    detail::inside_parallel_for = true;
    if constexpr (std::is_invocable_v<F&, int, int64_t, int64_t>) {
      (*static_cast<F*>(f))(worker, begin, end);
    } else {
      (*static_cast<F*>(f))(begin, end);
    }
    detail::inside_parallel_for = nested;
  };
  const bool alone = detail::inside_parallel_for || n > UINT32_MAX;  // a Job counts in 32 bits
  const auto team = static_cast<int>(alone ? 1 : std::min<int64_t>(threads, n));
  if (team <= 1) return call(&body, 0, 0, n);
  detail::Job job(call, &body, n, team);
  if (detail::openmp_parallel) {
    const auto work = [](void* shared) {
      auto* job = static_cast<detail::Job*>(shared);
      job->run(job->arrived.fetch_add(1, std::memory_order_relaxed));
    };
    return detail::openmp_parallel(work, &job, static_cast<unsigned>(team), 0);
  }
  detail::Pool::instance().run(job);
}

}  // namespace ostf
