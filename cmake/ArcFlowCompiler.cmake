# What every target of ours is compiled with: `arcflow_options`, and the sanitizers where they are asked for.

# The solver's products and sums round apart, on every compiler: no contraction.
add_library(arcflow_options INTERFACE)
target_compile_options(arcflow_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wconversion -Wshadow -ffp-contract=off>)
if(ARCFLOW_WARNINGS_AS_ERRORS)
  target_compile_options(arcflow_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-Werror>)
endif()
# What is linked in statically stays inside: two versions of libcrypto in one process do not meet. A sanitizer's runtime
# is linked in statically too, and is what our modules look for in the program.
if(NOT APPLE AND NOT ARCFLOW_SANITIZE)
  target_link_options(arcflow_options INTERFACE LINKER:--exclude-libs,ALL)
endif()

if(ARCFLOW_SANITIZE)
  set(sanitize -fsanitize=${ARCFLOW_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${sanitize}>")
  add_link_options(-fsanitize=${ARCFLOW_SANITIZE})
endif()
if(ARCFLOW_BUILD_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "ARCFLOW_BUILD_FUZZERS needs clang++ (this is ${CMAKE_CXX_COMPILER_ID}): libFuzzer is a part of it; "
                        "configure with -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang")
  endif()
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()
