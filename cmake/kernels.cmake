# kernels/cpu is written once in terms of `real` and compiled four times (kernels/cpu/real.h): fp32 for plain x86-64,
# AVX2 and AVX-512, of which table.c picks one at run time, and fp64, the oracle of every test.
# Files named in SQUINT_CPU_ONCE hold no kernels and are compiled once.
file(GLOB cpu_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cpu/*.c)
file(GLOB guard_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/guard/*.c ${CMAKE_SOURCE_DIR}/kernels/check*.c)
set(cpu_once ${cpu_sources})
list(FILTER cpu_once INCLUDE REGEX "/(table|device|bf16)[^/]*\\.c$")
set(cpu_kernels ${cpu_sources})
list(FILTER cpu_kernels EXCLUDE REGEX "/(table|device|bf16)[^/]*\\.c$")

add_library(squint_kernels STATIC ${cpu_once} ${guard_sources})
target_include_directories(squint_kernels PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/src)
target_link_libraries(squint_kernels PUBLIC squint_base OpenMP::OpenMP_C dep::openblas)
if(TARGET dep::onednn)
  target_link_libraries(squint_kernels PUBLIC dep::onednn)
endif()
# Tables by name. The CUDA table is one of three libraries (cuda.cmake), which every program names last.
add_library(squint_ops STATIC ${CMAKE_SOURCE_DIR}/kernels/open.c)
target_link_libraries(squint_ops PUBLIC squint_kernels)
set_property(GLOBAL APPEND PROPERTY SQUINT_MODULES squint_ops)

function(squint_cpu_variant variant)
  cmake_parse_arguments(V "" "" "FLAGS;DEFINES" ${ARGN})
  add_library(cpu_${variant} OBJECT ${cpu_kernels})
  target_include_directories(cpu_${variant} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(cpu_${variant} PRIVATE squint_base OpenMP::OpenMP_C dep::openblas)
  # Sums are reordered for vectors only where `#pragma omp simd reduction` says so: -fassociative-math would also move the
  # terms of max-shifted exponents and logarithms, and gcc 12 drops __builtin_assoc_barrier when it vectorises.
  target_compile_options(cpu_${variant} PRIVATE -O3 -fno-math-errno -fno-trapping-math ${V_FLAGS}
                         $<$<C_COMPILER_ID:Clang>:-Wno-pass-failed>) # clang need not vectorise every `omp simd`
  target_compile_definitions(cpu_${variant} PRIVATE SQUINT_VARIANT=${variant} ${V_DEFINES})
  target_sources(squint_kernels PRIVATE $<TARGET_OBJECTS:cpu_${variant}>)
endfunction()
squint_cpu_variant(f32_base)
squint_cpu_variant(f32_avx2 FLAGS -mavx2 -mfma -mf16c)
squint_cpu_variant(f32_avx512 FLAGS -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)
squint_cpu_variant(f64 DEFINES SQUINT_REAL_F64=1)
