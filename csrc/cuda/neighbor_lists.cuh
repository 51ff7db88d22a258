// Building neighbour lists from products by tiles: device code.
#pragma once

#include "list_tables.cuh"

namespace snnet {

constexpr int kTakeThreads = 256;
constexpr int kTakenAtOnce = 2048;  // keys that are looked at before a list takes the largest of them

// Leaves the largest of a list and of taken[0, count) in the list; what is left out raises the floor.
__device__ __forceinline__ void take_keys(const NeighborLists& lists, int64_t i, const Key* taken, int count,
                                          const BlockGroup<kTakeThreads>& group) {
  int32_t* columns = lists.columns_of(i);
  float* values = lists.values_of(i);
  const int32_t listed = lists.counts[i];
  Key bar = 0;
  if (listed + count > lists.capacity) {
    bar = bar_of_largest(group, lists.capacity, [&](auto&& show) {
      for (int p = group.thread; p < listed; p += kTakeThreads) show(selection_key(values[p], columns[p]));
      for (int e = group.thread; e < count; e += kTakeThreads) show(taken[e]);
    });
  }
  float floor = lists.floors[i];
  int kept = 0;
  const auto keep = [&](int size, auto&& key_of) {
    for (int first = 0; first < size; first += kTakeThreads) {
      const int p = first + group.thread;
      const Key key = p < size ? key_of(p) : 0;
      const bool stays = key != 0 && key >= bar;
      if (key != 0 && !stays && value_of_key(key) > floor) floor = value_of_key(key);
      int total = 0;
      const int place = kept + group.place(stays, total);  // its barriers: all have been read
      if (stays) {
        columns[place] = column_of_key(key);
        values[place] = value_of_key(key);
      }
      kept += total;
    }
  };
  keep(listed, [&](int p) { return Key{selection_key(values[p], columns[p])}; });
  keep(count, [&](int p) { return taken[p]; });
  floor = group.maximum(floor);
  if (group.thread == 0) {
    lists.floors[i] = floor;
    lists.counts[i] = kept;
  }
  __syncthreads();
}

// A block a row of products [rows, count] of the rows from first_row on with the columns from first_column on, each
// of which the lists meet once. Bandwidth bound but for the first tiles: most entries are at or below the floor.
static __global__ void __launch_bounds__(kTakeThreads)
    take_products_kernel(const float* products, int64_t count, int64_t first_row, int32_t first_column,
                         NeighborLists lists) {
  __shared__ Key taken[kTakenAtOnce];
  __shared__ int32_t parts[kTakeThreads / kWarp];
  const BlockGroup<kTakeThreads> group(parts);
  const int64_t i = first_row + blockIdx.x;
  const float* row = products + blockIdx.x * count;
  int found = 0;
  for (int64_t first = 0; first < count; first += kTakeThreads) {
    const int64_t c = first + group.thread;
    const float floor = lists.floors[i];
    // What equals the floor of a full row may have a lower column than what is listed with the same value.
    const bool is_full = lists.counts[i] == lists.capacity;
    const bool promising = c < count && (is_full ? row[c] >= floor : row[c] > floor);
    int total = 0;
    const int place = found + group.place(promising, total);
    if (promising) taken[place] = selection_key(row[c], first_column + static_cast<int32_t>(c));
    found += total;
    if (found + kTakeThreads <= kTakenAtOnce && first + kTakeThreads < count) continue;
    __syncthreads();
    if (found > 0) take_keys(lists, i, taken, found, group);
    found = 0;
  }
}

}  // namespace snnet
