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

}  // namespace
}  // namespace fastsam2::testing
