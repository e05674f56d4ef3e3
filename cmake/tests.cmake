# squint_test(NAME [ALONE] [LIBS ...] [CUDA LIBRARY] [RANKS 1 2 4] [TIMEOUT s] [SOURCES ...])
#   builds tests/<folder>/NAME.c, linked with LIBS (default: everything), and registers it; with RANKS, once under mpirun for each.
#   CUDA: which of the three CUDA tables (cuda.cmake); default squint_cuda_absent.
#   ALONE: it looks at the time, so that nothing runs beside it. Of the others those with the longest TIMEOUT begin first.
# squint_script(NAME [ALONE] [TIMEOUT s] COMMAND ...) registers a script; it finds the program in $SQUINT and the real data in $SQUINT_DATA.
# A test whose exit code is 77 skipped itself and printed why.
set(SQUINT_DATA "${CMAKE_SOURCE_DIR}/../shared/data" CACHE PATH "real models, texts, tokenizers; tests that need it skip without")
set(test_environment "SQUINT=${CMAKE_BINARY_DIR}/squint" "SQUINT_DATA=$ENV{SQUINT_DATA}" "SQUINT_SOURCE=${CMAKE_SOURCE_DIR}"
    "SQUINT_BUILD=${CMAKE_BINARY_DIR}" "OMPI_ALLOW_RUN_AS_ROOT=1" "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    "OMP_WAIT_POLICY=passive" "OMPI_MCA_rmaps_base_oversubscribe=1" "OMPI_MCA_hwloc_base_binding_policy=none" "OMPI_MCA_btl_base_warn_component_unused=0"
    "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/support/lsan.txt:print_suppressions=0")
if("$ENV{SQUINT_DATA}" STREQUAL "")
  list(REMOVE_ITEM test_environment "SQUINT_DATA=")
  list(APPEND test_environment "SQUINT_DATA=${SQUINT_DATA}")
endif()

# asan: more options of AddressSanitizer, each behind a colon.
function(squint_register name label timeout alone asan)
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT ${timeout} COST ${timeout} RUN_SERIAL ${alone} SKIP_RETURN_CODE 77
                       ENVIRONMENT "${test_environment};ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1${asan}")
endfunction()

function(squint_test name)
  cmake_parse_arguments(T "ALONE" "TIMEOUT;CUDA" "LIBS;RANKS;SOURCES;ARGS" ${ARGN})
  if(NOT T_LIBS)
    set(T_LIBS squint_all)
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  if(NOT T_CUDA)
    set(T_CUDA squint_cuda_absent)
  endif()
  get_filename_component(label ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  add_executable(${name} ${name}.c ${T_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  target_compile_options(${name} PRIVATE -Wno-missing-prototypes)
  target_link_libraries(${name} PRIVATE ${T_LIBS} ${T_CUDA} dep::cmocka m)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(T_RANKS)
    foreach(ranks ${T_RANKS})
      add_test(NAME ${label}/${name}@${ranks} COMMAND mpirun -np ${ranks} --oversubscribe $<TARGET_FILE:${name}> ${T_ARGS})
      # What Open MPI keeps is told by its libraries' names: stacks must reach them through code without frame pointers.
      squint_register(${label}/${name}@${ranks} ${label} ${T_TIMEOUT} ${T_ALONE} ":fast_unwind_on_malloc=0")
    endforeach()
  else()
    add_test(NAME ${label}/${name} COMMAND ${name} ${T_ARGS})
    squint_register(${label}/${name} ${label} ${T_TIMEOUT} ${T_ALONE} "")
  endif()
endfunction()

function(squint_script name)
  cmake_parse_arguments(T "ALONE" "TIMEOUT" "COMMAND" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  get_filename_component(label ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  add_test(NAME ${label}/${name} COMMAND ${T_COMMAND})
  squint_register(${label}/${name} ${label} ${T_TIMEOUT} ${T_ALONE} "")
endfunction()

file(GLOB test_lists CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/*/CMakeLists.txt)
foreach(list ${test_lists})
  get_filename_component(folder ${list} DIRECTORY)
  get_filename_component(label ${folder} NAME)
  add_subdirectory(${folder} ${CMAKE_BINARY_DIR}/tests/cmake-${label})
endforeach()
