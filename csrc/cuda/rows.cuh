// How a block reads a similarity row, and what its threads find together.
#pragma once

#include "../common/select.h"
#include "device.cuh"

namespace snnet {

// selection_key in the type that 64-bit atomics take; 0 is no entry.
using Key = unsigned long long;

// Rows to look at: those of the cache at index, or rows given in their place.
struct Batch {
  const int64_t* index;
  const float* cache;
  const float* query_rows;
  int64_t size;
  int n;

  // An index out of range reads some row of the cache.
  __device__ __forceinline__ int own(int64_t b) const {
    const int64_t i = index[b];
    return static_cast<int>(i < 0 ? 0 : i < n ? i : n - 1);
  }
  __device__ __forceinline__ const float* cache_row(int i) const { return cache + static_cast<int64_t>(i) * n; }
  __device__ __forceinline__ const float* row(int64_t b, int own) const {
    return query_rows != nullptr ? query_rows + b * n : cache_row(own);
  }
};

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
      if (v < row.vectors) loaded[i] = __ldg(row.vector(v));
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
  const unsigned top = __reduce_max_sync(kAllLanes, high);
  const unsigned low = __reduce_max_sync(kAllLanes, high == top ? static_cast<unsigned>(key) : 0u);
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

}  // namespace snnet
