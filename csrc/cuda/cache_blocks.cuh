// The marked blocks of the similarity cache.
#pragma once

#include "../common/cache_blocks.h"
#include "device.cuh"

namespace snnet {

static_assert(kBlockColumns == kWarp, "a lane a column");

struct CacheBlocks {
  unsigned* bits;  // [n, words], or null: nothing is known
  int64_t words;   // of a row, a multiple of 4
  float floor;

  // Whether everything above `bar` lies in marked blocks.
  __device__ __forceinline__ bool hold_all_above(float bar) const { return bits != nullptr && bar >= floor; }

  __device__ __forceinline__ unsigned* row(int64_t i) const { return bits + i * words; }

  // Marks the block of column l in row i.
  __device__ __forceinline__ void mark(int64_t i, int64_t l) const {
    const int64_t block = l / kBlockColumns;
    atomicOr(row(i) + block / kWarp, 1u << block % kWarp);
  }
};

}  // namespace snnet
