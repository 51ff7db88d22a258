// The marks of a whole similarity cache.
#pragma once

#include "cache_blocks.cuh"

namespace snnet {

constexpr int kMarkThreads = 256;

// A warp a word of marks: 32 blocks of a row. Bandwidth bound: 4 n² bytes are read.
__global__ void __launch_bounds__(kMarkThreads) mark_blocks_kernel(const float* cache, CacheBlocks blocks, int64_t n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t word = (static_cast<int64_t>(blockIdx.x) * kMarkThreads + threadIdx.x) / kWarp;
  if (word >= n * blocks.words) return;
  const float* row = cache + word / blocks.words * n;
  const int64_t first = word % blocks.words * kWarp * kBlockColumns + lane;
  unsigned marks = 0;
#pragma unroll 8
  for (int block = 0; block < kWarp; ++block) {
    const int64_t column = first + block * kBlockColumns;
    const bool high = column < n && row[column] > blocks.floor;
    marks |= static_cast<unsigned>(__ballot_sync(kAllLanes, high) != 0) << block;
  }
  if (lane == 0) blocks.bits[word] = marks;
}

}  // namespace snnet
