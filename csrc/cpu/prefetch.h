// Rows that are wanted soon: they are too short for the processor to see by itself where it goes on.
#pragma once

#include <cstdint>

namespace snnet {

inline void prefetch(const void* row, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t byte = 0; byte < bytes; byte += kLine) __builtin_prefetch(static_cast<const char*>(row) + byte);
}

}  // namespace snnet
