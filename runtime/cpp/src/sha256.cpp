#include "sha256.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <vector>

namespace fastsam2 {

namespace {

constexpr std::size_t kBlock = 64;  // bytes

// Fractional parts of the cube roots of the first 64 primes.
constexpr std::array<std::uint32_t, 64> kRound{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

class Sha256 {
 public:
  void block(std::span<const std::uint8_t, kBlock> bytes) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = static_cast<std::uint32_t>(bytes[4 * i]) << 24 | static_cast<std::uint32_t>(bytes[4 * i + 1]) << 16 |
             static_cast<std::uint32_t>(bytes[4 * i + 2]) << 8 | bytes[4 * i + 3];
    }
    for (std::size_t i = 16; i < w.size(); ++i) {
      const std::uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = hash_;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const std::uint32_t one =
          h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const std::uint32_t two = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + one;
      d = c;
      c = b;
      b = a;
      a = one + two;
    }
    const std::array<std::uint32_t, 8> sum{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < hash_.size(); ++i) {
      hash_[i] += sum[i];
    }
  }

  [[nodiscard]] std::string hex() const {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (const std::uint32_t word : hash_) {
      for (int shift = 28; shift >= 0; shift -= 4) {
        text += kDigits[word >> shift & 15U];
      }
    }
    return text;
  }

 private:
  // Fractional parts of the square roots of the first 8 primes.
  std::array<std::uint32_t, 8> hash_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
};

}  // namespace

std::string sha256_of(const std::filesystem::path& file) {
  constexpr std::size_t kChunk = kBlock << 14;
  std::ifstream stream(file, std::ios::binary);
  stream.exceptions(std::ios::badbit);
  if (!stream) {
    throw std::ios_base::failure("cannot open " + file.string());
  }
  Sha256 digest;
  std::vector<std::uint8_t> bytes(kChunk);
  std::uint64_t total = 0;
  std::size_t left = 0;
  do {
    stream.read(reinterpret_cast<char*>(bytes.data()), kChunk);
    const auto count = static_cast<std::size_t>(stream.gcount());
    total += count;
    for (left = 0; left + kBlock <= count; left += kBlock) {
      digest.block(std::span(bytes).subspan(left).first<kBlock>());
    }
    bytes.resize(count);
    bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(left));
    if (stream) {
      bytes.resize(kChunk);
    }
  } while (stream);
  bytes.push_back(0x80);
  while (bytes.size() % kBlock != kBlock - sizeof(total)) {
    bytes.push_back(0);
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<std::uint8_t>(total * 8 >> shift));
  }
  for (std::size_t at = 0; at < bytes.size(); at += kBlock) {
    digest.block(std::span(bytes).subspan(at).first<kBlock>());
  }
  return digest.hex();
}

}  // namespace fastsam2
