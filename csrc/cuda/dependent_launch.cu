// Programmatic dependent launch: whether kernels may be put on the multiprocessors while the one before them still ends.
#include "cuda/common.cuh"
#include "ostrack_fast.h"

void ostf_cuda_dependent_launch(int on) { ostf::launches_early = on != 0; }
