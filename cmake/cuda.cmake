# The CUDA table, three times. A program that opens tables links exactly one of them, after everything else:
#   squint_cuda         kernels/cuda compiled by nvcc; where no CUDA toolkit is found the name stands for squint_cuda_absent
#   squint_cuda_absent  says that this build has no CUDA
#   squint_cuda_simt    the same sources compiled for the host and executed there, a fiber a thread (tests/simt/CMakeLists.txt)
# A draft is what a machine without a GPU checks the sources with: a third of the time to compile, kernels that are slow.
set(SQUINT_CUDA "auto" CACHE STRING "Build kernels/cuda with nvcc: auto (where it is found), on, off, draft (auto, but hardly optimised)")
set(SQUINT_CUDA_ARCHITECTURES "80-real;90a-real;100-real;100-virtual" CACHE STRING "What nvcc compiles for")
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)

add_library(squint_cuda_absent STATIC ${CMAKE_SOURCE_DIR}/kernels/cuda/absent.c ${CMAKE_SOURCE_DIR}/comm/comm_nccl_absent.c)
target_link_libraries(squint_cuda_absent PUBLIC squint_kernels squint_comm)
# Archives before squint_ops in the linker's order would be passed over: nothing has asked for the table yet.
set(cuda_table_wanted "LINKER:--undefined=cuda_open")
target_link_options(squint_cuda_absent INTERFACE ${cuda_table_wanted})

if(SQUINT_CUDA STREQUAL "off")
  unset(CMAKE_CUDA_COMPILER CACHE) # what an earlier configuration of this folder found
else()
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # Each table brings its way to the other ranks' GPUs. The library itself is looked for when it is needed.
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  set(comm_nccl comm_nccl.c)
  if(NOT NCCL_INCLUDE_DIR)
    set(comm_nccl comm_nccl_absent.c)
    message(STATUS "nccl.h absent: gradients of several GPUs go through the host; install NCCL's headers (libnccl-dev)")
  endif()
  add_library(squint_cuda STATIC ${cuda_sources} ${CMAKE_SOURCE_DIR}/kernels/cuda/table.c ${CMAKE_SOURCE_DIR}/comm/${comm_nccl})
  set(cuda_architectures ${SQUINT_CUDA_ARCHITECTURES})
  if(SQUINT_CUDA STREQUAL "draft")
    set(cuda_architectures 80-virtual)
    target_compile_options(squint_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcicc=-O1>)
    message(STATUS "CUDA is built as a draft: -DSQUINT_CUDA=auto for kernels to use")
  endif()
  set_target_properties(squint_cuda PROPERTIES CUDA_ARCHITECTURES "${cuda_architectures}" CUDA_STANDARD 17
                        CUDA_RUNTIME_LIBRARY Static)
  target_include_directories(squint_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS} $<$<BOOL:${NCCL_INCLUDE_DIR}>:${NCCL_INCLUDE_DIR}>)
  target_compile_options(squint_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --extended-lambda
                         --Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror,-fno-math-errno -lineinfo>)
  target_link_options(squint_cuda INTERFACE ${cuda_table_wanted})
  target_link_libraries(squint_cuda PUBLIC squint_kernels squint_comm PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
  message(STATUS "CUDA ${CUDAToolkit_VERSION} found: built for ${cuda_architectures}")
elseif(SQUINT_CUDA STREQUAL "on")
  message(FATAL_ERROR "SQUINT_CUDA is on and no nvcc is found: put it on PATH, or set CMAKE_CUDA_COMPILER")
else()
  add_library(squint_cuda ALIAS squint_cuda_absent)
  message(STATUS "CUDA absent: the GPU's kernels are executed by tests/simt only, everything else works")
endif()
