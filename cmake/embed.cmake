# squint_embed(TARGET FILE SYMBOL): the bytes of FILE as `const unsigned char SYMBOL[]` and `const size_t SYMBOL_bytes`
# inside TARGET, so that the program needs no file beside it. Made anew when FILE changes.
# The file is its own script: cmake -DFILE=… -DSYMBOL=… -DOUT=… -P embed.cmake writes the C source.
if(CMAKE_SCRIPT_MODE_FILE)
  file(READ "${FILE}" bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  file(WRITE "${OUT}" "#include <stddef.h>\nextern const unsigned char ${SYMBOL}[];\nextern const size_t ${SYMBOL}_bytes;\n"
       "const unsigned char ${SYMBOL}[] = {\n${bytes}\n};\nconst size_t ${SYMBOL}_bytes = sizeof ${SYMBOL};\n")
  return()
endif()

function(squint_embed target file symbol)
  set(out ${CMAKE_BINARY_DIR}/embedded/${symbol}.c)
  add_custom_command(OUTPUT ${out} DEPENDS ${file} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    COMMAND ${CMAKE_COMMAND} -DFILE=${file} -DSYMBOL=${symbol} -DOUT=${out} -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake)
  target_sources(${target} PRIVATE ${out})
endfunction()
