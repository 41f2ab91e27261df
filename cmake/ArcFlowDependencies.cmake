# The libraries that the core stands on. `scripts/native-deps.sh` puts what a machine lacks into `.deps/usr`; it is
# found through CMAKE_PREFIX_PATH like any other folder. Where there is a static library, it is taken: what is installed
# then needs libc and libstdc++ alone.

set(arcflow_lacks "")    # what is missing, by its own name
set(arcflow_packages "") # and by Debian's

find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  list(APPEND arcflow_lacks "nlohmann-json (3.10 or newer)")
  list(APPEND arcflow_packages nlohmann-json3-dev)
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

if(ARCFLOW_STATIC_DEPENDENCIES)
  set(OPENSSL_USE_STATIC_LIBS ON)
  find_package(OpenSSL 1.1 QUIET COMPONENTS Crypto)
  find_library(ZLIB_LIBRARY NAMES libz.a z)  # FindZLIB takes it as given
  set(utf8proc_names libutf8proc.a utf8proc)
else()
  set(utf8proc_names utf8proc)
endif()
if(NOT OpenSSL_FOUND)
  set(OPENSSL_USE_STATIC_LIBS OFF)
  unset(OPENSSL_CRYPTO_LIBRARY CACHE)
  unset(OPENSSL_SSL_LIBRARY CACHE)
  find_package(OpenSSL 1.1 QUIET COMPONENTS Crypto)
endif()
if(NOT OpenSSL_FOUND)
  list(APPEND arcflow_lacks "OpenSSL (1.1 or newer)")
  list(APPEND arcflow_packages libssl-dev)
endif()
find_package(ZLIB QUIET)
if(NOT ZLIB_FOUND)
  list(APPEND arcflow_lacks zlib)
  list(APPEND arcflow_packages zlib1g-dev)
endif()

find_path(UTF8PROC_INCLUDE_DIR utf8proc.h)
find_library(UTF8PROC_LIBRARY NAMES ${utf8proc_names})
if(NOT UTF8PROC_INCLUDE_DIR OR NOT UTF8PROC_LIBRARY)
  list(APPEND arcflow_lacks utf8proc)
  list(APPEND arcflow_packages libutf8proc-dev)
endif()
if(ARCFLOW_BUILD_TESTS)
  find_path(DOCTEST_INCLUDE_DIR doctest/doctest.h)
  if(NOT DOCTEST_INCLUDE_DIR)
    list(APPEND arcflow_lacks doctest)
    list(APPEND arcflow_packages doctest-dev)
  endif()
endif()

if(arcflow_lacks)
  list(JOIN arcflow_lacks ", " arcflow_lacks)
  list(JOIN arcflow_packages " " arcflow_packages)
  message(FATAL_ERROR "ArcFlow's C++ runtime needs ${arcflow_lacks}: install (Debian and Ubuntu) ${arcflow_packages}, or "
                      "run scripts/native-deps.sh and add -DCMAKE_PREFIX_PATH=${PROJECT_SOURCE_DIR}/.deps/usr")
endif()

add_library(arcflow_utf8proc INTERFACE)
target_include_directories(arcflow_utf8proc SYSTEM INTERFACE ${UTF8PROC_INCLUDE_DIR})
target_link_libraries(arcflow_utf8proc INTERFACE ${UTF8PROC_LIBRARY})
if(UTF8PROC_LIBRARY MATCHES "\\.a$")
  target_compile_definitions(arcflow_utf8proc INTERFACE UTF8PROC_STATIC)
endif()

if(ARCFLOW_BUILD_TESTS)
  add_library(arcflow_doctest INTERFACE)
  target_include_directories(arcflow_doctest SYSTEM INTERFACE ${DOCTEST_INCLUDE_DIR})
endif()
