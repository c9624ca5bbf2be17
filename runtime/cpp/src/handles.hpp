// Numbers that stand for objects across the C interface.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "fastsam2/errors.hpp"

namespace fastsam2 {

// A handle that is not open.
class HandleError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void refuse_handle(std::uint64_t id) {
  throw HandleError(
      expected("an open handle", std::to_string(id), "Use a handle until it is closed, and not after that"));
}

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

  // The object, which has no handle any more; it is destroyed outside of the lock. Throws HandleError if there is none.
  std::shared_ptr<Object> close(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    const auto found = find(id);
    std::shared_ptr<Object> last = std::move(found->second);
    objects_.erase(found);
    return last;
  }

 private:
  auto find(std::uint64_t id) {
    const auto found = objects_.find(id);
    if (found == objects_.end()) {
      refuse_handle(id);
    }
    return found;
  }

  std::mutex mutex_;
  std::map<std::uint64_t, std::shared_ptr<Object>> objects_;
  std::uint64_t newest_ = 0;
};

}  // namespace fastsam2
