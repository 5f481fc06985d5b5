// Whose threads the kernels run on.
#include "cpu/parallel.h"
#include "ostrack_fast.h"

void* ostf_cpu_use_openmp(void* parallel) {
  void* before = reinterpret_cast<void*>(ostf::detail::openmp_parallel);
  ostf::detail::openmp_parallel = reinterpret_cast<ostf::detail::OpenMpParallel>(parallel);
  return before;
}
