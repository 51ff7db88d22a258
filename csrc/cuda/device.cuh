// What kernels share: dynamic shared memory; products of rows; how a block reads a similarity row; what the threads of
// a warp or of a block find together; how a launch shares out its items.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/select.h"

namespace snnet {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(__CUDACC__)
using SharedWord = uint4;
#endif

// The dynamic shared memory of the running block, 16-byte aligned.
extern __shared__ SharedWord shared_words[];

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_words);
}

// ---- What a warp finds, for all its lanes, and sums over a block in a fixed order.

template <class Value>
__device__ __forceinline__ Value warp_sum(Value value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class Value>
__device__ __forceinline__ Value warp_maximum(Value value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Value other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // one instruction for integers
__device__ __forceinline__ int32_t warp_sum(int32_t value) { return __reduce_add_sync(kAllLanes, value); }
__device__ __forceinline__ int32_t warp_maximum(int32_t value) { return __reduce_max_sync(kAllLanes, value); }
__device__ __forceinline__ unsigned warp_maximum(unsigned value) { return __reduce_max_sync(kAllLanes, value); }
#endif

// The sum of every thread's value, for every thread; parts [threads / 32] is shared memory.
template <class Value>
__device__ Value block_sum(Value value, Value* parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  __syncthreads();  // parts may still be read from a sum before
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? parts[lane] : Value{0});
}

// ---- Products of rows.

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

// ---- Similarity rows.

// selection_key in the type that 64-bit atomics take; 0 is no entry.
using Key = unsigned long long;

// A row of n floats at any address: 16-byte vectors, and at most six loose entries around them.
struct VectorRow {
  const float* row;
  int head, vectors, n;

  __device__ __forceinline__ VectorRow(const float* row, int n) : row(row), n(n) {
    const auto misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / 4);
    head = misaligned == 0 ? 0 : 4 - misaligned;
    if (head > n) head = n;
    vectors = (n - head) / 4;
  }

  __device__ __forceinline__ const float4* vector(int v) const {
    return reinterpret_cast<const float4*>(row + head) + v;
  }
  __device__ __forceinline__ int column_of(int v) const { return head + 4 * v; }
  __device__ __forceinline__ int loose() const { return n - 4 * vectors; }
  __device__ __forceinline__ int loose_column(int e) const { return e < head ? e : 4 * vectors + e; }
};

// visit(values, column) for all entries of a row, an array of neighbours at a time, by a block of kThreads; a
// thread has kLoads loads in flight and goes through its columns in rising order, but for the loose entries.
template <int kThreads, int kLoads, class Visit>
__device__ __forceinline__ void visit_row(const VectorRow& row, Visit&& visit) {
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < row.loose()) {
    const int column = row.loose_column(thread);
    const float value[1] = {row.row[column]};
    visit(value, column);
  }
  for (int first = thread; first < row.vectors; first += kLoads * kThreads) {
    float4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int v = first + i * kThreads;
      if (v < row.vectors) loaded[i] = *row.vector(v);  // the block may have written it
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int v = first + i * kThreads;
      if (v >= row.vectors) break;
      const float values[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
      visit(values, row.column_of(v));
    }
  }
}

// The first largest entry that a thread sees, but the row's own.
struct NearestOther {
  int own;
  Key key = 0;
  float value = __builtin_nanf("");  // of the key; nothing is < NaN, so the first entry is looked at

  template <int kCount>
  __device__ __forceinline__ void look(const float (&values)[kCount], int column) {
    bool promising = false;
    for (int i = 0; i < kCount; ++i) promising |= !(values[i] < value);
    if (!promising) return;
    for (int i = 0; i < kCount; ++i) {
      const Key other = selection_key(values[i], column + i);
      if (column + i == own || other <= key) continue;
      key = other;
      value = values[i];
    }
  }
};

__device__ __forceinline__ Key warp_largest(Key key) {
  const auto high = static_cast<unsigned>(key >> 32);
  const unsigned top = warp_maximum(high);
  const unsigned low = warp_maximum(high == top ? static_cast<unsigned>(key) : 0u);
  return static_cast<Key>(top) << 32 | low;
}

// The largest key of the block, for all its threads. `parts` is shared, one for each warp; another use of it needs
// a barrier between.
template <int kThreads>
__device__ __forceinline__ Key block_largest(Key key, Key* parts) {
  static_assert(kThreads % kWarp == 0 && kThreads <= kWarp * kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  key = warp_largest(key);
  if (lane == 0) parts[threadIdx.x / kWarp] = key;
  __syncthreads();
  return warp_largest(lane < kThreads / kWarp ? parts[lane] : 0);
}

// The sum of the values of this thread and those before it. `parts` as for block_largest.
template <int kThreads>
__device__ __forceinline__ int64_t block_running_sum(int64_t value, int64_t* parts) {
  static_assert(kThreads % kWarp == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int64_t before = __shfl_up_sync(kAllLanes, value, delta);
    if (lane >= delta) value += before;
  }
  if (lane == kWarp - 1) parts[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += parts[w];
  return value;
}

// ---- What a warp or a block does alike.

// Threads that work on a row together: `place` is how many before this one have the flag, of `total`.
struct WarpGroup {
  static constexpr int kSize = kWarp;
  int thread = static_cast<int>(threadIdx.x) % kWarp;

  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ int sum(int value) const { return warp_sum(value); }
  __device__ __forceinline__ float maximum(float value) const { return warp_maximum(value); }
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

// ---- How a launch shares out the items of a batch, of which every sample has some.

// Whether this block is the last of `blocks` that come here with a counter, which began at 0: it sees what all of them
// wrote before. Nobody waits. By all threads of a block.
__device__ __forceinline__ bool is_last_block(Key* counter, Key blocks) {
  __threadfence();  // what this thread wrote comes before what the block counts
  __syncthreads();
  const bool is_last = __syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, Key{1}) + 1 == blocks) != 0;
  if (is_last) __threadfence();
  return is_last;
}

template <int kThreads>
struct ItemShared {
  int64_t first_item[kThreads + 1];
  int64_t parts[kThreads / kWarp];
};

// Distributes the items of all samples round-robin over the groups (warps or blocks) of the launch. Calls use(b, item
// of b, number of the item) for each item of this group. All threads of a block must call it. Returns the number of
// items.
template <int kThreads, int kGroup, class Count, class Use>
__device__ __forceinline__ int64_t for_each_item(int64_t batch_size, ItemShared<kThreads>& shared, Count&& items_of,
                                                 Use&& use) {
  constexpr int kGroups = kThreads / kGroup;
  const int64_t groups = static_cast<int64_t>(gridDim.x) * kGroups;
  const int64_t group = blockIdx.x + static_cast<int64_t>(gridDim.x) * (threadIdx.x / kGroup);
  int64_t numbered = 0;  // items of earlier samples
  for (int64_t first_sample = 0; first_sample < batch_size; first_sample += kThreads) {
    const int64_t own = first_sample + threadIdx.x;
    __syncthreads();  // what stands here has been read
    const int64_t items = own < batch_size ? items_of(own) : 0;
    shared.first_item[threadIdx.x + 1] = block_running_sum<kThreads>(items, shared.parts);
    if (threadIdx.x == 0) shared.first_item[0] = 0;
    __syncthreads();
    const int64_t total = shared.first_item[kThreads];
    for (int64_t item = (group + groups - numbered % groups) % groups; item < total; item += groups) {
      int low = 0, high = kThreads;  // first_item[low] <= item < first_item[high]
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (shared.first_item[middle] <= item ? low : high) = middle;
      }
      use(first_sample + low, item - shared.first_item[low], numbered + item);
    }
    numbered += total;
  }
  return numbered;
}

}  // namespace snnet
