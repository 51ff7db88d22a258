// What the launches of a label prediction share.
#pragma once

#include "../common/walk.h"
#include "cache_blocks.cuh"
#include "rows.cuh"

namespace snnet {

constexpr int kListed = 256;
constexpr int kSelectThreads = 1024;
constexpr int kCountThreads = 256;
// Blocks of a multiprocessor; a candidate is counted by kGroup threads, a block or a warp.
template <int kGroup>
constexpr int kCountBlocks = kGroup == kWarp ? 4 : 6;
constexpr int kDecideThreads = 512;
constexpr int kRowLoads = 4;     // 16-byte loads of a thread in flight
constexpr int kBlockLoads = 16;  // the same of 4 bytes, a marked block each

struct PredictionOptions {
  float threshold;
  int64_t min_rank;
  bool strict;
};

// What one sample asks of the count: the last `items` of its listed candidates, else `items` words of its label row.
struct Plan {
  int candidates, items;
};

// Between the launches. Keys fall; of a sample with more candidates than fit only the first two are set.
struct Scratch {
  Key* keys;     // [B, kListed]
  Key* barrier;  // [B] the largest key of an inconsistent candidate, 0 while there is none
  Plan* plans;   // [B]
};

// The label rows of a batch as 32-bit words [B, words]; words is a multiple of 4.
struct LabelRows {
  unsigned* bits;
  int64_t words;

  __device__ __forceinline__ unsigned* row(int64_t b) const { return bits + b * words; }
};

}  // namespace snnet
