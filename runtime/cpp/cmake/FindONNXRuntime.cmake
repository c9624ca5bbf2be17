# ONNX Runtime's C interface, as the target ONNXRuntime::ONNXRuntime. Looked for, in this order:
#   ONNXRUNTIME_INCLUDE_DIR (of onnxruntime_c_api.h) and ONNXRUNTIME_LIBRARY (a file);
#   ONNXRUNTIME_ROOT, a variable of CMake or of the environment: an unpacked release archive, with include and lib;
#   pkg-config's libonnxruntime, CMAKE_PREFIX_PATH and the system's folders;
#   the CMake package onnxruntime.
# The header is needed with COMPONENTS headers only: a program that links an installed fastsam2 does without.
if(NOT ONNXRUNTIME_ROOT)
  set(ONNXRUNTIME_ROOT "$ENV{ONNXRUNTIME_ROOT}")
endif()
find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(PC_ONNXRUNTIME QUIET libonnxruntime)
endif()
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${ONNXRUNTIME_ROOT} ${PC_ONNXRUNTIME_INCLUDE_DIRS}
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime onnxruntime/core/session
  DOC "Folder of onnxruntime_c_api.h")
find_library(ONNXRUNTIME_LIBRARY onnxruntime
  HINTS ${ONNXRUNTIME_ROOT} ${PC_ONNXRUNTIME_LIBRARY_DIRS} PATH_SUFFIXES lib lib64
  DOC "libonnxruntime")
if(NOT ONNXRUNTIME_INCLUDE_DIR AND NOT ONNXRUNTIME_LIBRARY)
  find_package(onnxruntime CONFIG QUIET)
endif()

set(ONNXRUNTIME_MISSING "set ONNXRUNTIME_ROOT to an unpacked release archive of ONNX Runtime, or both "
  "ONNXRUNTIME_INCLUDE_DIR (of onnxruntime_c_api.h) and ONNXRUNTIME_LIBRARY")
list(JOIN ONNXRUNTIME_MISSING "" ONNXRUNTIME_MISSING)
set(_usable ${ONNXRUNTIME_LIBRARY})
# Python's wheel holds the library under its full version alone; programs look for it by the first number.
if(ONNXRUNTIME_LIBRARY MATCHES "^(.*/libonnxruntime\\.so\\.[0-9]+)\\.[0-9.]+$")
  if(NOT EXISTS "${CMAKE_MATCH_1}")
    set(_usable)
    set(ONNXRUNTIME_MISSING "programs will look for ${CMAKE_MATCH_1}, which is not there: make a link of that name to ${ONNXRUNTIME_LIBRARY}")
  endif()
endif()

set(_needed _usable)
if(TARGET onnxruntime::onnxruntime)
  set(_needed onnxruntime_DIR)
elseif("headers" IN_LIST ONNXRuntime_FIND_COMPONENTS)
  list(APPEND _needed ONNXRUNTIME_INCLUDE_DIR)
endif()
set(ONNXRuntime_headers_FOUND TRUE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ONNXRuntime REQUIRED_VARS ${_needed} HANDLE_COMPONENTS REASON_FAILURE_MESSAGE "${ONNXRUNTIME_MISSING}")
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY)

if(ONNXRuntime_FOUND AND NOT TARGET ONNXRuntime::ONNXRuntime)
  if(TARGET onnxruntime::onnxruntime)
    add_library(ONNXRuntime::ONNXRuntime INTERFACE IMPORTED)
    set_target_properties(ONNXRuntime::ONNXRuntime PROPERTIES INTERFACE_LINK_LIBRARIES onnxruntime::onnxruntime)
  else()
    # Of shared libraries CMake tells the linker of programs where they are, although only fastsam2 uses them.
    set(_kind SHARED)
    if(ONNXRUNTIME_LIBRARY MATCHES "\\.a$")
      set(_kind STATIC)
    endif()
    add_library(ONNXRuntime::ONNXRuntime ${_kind} IMPORTED)
    set_target_properties(ONNXRuntime::ONNXRuntime PROPERTIES IMPORTED_LOCATION "${ONNXRUNTIME_LIBRARY}")
    if(ONNXRUNTIME_INCLUDE_DIR)
      set_target_properties(ONNXRuntime::ONNXRuntime PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
    endif()
  endif()
endif()
