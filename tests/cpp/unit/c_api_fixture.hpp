// What tests of the C interface share.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fastsam2/fastsam2.h"

namespace fastsam2::testing {

inline constexpr std::uint32_t kHeight = 48;
inline constexpr std::uint32_t kWidth = 80;

// Fills outputs with a wave; fails where `user` says so.
inline int32_t run_wave(void* user, const char* role, const fastsam2_tensor*, uint32_t, const fastsam2_tensor* outputs,
                        uint32_t output_count, char* message, uint32_t message_bytes) {
  if (user != nullptr && std::string(role) == static_cast<const char*>(user)) {
    std::strncpy(message, "the disc is full", message_bytes);
    return 5;
  }
  for (std::uint32_t o = 0; o < output_count; ++o) {
    auto* values = static_cast<float*>(outputs[o].data);
    for (std::uint64_t i = 0; i < outputs[o].bytes / sizeof(float); ++i) {
      values[i] = static_cast<float>(i % 7) - 2.5F;
    }
  }
  return 0;
}

// A copy of a real manifest; without the files a bundle needs, where hashes are skipped and sizes are zero.
class CApi : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* bundle = std::getenv("FASTSAM2_TEST_BUNDLE");
    if (bundle == nullptr) {
      GTEST_SKIP() << "FASTSAM2_TEST_BUNDLE names no bundle";
    }
    folder_ = bundle;
  }

  static fastsam2_bundle_options options_of(fastsam2_backend backend) {
    fastsam2_bundle_options options{};
    options.struct_size = sizeof options;
    options.abi_version = FASTSAM2_ABI_VERSION;
    options.backend = backend;
    return options;
  }

  fastsam2_bundle open_bundle(const char* failing = nullptr) {
    fastsam2_bundle_options options = options_of(FASTSAM2_BACKEND_CALLBACK);
    options.run = run_wave;
    options.user = const_cast<char*>(failing);
    options.skip_hashes = 1;
    fastsam2_bundle bundle{};
    EXPECT_EQ(fastsam2_bundle_open(folder_.c_str(), &options, &bundle), FASTSAM2_OK) << fastsam2_last_error();
    return bundle;
  }

  fastsam2_image frame() {
    fastsam2_image image{};
    image.struct_size = sizeof image;
    image.height = kHeight;
    image.width = kWidth;
    image.pixels = pixels_.data();
    image.pixel_bytes = pixels_.size();
    return image;
  }

  static fastsam2_prompt box_prompt() {
    static constexpr float kBox[] = {10, 10, 40, 30};
    fastsam2_prompt prompt{};
    prompt.struct_size = sizeof prompt;
    prompt.box = kBox;
    return prompt;
  }

  std::string folder_;
  std::vector<std::uint8_t> pixels_ = std::vector<std::uint8_t>(kHeight * kWidth * 3, 90);
};

}  // namespace fastsam2::testing
