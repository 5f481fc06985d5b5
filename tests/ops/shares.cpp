// What parallel_for promises: every item once, and numbers of workers that no two threads have at a time. Prints "each
// once", or what is not so.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cpu/parallel.h"

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

// `slow`: an item that takes so long that others take over what is left of its worker's part.
void share(int64_t n, int threads, int64_t slow) {
  const auto done = std::make_unique<std::atomic<int>[]>(n);
  const auto busy = std::make_unique<std::atomic<bool>[]>(threads);
  ostf::parallel_for(n, threads, [&](int worker, int64_t begin, int64_t end) {
    check(worker >= 0 && worker < threads, "workers are numbered below the number of threads");
    check(!busy[worker].exchange(true), "a number is one thread's at a time");
    for (int64_t i = begin; i < end; ++i) {
      ++done[i];
      if (i == slow) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    busy[worker] = false;
  });
  for (int64_t i = 0; i < n; ++i) check(done[i] == 1, "every item is done once");
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 7, ostf::detail::Job::kMaxParts + 6}) {
    for (int64_t n = 1; n < 200; ++n) share(n, threads, -1);
    for (const int64_t slow : {0, 30, 60, 99}) share(100, threads, slow);
  }
  std::puts("each once");
}
