// The marked blocks of the similarity cache.
#pragma once

#include <cmath>
#include <optional>

#include "../common/cache_blocks.h"
#include "checks.h"

namespace snnet {

struct CacheBlocks {
  uint8_t* bits = nullptr;  // [n, row_bytes], or null: nothing is known
  int64_t row_bytes = 0;
  float floor = 0.0f;

  CacheBlocks() = default;
  CacheBlocks(const std::optional<Tensor>& block_bits, double block_floor, int64_t n) {
    if (!block_bits) return;
    row_bytes = block_row_bytes(n);
    check_storage(*block_bits, "block_bits", ScalarType::Byte, n, row_bytes);
    SNNET_CHECK(std::isfinite(block_floor), "block_floor must be finite, got ", block_floor);
    bits = block_bits->mutable_data_ptr<uint8_t>();
    floor = static_cast<float>(block_floor);
  }

  // Whether everything above `bar` lies in marked blocks.
  bool hold_all_above(float bar) const { return bits != nullptr && bar >= floor; }
  uint8_t* row(int64_t i) const { return bits + i * row_bytes; }
};

}  // namespace snnet
