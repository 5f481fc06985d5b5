# Adds the CUDA kernels to _C. Included once a CUDA compiler is known to work.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # the target's own list below is the one that counts
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE listed RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} --list-gpu-arch failed: CUDA 11.8 or newer is needed.")
endif()
string(REGEX MATCHALL "compute_[0-9]+" supported "${listed}")
list(TRANSFORM supported REPLACE "compute_" "")

set(architectures ${OSTF_CUDA_ARCHITECTURES})
if(NOT architectures)
  # One binary for each generation, and PTX of the newest for GPUs to come. An older nvcc knows fewer of them.
  foreach(number 75 80 86 89 90 100 120)
    if(number IN_LIST supported)
      list(APPEND architectures ${number}-real)
      set(newest ${number})
    endif()
  endforeach()
  list(APPEND architectures ${newest}-virtual)
endif()
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${architectures}")

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
target_sources(_C PRIVATE ${cuda_sources})
set_target_properties(_C PROPERTIES CUDA_ARCHITECTURES "${architectures}" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                                    CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
target_link_libraries(_C PRIVATE CUDA::cudart_static)
target_compile_options(_C PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 --expt-relaxed-constexpr>)
string(REPLACE ";" " " architectures_text "${architectures}")
target_compile_definitions(_C PRIVATE OSTF_WITH_CUDA OSTF_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
                                      "OSTF_CUDA_ARCHITECTURES=\"${architectures_text}\"")
