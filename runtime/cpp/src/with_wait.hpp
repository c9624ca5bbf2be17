#pragma once

#include <exception>

#include "fastsam2/backend.hpp"

namespace fastsam2 {

// Runs a call that ends with a wait for the device. One that fails before leaves copies behind whose memory is not used
// again until somebody waits.
template <typename Call>
auto with_wait(Device& device, Call call) {
  try {
    return call();
  } catch (...) {
    try {
      device.fetch({});
    } catch (const std::exception&) {  // what failed first is what is told
    }
    throw;
  }
}

}  // namespace fastsam2
