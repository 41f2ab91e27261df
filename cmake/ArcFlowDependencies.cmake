# The libraries that the core stands on. `scripts/native-deps.sh` puts what a machine lacks into `.deps/usr`; it is
# found through CMAKE_PREFIX_PATH like any other folder. Where there is a static library, it is taken: what is installed
# then needs libc and libstdc++ alone.

find_package(nlohmann_json 3.10 REQUIRED)

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
  find_package(OpenSSL 1.1 REQUIRED COMPONENTS Crypto)
endif()
find_package(ZLIB REQUIRED)

find_path(UTF8PROC_INCLUDE_DIR utf8proc.h REQUIRED)
find_library(UTF8PROC_LIBRARY NAMES ${utf8proc_names} REQUIRED)
add_library(arcflow_utf8proc INTERFACE)
target_include_directories(arcflow_utf8proc SYSTEM INTERFACE ${UTF8PROC_INCLUDE_DIR})
target_link_libraries(arcflow_utf8proc INTERFACE ${UTF8PROC_LIBRARY})
if(UTF8PROC_LIBRARY MATCHES "\\.a$")
  target_compile_definitions(arcflow_utf8proc INTERFACE UTF8PROC_STATIC)
endif()

if(ARCFLOW_BUILD_TESTS)
  find_path(DOCTEST_INCLUDE_DIR doctest/doctest.h REQUIRED)
  add_library(arcflow_doctest INTERFACE)
  target_include_directories(arcflow_doctest SYSTEM INTERFACE ${DOCTEST_INCLUDE_DIR})
endif()
