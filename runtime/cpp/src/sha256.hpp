// SHA-256 of files, as FIPS 180-4 defines it.
#pragma once

#include <filesystem>
#include <string>

namespace fastsam2 {

// Lower-case hex. Throws std::ios_base::failure if the file cannot be read.
std::string sha256_of(const std::filesystem::path& file);

}  // namespace fastsam2
