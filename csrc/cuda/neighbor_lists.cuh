// Neighbour lists on a GPU: their tables, how the threads of a warp or of a block work on a row of them, what a batch
// reads, and building.
#pragma once

#include "device.cuh"

namespace snnet {

// A row i has counts[i] entries in its first places, in any order; every column above floors[i] is among them. Behind
// them the columns are -1 and the values -inf.
struct ListTables {
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

// Threads that work on a row together: `place` is how many before this one have the flag, of `total`.
struct WarpGroup {
  static constexpr int kSize = kWarp;
  int thread = static_cast<int>(threadIdx.x) % kWarp;

  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ int sum(int value) const { return warp_sum(value); }
  __device__ __forceinline__ float maximum(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, value, step);
      value = other > value ? other : value;
    }
    return value;
  }
  __device__ __forceinline__ int place(bool flag, int& total) const {
    const unsigned flags = __ballot_sync(kAllLanes, flag);
    total = __popc(flags);
    return __popc(flags & ((1u << thread) - 1));
  }
};

template <int kThreads>
struct BlockGroup {
  static constexpr int kSize = kThreads, kWarps = kThreads / kWarp;
  int32_t* parts;  // shared, one for each warp
  int thread = static_cast<int>(threadIdx.x);

  __device__ __forceinline__ explicit BlockGroup(int32_t* shared_parts) : parts(shared_parts) {}

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ int sum(int value) const { return block_sum(value, parts); }
  __device__ __forceinline__ float maximum(float value) const {
    value = WarpGroup{}.maximum(value);
    __syncthreads();
    if (thread % kWarp == 0) parts[thread / kWarp] = __float_as_int(value);
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      const float other = __int_as_float(parts[w]);
      value = other > value ? other : value;
    }
    return value;
  }
  __device__ __forceinline__ int place(bool flag, int& total) const {
    int own = 0;
    int before = WarpGroup{}.place(flag, own);
    __syncthreads();
    if (thread % kWarp == 0) parts[thread / kWarp] = own;
    __syncthreads();
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < thread / kWarp) before += parts[w];
      total += parts[w];
    }
    return before;
  }
};

// A bar that exactly `wanted` keys reach, of more than that which visit(show) shows, each by one thread of the group.
template <class Group, class Visit>
__device__ __forceinline__ Key bar_of_largest(const Group& group, int wanted, Visit&& visit) {
  Key bar = 0;
#pragma unroll 1
  for (int bit = 63; bit >= 0; --bit) {
    const Key higher = bar | Key{1} << bit;
    int reached = 0;
    visit([&](Key key) { reached += key >= higher; });
    reached = group.sum(reached);
    if (reached >= wanted) bar = higher;
    if (reached == wanted) break;
  }
  return bar;
}

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
  for (int r = 0; r < kRows; ++r) places[r] = __reduce_max_sync(kAllLanes, places[r]);
}

__device__ __forceinline__ int32_t find_column(const int32_t* columns, int32_t count, int32_t column) {
  const int32_t* const rows[1] = {columns};
  int32_t places[1];
  find_column(rows, count, column, places);
  return places[0];
}

// Products of a row with some others, for all lanes of a warp. That of two rows has the same bits whichever comes first
// and whatever else is multiplied beside it.
template <int kRows>
__device__ __forceinline__ void warp_products(const float* own, const float* const (&rows)[kRows], int64_t d,
                                              float (&sums)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = 0.0f;
#pragma unroll 4
  for (int64_t k = static_cast<int>(threadIdx.x) % kWarp; k < d; k += kWarp) {
    const float value = own[k];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] += value * rows[r][k];
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = warp_sum(sums[r]);
}

__device__ __forceinline__ float warp_product(const float* a, const float* b, int64_t d) {
  const float* const rows[1] = {b};
  float sums[1];
  warp_products(a, rows, d, sums);
  return sums[0];
}

// ---- Reading, for a batch.

struct ListBatch {
  const int64_t* index;
  const float* query_rows;  // [B, n] in place of the rows of the index, or null
  const float* memory;      // [n, d]
  int64_t d, size;
  ListTables lists;

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

// ---- Building.

constexpr int kTakeThreads = 256;
constexpr int kTakenAtOnce = 2048;  // keys that are looked at before a list takes the largest of them

// Leaves the largest of a list and of taken[0, count) in the list; what is left out raises the floor.
__device__ __forceinline__ void take_keys(const ListTables& lists, int64_t i, const Key* taken, int count,
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
  int kept = 0, total = 0;
  for (int first = 0; first < listed; first += kTakeThreads) {
    const int p = first + group.thread;
    const Key key = p < listed ? selection_key(values[p], columns[p]) : 0;
    const bool stays = key != 0 && key >= bar;
    if (key != 0 && !stays && value_of_key(key) > floor) floor = value_of_key(key);
    const int place = kept + group.place(stays, total);  // its barriers: all have been read
    if (stays) {
      columns[place] = column_of_key(key);
      values[place] = value_of_key(key);
    }
    kept += total;
  }
  for (int first = 0; first < count; first += kTakeThreads) {
    const int e = first + group.thread;
    const Key key = e < count ? taken[e] : 0;
    const bool stays = key != 0 && key >= bar;
    if (key != 0 && !stays && value_of_key(key) > floor) floor = value_of_key(key);
    const int place = kept + group.place(stays, total);
    if (stays) {
      columns[place] = column_of_key(key);
      values[place] = value_of_key(key);
    }
    kept += total;
  }
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
                         ListTables lists) {
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
