#include <gtest/gtest.h>

#include <string>

#include "fastsam2/bundle.hpp"
#include "fastsam2/errors.hpp"

namespace fastsam2::testing {
namespace {

std::string reason(const std::string& text) {
  try {
    parse_manifest(text);
  } catch (const BundleError& error) {
    return error.what();
  }
  return "";
}

TEST(Manifest, SaysWhatIsWrong) {
  EXPECT_NE(reason("{").find("readable JSON"), std::string::npos);
  EXPECT_NE(reason("[]").find("an integer manifest_version"), std::string::npos);
  EXPECT_NE(reason(R"({"manifest_version": 999})").find("Upgrade fastsam2"), std::string::npos);
  EXPECT_NE(reason(R"({"manifest_version": 1})").find("Export again"), std::string::npos);
  EXPECT_NE(reason(R"({"manifest_version": 2})").find("fastsam2_version"), std::string::npos);
  EXPECT_NE(reason("\xff\xfe").find("readable JSON"), std::string::npos);
  EXPECT_NE(reason(std::string(100000, '[')).find("expected"), std::string::npos);
}

// Each of these would be written into a message; doing so once used the stack up.
TEST(Manifest, DeepValuesAreRefusedInWords) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  EXPECT_NE(reason(R"({"manifest_version": 2, "fastsam2_version": "0", "precision": )" + deep + "}").find("got array"),
            std::string::npos);
  EXPECT_NE(
      reason(R"({"manifest_version": 2, "fastsam2_version": "0", "model": {"name": "x", "image_size": )" + deep + "}}")
          .find("an integer >= 1 as model.image_size, got array"),
      std::string::npos);
}

}  // namespace
}  // namespace fastsam2::testing
