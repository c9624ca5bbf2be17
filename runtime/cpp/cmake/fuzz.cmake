# libFuzzer targets: cmake -DCMAKE_CXX_COMPILER=clang++ -DFASTSAM2_SANITIZE=address,undefined -DFASTSAM2_BUILD_FUZZERS=ON
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "fuzzing needs Clang, got ${CMAKE_CXX_COMPILER_ID}: set -DCMAKE_CXX_COMPILER=clang++")
endif()
# Coverage of everything built here; the library has to be built with it to guide the fuzzer.
target_compile_options(fastsam2_options INTERFACE -fsanitize=fuzzer-no-link)
foreach(name manifest c_interface)
  add_executable(fastsam2_fuzz_${name} ${PROJECT_SOURCE_DIR}/tests/cpp/fuzz/${name}_fuzzer.cpp)
  target_compile_features(fastsam2_fuzz_${name} PRIVATE cxx_std_20)
  target_compile_options(fastsam2_fuzz_${name} PRIVATE -Wconversion -Wshadow)
  target_link_libraries(fastsam2_fuzz_${name} PRIVATE fastsam2_runtime fastsam2_options nlohmann_json::nlohmann_json)
  target_link_options(fastsam2_fuzz_${name} PRIVATE -fsanitize=fuzzer)
endforeach()
