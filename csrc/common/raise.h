// Errors of a wrong argument.
#pragma once

#include <sstream>
#include <stdexcept>

// Raises ValueError in Python, as the checks there do; from torch 2.15 on the boundary makes it a RuntimeError.
#define SNNET_CHECK(condition, ...) \
  if (!(condition)) snnet::raise(__VA_ARGS__)

namespace snnet {

template <class... Parts>
[[noreturn]] void raise(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace snnet
