// Nearest neighbours of similarity rows at hand: device code.
#pragma once

#include "device.cuh"

namespace snnet {

constexpr int kNeighborThreads = 512;
constexpr int kNeighborLoads = 4;
constexpr int kSharedNeighbors = 1024;  // more are sorted in global memory
constexpr int kKeyDigitBits = 11;
constexpr int kKeyDigits = 1 << kKeyDigitBits;

// The smallest of the `wanted` largest keys of a row but its own, 0 < wanted < n - 1: digit by digit from the top,
// a histogram and a read of the row each, until a digit's keys are all wanted.
__device__ __forceinline__ Key smallest_wanted_key(const VectorRow& row, int own, int wanted, int* histogram,
                                                   int64_t* parts, Key* chosen) {
  constexpr int kPerThread = kKeyDigits / kNeighborThreads;
  const auto thread = static_cast<int>(threadIdx.x);
  Key prefix = 0;  // the digits known, at the bottom
  int shift = 64;
  int64_t left = wanted;
  while (shift > 0) {
    const int bits = shift < kKeyDigitBits ? shift : kKeyDigitBits, above = shift;
    shift -= bits;
    for (int d = thread; d < kKeyDigits; d += kNeighborThreads) histogram[d] = 0;
    __syncthreads();
    visit_row<kNeighborThreads, kNeighborLoads>(row, [&](const auto& values, int column) {
      int c = column;
      for (const float value : values) {
        const Key key = selection_key(value, c);
        const bool inside = above == 64 || key >> above == prefix;
        if (inside && c != own) atomicAdd(histogram + (key >> shift & ((Key{1} << bits) - 1)), 1);
        ++c;
      }
    });
    __syncthreads();
    // A thread has kPerThread digits, the first thread the largest.
    int64_t mine = 0;
    const int top = kKeyDigits - 1 - kPerThread * thread;
    for (int d = 0; d < kPerThread; ++d) mine += histogram[top - d];
    int64_t before = block_running_sum<kNeighborThreads>(mine, parts) - mine;
    if (before < left && left <= before + mine) {
      int digit = top;
      while (before + histogram[digit] < left) before += histogram[digit--];
      *chosen = prefix << bits | static_cast<Key>(digit);
      parts[kNeighborThreads / kWarp] = left - before;
      parts[kNeighborThreads / kWarp + 1] = histogram[digit];
    }
    __syncthreads();
    prefix = *chosen;
    left = parts[kNeighborThreads / kWarp];
    if (parts[kNeighborThreads / kWarp + 1] == left) break;
  }
  return prefix << shift;
}

// Sorts keys[0, count), falling: a bitonic network whose comparators all put the larger key first, so that those
// with a place past the end have nothing to do.
__device__ __forceinline__ void sort_keys(Key* keys, int count) {
  const auto thread = static_cast<int64_t>(threadIdx.x);
  auto compare = [&](int64_t low, int64_t high) {
    if (high >= count) return;
    const Key a = keys[low], b = keys[high];
    if (a >= b) return;
    keys[low] = b;
    keys[high] = a;
  };
  for (int64_t size = 2; size < 2 * static_cast<int64_t>(count); size *= 2) {
    for (int64_t i = thread; i < count; i += kNeighborThreads) {
      const int64_t mirrored = i ^ (size - 1);
      if (mirrored > i) compare(i, mirrored);
    }
    __syncthreads();
    for (int64_t stride = size / 4; stride > 0; stride /= 2) {
      for (int64_t i = thread; i < count; i += kNeighborThreads) {
        if ((i & stride) == 0) compare(i, i | stride);
      }
      __syncthreads();
    }
  }
}

struct NeighborShared {
  Key keys[kSharedNeighbors];
  int histogram[kKeyDigits];
  int64_t sums[kNeighborThreads / kWarp + 2];
  Key parts[kNeighborThreads / kWarp];
  int found;
};

// The k nearest others of a row by a block, falling; where there are fewer, index -1 and
// similarity -inf. One read of the row for k = 1, else up to seven, most from the caches.
__device__ __forceinline__ void nearest_of_row(const VectorRow& row, int own, int64_t k, int64_t* neighbors,
                                               float* similarity, NeighborShared& shared) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto wanted = static_cast<int>(k < row.n - 1 ? k : row.n - 1);
  // In global memory they are sorted where the result goes.
  Key* keys = wanted <= kSharedNeighbors ? shared.keys : reinterpret_cast<Key*>(neighbors);
  if (wanted == 1) {
    NearestOther other{own};
    visit_row<kNeighborThreads, kNeighborLoads>(
        row, [&](const auto& values, int column) { other.look(values, column); });
    const Key nearest = block_largest<kNeighborThreads>(other.key, shared.parts);
    if (thread == 0) keys[0] = nearest;
  } else if (wanted > 1) {
    const Key lowest = wanted == row.n - 1 ? 0
                                           : smallest_wanted_key(row, own, wanted, shared.histogram, shared.sums,
                                                                 shared.parts);
    if (thread == 0) shared.found = 0;
    __syncthreads();
    visit_row<kNeighborThreads, kNeighborLoads>(row, [&](const auto& values, int column) {
      int c = column;
      for (const float value : values) {
        const Key key = selection_key(value, c);
        if (key >= lowest && c != own) keys[atomicAdd(&shared.found, 1)] = key;
        ++c;
      }
    });
    __syncthreads();
    sort_keys(keys, wanted);
  }
  for (int64_t place = thread; place < k; place += kNeighborThreads) {
    const int column = place < wanted ? column_of_key(keys[place]) : -1;
    neighbors[place] = column;
    similarity[place] = column >= 0 ? row.row[column] : -__builtin_inff();
  }
}

// A block a row of similarities [B, n]. For k = 1 latency bound.
static __global__ void __launch_bounds__(kNeighborThreads)
    nearest_neighbors_kernel(const int64_t* index, const float* rows, int n, int64_t k, int64_t* neighbors,
                             float* similarity) {
  __shared__ NeighborShared shared;
  const int64_t b = blockIdx.x, i = index[b];
  const int own = static_cast<int>(i < 0 ? 0 : i < n ? i : n - 1);
  nearest_of_row(VectorRow(rows + b * n, n), own, k, neighbors + b * k, similarity + b * k, shared);
}

}  // namespace snnet
