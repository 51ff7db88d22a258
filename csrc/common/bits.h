// Label bits: column j of a row is bit j % 8 of byte j / 8; rows are whole 16-byte words, bits past n are 0.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SNNET_HOST_DEVICE __host__ __device__
#else
#define SNNET_HOST_DEVICE
#endif

namespace snnet {

SNNET_HOST_DEVICE inline int64_t label_bytes(int64_t n) { return 16 * ((n + 127) / 128); }

// Byte `byte` of the packed form of one row of n flags.
SNNET_HOST_DEVICE inline uint8_t pack_byte(const bool* flags, int64_t n, int64_t byte) {
  const int64_t first = 8 * byte;
  const int64_t count = first >= n ? 0 : (n - first < 8 ? n - first : 8);
  unsigned packed = 0;
  for (int64_t bit = 0; bit < count; ++bit) packed |= static_cast<unsigned>(flags[first + bit]) << bit;
  return static_cast<uint8_t>(packed);
}

SNNET_HOST_DEVICE inline bool bit_at(const uint8_t* row, int64_t column) {
  return (row[column / 8] >> (column % 8)) & 1;
}

}  // namespace snnet
