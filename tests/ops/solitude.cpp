// When the thread pool's callers work alone: a program that fails an assertion, or prints "alone as told".
#include <cstdio>
#include <cstdlib>

#include "cpu/parallel.h"

using namespace std::chrono_literals;
using ostf::detail::Clock;
using ostf::detail::Job;
using ostf::detail::Solitude;

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

// A clock that the test moves, and jobs whose range the caller and `helpers` share equally.
struct Past {
  Solitude solitude;
  Clock::time_point time{1h};

  void job(Clock::duration worked, Clock::duration waited, int helpers = 1, int elsewhere = 1) {
    Job job(nullptr, nullptr, 1 + helpers, 1 + helpers);
    job.elsewhere = elsewhere;
    time += worked + waited;
    solitude.note(job, worked, waited, 1, time);
  }
  bool alone() const { return solitude.now(time); }

  // Works beside a busy process: 4 ms of every 8 are lost. Returns how long the caller is alone then.
  Clock::duration disturbed() {
    for (int slice = 0; slice < 10 && !alone(); ++slice) {
      for (int i = 0; i < 40; ++i) job(100us, 0us);
      job(100us, 4ms);
    }
    const Clock::time_point begin = time;
    while (alone()) time += 1ms;
    return time - begin;
  }
};

void helpers_that_help_are_kept() {
  Past past;
  for (int i = 0; i < 100000; ++i) {
    past.job(100us, i % 1000 == 0 ? 4ms : 10us);  // stopped once in a tenth of a second
    check(!past.alone(), "a rare stop does not end the team");
  }
  Past many;
  for (int i = 0; i < 1000; ++i) {
    many.job(4ms, 4ms, 15, 15);
    check(!many.alone(), "of many helpers one may be stopped");
  }
}

void helpers_that_cost_more_are_left() {
  Past past;
  Clock::duration last{};
  for (const auto length : {100ms, 200ms, 400ms, 800ms, 1000ms, 1000ms}) {
    last = past.disturbed();
    check(last == length, "each trial that fails doubles the time alone, up to a second");
  }
  past.time += 2s;
  check(past.disturbed() == 100ms, "after a good while it begins anew");

  Past same_core;
  for (int i = 0; i < 200; ++i) same_core.job(60us, 60us, 1, 0);
  check(same_core.alone(), "a helper on the caller's core saves nothing");
}

// A helper that keeps the caller waiting longer than it worked; then what the next call does.
void the_pool_listens() {
  const std::thread::id caller = std::this_thread::get_id();
  Clock::duration gap;
  int whole, calls;
  do {
    std::atomic<bool> helped{false};
    const Clock::time_point begin = Clock::now();
    ostf::parallel_for(2, 2, [&](int64_t, int64_t) {
      if (std::this_thread::get_id() == caller) {
        while (!helped) std::this_thread::yield();
        return;
      }
      helped = true;
      std::this_thread::sleep_for(20ms + 2 * (Clock::now() - begin));
    });
    const Clock::time_point end = Clock::now();
    std::atomic<int> parts{0}, wholes{0};
    ostf::parallel_for(64, 2, [&](int64_t first, int64_t last) {
      ++parts;
      wholes += first == 0 && last == 64 && std::this_thread::get_id() == caller;
    });
    calls = parts;
    whole = wholes;
    gap = Clock::now() - end;
  } while (gap > 50ms);  // stopped itself for so long that it may have been a team again
  check(calls == 1 && whole == 1, "alone the caller does all at once");
}

}  // namespace

int main() {
  helpers_that_help_are_kept();
  helpers_that_cost_more_are_left();
  the_pool_listens();
  std::puts("alone as told");
}
