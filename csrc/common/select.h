// One order for every selection: falling similarity, ties by lower column.
#pragma once

#include <cstdint>
#include <cstring>

#include "bits.h"

namespace snnet {

// An entry of a similarity row.
struct Entry {
  float value;
  int32_t column;
};

// Integers that order as the numbers do: -0 equals +0. Without a branch, so that loops over it are vectorised.
SNNET_INLINE uint32_t ordered_number(float value) {
  value += 0.0f;  // -0 becomes +0
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

// Integers that order as the similarities do: NaN is above everything (as in torch.topk).
SNNET_INLINE uint32_t ordered_bits(float value) { return value != value ? 0xffffffffu : ordered_number(value); }

// The key of an entry whose value has these ordered_bits.
SNNET_INLINE uint64_t key_at(uint32_t ordered, int32_t column) {
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(column));
}

// The larger key comes first; no two entries of a row have the same.
SNNET_INLINE uint64_t selection_key(float value, int32_t column) { return key_at(ordered_bits(value), column); }

SNNET_INLINE int32_t column_of_key(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// The value of ordered_bits (+0 for -0, some NaN for NaN).
SNNET_INLINE float value_of_bits(uint32_t bits) {
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SNNET_INLINE float value_of_key(uint64_t key) { return value_of_bits(static_cast<uint32_t>(key >> 32)); }

SNNET_INLINE bool comes_before(const Entry& a, const Entry& b) {
  return selection_key(a.value, a.column) > selection_key(b.value, b.column);
}

}  // namespace snnet
