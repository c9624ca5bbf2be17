// numpy's SeedSequence, PCG64 and Generator.permutation for policy random, so that Python and C++ keep the same rows of
// a frame.
//
// Sources: M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms"
// (HMC-CS-2014-0905), XSL-RR 128/64; numpy's documentation of `numpy.random.SeedSequence`; the constants are part of
// those definitions.
#include <array>
#include <bit>
#include <cstddef>
#include <utility>

#include "policies.hpp"

namespace fastsam2 {

namespace {

__extension__ using Word128 = unsigned __int128;

constexpr std::size_t kPool = 4;

class SeedSequence {
 public:
  explicit SeedSequence(const std::vector<std::uint32_t>& entropy) {
    for (std::size_t i = 0; i < kPool; ++i) {
      pool_[i] = hashed(i < entropy.size() ? entropy[i] : 0);
    }
    for (std::size_t from = 0; from < kPool; ++from) {
      for (std::size_t to = 0; to < kPool; ++to) {
        if (from != to) {
          pool_[to] = mixed(pool_[to], hashed(pool_[from]));
        }
      }
    }
    for (std::size_t from = kPool; from < entropy.size(); ++from) {
      for (std::uint32_t& word : pool_) {
        word = mixed(word, hashed(entropy[from]));
      }
    }
  }

  [[nodiscard]] std::array<std::uint64_t, 4> state() const {
    std::uint32_t hash = 0x8b51f9dd;
    std::array<std::uint64_t, 4> words{};
    for (std::size_t i = 0; i < 2 * words.size(); ++i) {
      std::uint32_t value = pool_[i % kPool] ^ hash;
      hash *= 0x58f38ded;
      value *= hash;
      value ^= value >> 16;
      words[i / 2] |= static_cast<std::uint64_t>(value) << (32 * (i % 2));
    }
    return words;
  }

 private:
  std::uint32_t hashed(std::uint32_t value) {
    value ^= hash_;
    hash_ *= 0x931e8875;
    value *= hash_;
    return value ^ (value >> 16);
  }

  static std::uint32_t mixed(std::uint32_t a, std::uint32_t b) {
    const std::uint32_t value = 0xca01f9ddU * a - 0x4973f715U * b;
    return value ^ (value >> 16);
  }

  std::array<std::uint32_t, kPool> pool_{};
  std::uint32_t hash_ = 0x43b0d7e5;
};

class Pcg64 {
 public:
  explicit Pcg64(const std::array<std::uint64_t, 4>& seed)
      : increment_((((static_cast<Word128>(seed[2]) << 64) | seed[3]) << 1) | 1U) {
    advance();
    state_ += (static_cast<Word128>(seed[0]) << 64) | seed[1];
    advance();
  }

  // An integer in 0..limit, limit < 2^32: masked and drawn again while too large.
  std::uint32_t up_to(std::uint32_t limit) {
    const std::uint32_t mask = std::bit_width(limit) == 32 ? ~0U : (1U << std::bit_width(limit)) - 1U;
    std::uint32_t value = next32() & mask;
    while (value > limit) {
      value = next32() & mask;
    }
    return value;
  }

 private:
  void advance() {
    constexpr Word128 kMultiplier = (static_cast<Word128>(0x2360ED051FC65DA4ULL) << 64) | 0x4385DF649FCCF645ULL;
    state_ = state_ * kMultiplier + increment_;
  }

  std::uint64_t next64() {
    advance();
    const auto folded = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
    return std::rotr(folded, static_cast<int>(state_ >> 122));
  }

  std::uint32_t next32() {
    if (has_half_) {
      has_half_ = false;
      return half_;
    }
    const std::uint64_t word = next64();
    has_half_ = true;
    half_ = static_cast<std::uint32_t>(word >> 32);
    return static_cast<std::uint32_t>(word);
  }

  Word128 state_ = 0;
  Word128 increment_;
  bool has_half_ = false;
  std::uint32_t half_ = 0;
};

}  // namespace

std::vector<float> random_scores(std::int64_t seed, std::int64_t object_id, std::int64_t frame, std::int64_t tokens) {
  std::vector<std::uint32_t> entropy;
  for (const std::int64_t value : {seed, object_id, frame}) {
    const auto bits = static_cast<std::uint64_t>(value);
    entropy.push_back(static_cast<std::uint32_t>(bits));
    if (bits >> 32 != 0) {
      entropy.push_back(static_cast<std::uint32_t>(bits >> 32));
    }
  }
  Pcg64 generator(SeedSequence(entropy).state());
  std::vector<float> scores(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i] = static_cast<float>(i);
  }
  for (std::size_t i = scores.size(); i-- > 1;) {
    std::swap(scores[i], scores[generator.up_to(static_cast<std::uint32_t>(i))]);
  }
  return scores;
}

}  // namespace fastsam2
