// Numbers that stand for objects across the C interface.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "fastsam2/errors.hpp"

namespace fastsam2 {

// A handle that is not open.
class HandleError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Objects by handle. A closed object lives on while a call still uses it; its number is never given again.
template <typename Object>
class Handles {
 public:
  std::uint64_t open(std::shared_ptr<Object> object) {
    const std::lock_guard lock(mutex_);
    objects_.emplace(++newest_, std::move(object));
    return newest_;
  }

  // Throws HandleError if there is none.
  std::shared_ptr<Object> at(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    return find(id)->second;
  }

  // Throws HandleError if there is none.
  void close(std::uint64_t id) {
    std::shared_ptr<Object> last;  // is destroyed outside of the lock
    const std::lock_guard lock(mutex_);
    const auto found = find(id);
    last = std::move(found->second);
    objects_.erase(found);
  }

 private:
  auto find(std::uint64_t id) {
    const auto found = objects_.find(id);
    if (found == objects_.end()) {
      throw HandleError(
          expected("an open handle", std::to_string(id), "Use a handle until it is closed, and not after that"));
    }
    return found;
  }

  std::mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Object>> objects_;
  std::uint64_t newest_ = 0;
};

}  // namespace fastsam2
