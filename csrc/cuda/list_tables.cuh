// Neighbour lists on a GPU: their tables, and what a batch reads of them.
#pragma once

#include "device.cuh"

namespace snnet {

// A row i has counts[i] entries in its first places, in any order; every column above floors[i] is among them. Behind
// them the columns are -1 and the values -inf.
struct NeighborLists {
  int32_t* columns;  // [n, capacity]
  float* values;     // [n, capacity]
  int32_t* counts;   // [n]
  float* floors;     // [n]
  int64_t n;
  int32_t capacity;

  __device__ __forceinline__ int32_t* columns_of(int64_t i) const { return columns + i * capacity; }
  __device__ __forceinline__ float* values_of(int64_t i) const { return values + i * capacity; }
  // Counts that this library has not written lead outside of no row.
  __device__ __forceinline__ int32_t within(int32_t count) const {
    return count < 0 ? 0 : count < capacity ? count : capacity;
  }
};

// The places of a column among the first `count` of some rows, or -1, for all lanes of a warp: the rows are looked
// through side by side, since it is latency that bounds this.
template <int kRows>
__device__ __forceinline__ void find_column(const int32_t* const (&rows)[kRows], int32_t count, int32_t column,
                                            int32_t (&places)[kRows]) {
  constexpr int kLoads = 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int r = 0; r < kRows; ++r) places[r] = -1;
#pragma unroll 1
  for (int32_t first = 0; first < count; first += kLoads * kWarp) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        const int32_t place = first + k * kWarp + lane;
        if (place < count && rows[r][place] == column) places[r] = place;
      }
    }
    bool found = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) found &= __any_sync(kAllLanes, places[r] >= 0) != 0;
    if (found) break;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) places[r] = warp_maximum(places[r]);
}

__device__ __forceinline__ int32_t find_column(const int32_t* columns, int32_t count, int32_t column) {
  const int32_t* const rows[1] = {columns};
  int32_t places[1];
  find_column(rows, count, column, places);
  return places[0];
}

// ---- Reading, for a batch.

struct ListBatch {
  const int64_t* index;
  const float* query_rows;  // [B, n] in place of the rows of the index, or null
  const float* memory;      // [n, d]
  int64_t d, size;
  NeighborLists lists;

  // An index out of range reads some row.
  __device__ __forceinline__ int own(int64_t b) const {
    const int64_t i = index[b];
    return static_cast<int>(i < 0 ? 0 : i < lists.n ? i : lists.n - 1);
  }
  __device__ __forceinline__ const float* memory_row(int64_t i) const { return memory + i * d; }
  // A similarity of sample b, for all lanes of a warp.
  __device__ __forceinline__ float similarity(int64_t b, int64_t column) const {
    if (query_rows != nullptr) return query_rows[b * lists.n + column];
    return warp_product(memory_row(own(b)), memory_row(column), d);
  }
};

// The similarity of image i to the 32 columns of a word, a lane a column; NaN past n.
__device__ __forceinline__ float products_of_word(const ListBatch& batch, int64_t i, int64_t word) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float own = __builtin_nanf("");
#pragma unroll 1
  for (int bit = 0; bit < kWarp && kWarp * word + bit < batch.lists.n; ++bit) {
    const float value = warp_product(batch.memory_row(i), batch.memory_row(kWarp * word + bit), batch.d);
    if (lane == bit) own = value;
  }
  return own;
}

}  // namespace snnet
