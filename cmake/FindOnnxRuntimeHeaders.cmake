# ONNX Runtime's headers. The library itself is never linked: the host opens it by path when a bundle is loaded.
# Defines the target OnnxRuntime::Headers, and OnnxRuntimeHeaders_VERSION: the ORT_API_VERSION they declare.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
          PATH_SUFFIXES onnxruntime onnxruntime/core/session
          DOC "The folder of onnxruntime_c_api.h")
if(ONNXRUNTIME_INCLUDE_DIR)
  file(STRINGS ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h line REGEX "#define ORT_API_VERSION [0-9]+")
  string(REGEX REPLACE "[^0-9]" "" OnnxRuntimeHeaders_VERSION "${line}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntimeHeaders REQUIRED_VARS ONNXRUNTIME_INCLUDE_DIR
                                  VERSION_VAR OnnxRuntimeHeaders_VERSION)
if(OnnxRuntimeHeaders_FOUND AND NOT TARGET OnnxRuntime::Headers)
  add_library(OnnxRuntime::Headers INTERFACE IMPORTED)
  set_target_properties(OnnxRuntime::Headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
endif()
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR)
