// Nearest neighbours from neighbour lists: device code of three launches.
//
// The lists; products of the rows whose lists do not tell; the neighbours in those. How many there are stays on the
// device: it only takes longer the more they are.
#pragma once

#include "list_labels.cuh"
#include "neighbors.cuh"

namespace snnet {

// A block a row: its k nearest others if its list tells; what is not listed may be as large as the floor, and come first
// by its column. Latency bound.
__global__ void __launch_bounds__(kNeighborThreads)
    nearest_lists_kernel(ListBatch batch, int64_t k, int64_t* neighbors, float* similarity, int32_t* untold) {
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
  neighbors += b * k;
  similarity += b * k;
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
  if (group.thread == 0) untold[b] = !is_told;
}

// A block a slice of kLabelWarps words of a row whose list did not tell, the first `rows` of those: products [rows, n].
__global__ void __launch_bounds__(kLabelThreads)
    nearest_multiply_kernel(ListBatch batch, const int32_t* untold, float* products, int64_t rows, int64_t* made) {
  __shared__ ItemShared<kLabelThreads> shared;
  const int64_t words = (batch.lists.n + kWarp - 1) / kWarp, slices = (words + kLabelWarps - 1) / kLabelWarps;
  const int64_t items = for_each_item<kLabelThreads, kLabelThreads>(
      batch.size, shared, [&](int64_t b) { return untold[b] ? slices : 0; },
      [&](int64_t b, int64_t slice, int64_t number) {
        const int64_t word = slice * kLabelWarps + threadIdx.x / kWarp, row = number / slices;
        if (word >= words || row >= rows) return;
        const int64_t column = kWarp * word + threadIdx.x % kWarp;
        const float value = products_of_word(batch, batch.own(b), word);
        if (column < batch.lists.n) products[row * batch.lists.n + column] = value;
      });
  if (blockIdx.x == 0 && threadIdx.x == 0) *made = items / slices;
}

// A block a row of products, and for rows past those one after the other, which it multiplies itself.
__global__ void __launch_bounds__(kNeighborThreads)
    nearest_untold_kernel(ListBatch batch, const int32_t* untold, float* products, int64_t k, int64_t* neighbors,
                          float* similarity) {
  __shared__ NeighborShared shared;
  __shared__ ItemShared<kNeighborThreads> items;
  const int64_t n = batch.lists.n, words = (n + kWarp - 1) / kWarp;
  float* row = products + blockIdx.x * n;
  for_each_item<kNeighborThreads, kNeighborThreads>(
      batch.size, items, [&](int64_t b) -> int64_t { return untold[b] != 0; },
      [&](int64_t b, int64_t, int64_t number) {
        const int own = batch.own(b);
        __syncthreads();  // the row before has been read
#pragma unroll 1
        for (int64_t word = number < gridDim.x ? words : threadIdx.x / kWarp; word < words;
             word += kNeighborThreads / kWarp) {
          const int64_t column = kWarp * word + threadIdx.x % kWarp;
          const float value = products_of_word(batch, own, word);
          if (column < n) row[column] = value;
        }
        __syncthreads();
        nearest_of_row(VectorRow(row, static_cast<int>(n)), own, k, neighbors + b * k, similarity + b * k, shared);
      });
}

}  // namespace snnet
