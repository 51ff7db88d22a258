// The arguments block_bits and block_floor of an operation, checked.
#pragma once

#include <cmath>
#include <optional>

#include "cache_blocks.cuh"
#include "launch.cuh"

namespace snnet {

inline CacheBlocks checked_blocks(const Call& call, const std::optional<Tensor>& block_bits, double block_floor,
                                  int64_t n) {
  if (!block_bits) return {nullptr, 0, 0.0f};
  const int64_t width = block_row_bytes(n);
  call.check_storage(*block_bits, "block_bits", ScalarType::Byte, n, width);
  SNNET_CHECK(is_aligned(block_bits->const_data_ptr()), "block_bits must begin at a multiple of 16 bytes");
  SNNET_CHECK(std::isfinite(block_floor), "block_floor must be finite, got ", block_floor);
  return {words<unsigned>(*block_bits), width / 4, static_cast<float>(block_floor)};
}

}  // namespace snnet
