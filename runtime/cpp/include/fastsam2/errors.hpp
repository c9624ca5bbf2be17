// Exception families, as fastsam2/errors.py has them.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace fastsam2 {

// Everything a caller can put right: nothing was changed. What went wrong, and what to do next, is in what().
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A bundle is missing, truncated, altered, or of a version this release does not read.
class BundleError : public Error {
  using Error::Error;
};

// The asked-for backend or device is not usable on this machine, or a graph failed.
class BackendError : public Error {
  using Error::Error;
};

// A prompt, object id, frame or option value is not legal.
class PromptError : public Error {
  using Error::Error;
};

// A broken invariant inside fastsam2: please report it.
class InternalError : public std::logic_error {
  using std::logic_error::logic_error;
};

// One sentence of the house form, with its full stop.
inline std::string expected(std::string_view what, std::string_view got, std::string_view todo) {
  return std::string("expected ").append(what).append(", got ").append(got).append(". ").append(todo).append(".");
}

}  // namespace fastsam2
