// Nearest neighbours from neighbour lists: device code of two launches. The first takes what the lists tell. The second
// multiplies the other rows, and the block that ends a row selects its neighbours. The number of these rows is known only
// on the device: the time depends on it, the launch does not.
#pragma once

#include "list_tables.cuh"
#include "neighbors.cuh"

namespace snnet {

struct Neighbors {
  int64_t k;
  int64_t* index;     // [B, k]
  float* similarity;  // [B, k]
};

struct NeighborScratch {
  int32_t* untold;  // [B] whether the list of the sample does not tell
  Key* finished;    // [rows] slices of a row of products
  float* products;  // [rows, n]
  int64_t rows;     // that are multiplied at once, at most B
  int64_t* made;
};

// A block a row: its k nearest others if its list tells; what is not listed may be as large as the floor, and come first
// by its column. Latency bound.
static __global__ void __launch_bounds__(kNeighborThreads)
    nearest_lists_kernel(ListBatch batch, NeighborScratch scratch, Neighbors nearest) {
  __shared__ Key shared_keys[kSharedNeighbors];
  __shared__ Key parts[kNeighborThreads / kWarp];
  __shared__ int32_t counts[kNeighborThreads / kWarp];
  __shared__ int found;
  const BlockGroup<kNeighborThreads> group(counts);
  const int64_t b = blockIdx.x;
  const int own = batch.own(b);
  const int32_t count = batch.lists.within(batch.lists.counts[own]);
  const int32_t* columns = batch.lists.columns_of(own);
  const float* values = batch.lists.values_of(own);
  const int64_t k = nearest.k;
  int64_t* neighbors = nearest.index + b * k;
  float* similarity = nearest.similarity + b * k;
  const auto visit = [&](auto&& show) {
    for (int32_t p = group.thread; p < count; p += kNeighborThreads) {
      if (columns[p] != own) show(selection_key(values[p], columns[p]));
    }
  };
  int others = 0;
  visit([&](Key) { ++others; });
  others = group.sum(others);
  const auto wanted = static_cast<int>(k < others ? k : others);
  Key* keys = wanted <= kSharedNeighbors ? shared_keys : reinterpret_cast<Key*>(neighbors);
  if (group.thread == 0) found = 0;
  Key bar = 0;
  if (wanted == 1) {
    visit([&](Key key) { bar = key > bar ? key : bar; });
    bar = block_largest<kNeighborThreads>(bar, parts);
  } else if (wanted < others) {
    bar = bar_of_largest(group, wanted, visit);
  }
  __syncthreads();
  visit([&](Key key) {
    if (key >= bar) keys[atomicAdd(&found, 1)] = key;
  });
  __syncthreads();
  sort_keys(keys, wanted);
  const float floor = batch.lists.floors[own];
  const bool is_told = floor == -__builtin_inff() || (wanted == k && value_of_key(keys[k - 1]) > floor);
  __syncthreads();
  for (int64_t place = group.thread; place < k; place += kNeighborThreads) {
    const Key key = place < wanted ? keys[place] : 0;
    neighbors[place] = key != 0 ? column_of_key(key) : -1;
    similarity[place] = key != 0 ? value_of_key(key) : -__builtin_inff();
  }
  if (group.thread != 0) return;
  scratch.untold[b] = !is_told;
  if (b < scratch.rows) scratch.finished[b] = 0;
}

// The products of a word of the row of image i, by a warp.
__device__ __forceinline__ void multiply_word(const ListBatch& batch, int64_t i, int64_t word, float* row) {
  const int64_t column = kWarp * word + threadIdx.x % kWarp;
  const float value = products_of_word(batch, i, word);
  if (column < batch.lists.n) row[column] = value;
}

// A block a slice of a row whose list did not tell, a warp a word. `products` has room for `scratch.rows` rows. The block
// that finishes a row selects its neighbours. It then computes, alone, the later rows that had no room, one after the
// other in the same place.
static __global__ void __launch_bounds__(kNeighborThreads)
    nearest_multiply_kernel(ListBatch batch, NeighborScratch scratch, Neighbors nearest) {
  __shared__ NeighborShared shared;
  __shared__ ItemShared<kNeighborThreads> item;
  constexpr int kWarps = kNeighborThreads / kWarp;
  const int64_t n = batch.lists.n, words = (n + kWarp - 1) / kWarp, slices = (words + kWarps - 1) / kWarps;
  const int64_t warp = threadIdx.x / kWarp;
  const int64_t items = for_each_item<kNeighborThreads, kNeighborThreads>(
      batch.size, item, [&](int64_t b) { return scratch.untold[b] ? slices : 0; },
      [&](int64_t b, int64_t slice, int64_t number) {
        const int64_t place = number / slices;
        if (place >= scratch.rows) return;
        float* row = scratch.products + place * n;
        if (slice * kWarps + warp < words) multiply_word(batch, batch.own(b), slice * kWarps + warp, row);
        if (!is_last_block(scratch.finished + place, static_cast<Key>(slices))) return;
        int64_t others = 0;  // untold samples after b
#pragma unroll 1
        for (int64_t own = b; own < batch.size; ++own) {
          if (own != b && (!scratch.untold[own] || ++others % scratch.rows != 0)) continue;
          const int i = batch.own(own);
#pragma unroll 1
          for (int64_t word = own == b ? words : warp; word < words; word += kWarps) multiply_word(batch, i, word, row);
          __syncthreads();
          nearest_of_row(VectorRow(row, static_cast<int>(n)), i, nearest.k, nearest.index + own * nearest.k,
                         nearest.similarity + own * nearest.k, shared);
          __syncthreads();  // the row has been read
        }
      });
  if (blockIdx.x == 0 && threadIdx.x == 0) *scratch.made = items / slices;
}

}  // namespace snnet
