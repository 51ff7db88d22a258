// Label bits: column j of a row is bit j % 8 of byte j / 8; rows are whole 16-byte words, bits past n are 0.
#pragma once

#include <cstdint>
#include <cstring>

// Always inlined: a copy of its own, compiled for one instruction set, could be linked into code for another.
#if defined(__CUDACC__)
#define SNNET_INLINE __host__ __device__ __forceinline__
#else
#define SNNET_INLINE inline __attribute__((always_inline))
#endif

namespace snnet {

SNNET_INLINE int64_t label_bytes(int64_t n) { return 16 * ((n + 127) / 128); }

// Byte `byte` of the packed form of one row of n flags, bytes of which any but 0 is true.
SNNET_INLINE uint8_t pack_byte(const uint8_t* flags, int64_t n, int64_t byte) {
  const int64_t first = 8 * byte;
  const int64_t count = first >= n ? 0 : (n - first < 8 ? n - first : 8);
  unsigned packed = 0;
  for (int64_t bit = 0; bit < count; ++bit) packed |= static_cast<unsigned>(flags[first + bit] != 0) << bit;
  return static_cast<uint8_t>(packed);
}

SNNET_INLINE bool bit_at(const uint8_t* row, int64_t column) { return (row[column / 8] >> (column % 8)) & 1; }

SNNET_INLINE void set_bit(uint8_t* row, int64_t column) {
  row[column / 8] = static_cast<uint8_t>(row[column / 8] | (1u << (column % 8)));
}

SNNET_INLINE void flip_bit(uint8_t* row, int64_t column) {
  row[column / 8] = static_cast<uint8_t>(row[column / 8] ^ (1u << (column % 8)));
}

// 64 columns of a row as an integer whose bit i is column 64 * word + i, on any byte order.
SNNET_INLINE uint64_t label_word(const uint8_t* row, int64_t word) {
  uint64_t bits;
  memcpy(&bits, row + 8 * word, sizeof bits);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  bits = __builtin_bswap64(bits);
#endif
  return bits;
}

// The columns of word `word` that exist: a mask for label_word, so that bits past n are never followed.
SNNET_INLINE uint64_t columns_of_word(int64_t word, int64_t n) {
  const int64_t left = n - 64 * word;
  return left <= 0 ? 0 : left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
}

SNNET_INLINE int lowest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

SNNET_INLINE int count_bits(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

}  // namespace snnet
