// The momentum update of the rows of the memory.
#pragma once

#include "../common/recurrence.h"
#include "device.cuh"

namespace snnet {

constexpr int kUpdateThreads = 256;
constexpr int kUpdateWarps = kUpdateThreads / kWarp;
constexpr int kStagedFloats = 4096;  // of a row that is kept in shared memory while it is blended

struct MemoryUpdate {
  float* memory;          // [n, d]
  const int64_t* index;   // [B]
  const float* momentum;  // []
  const float* features;  // [B, d]
  int64_t n, d;
  int32_t batch_size;
};

struct BlendShared {
  float staged[kStagedFloats];
  double parts[kUpdateWarps];
};

__device__ __forceinline__ int32_t column_of_entry(const MemoryUpdate& u, int32_t entry) {
  const int64_t column = u.index[entry];
  return static_cast<int32_t>(column >= 0 && column < u.n ? column : u.n);
}

// Of the batch entries with the index of `entry`: how many there are, and how many of them come before it.
struct Turn {
  int32_t same, earlier;
};

__device__ __forceinline__ Turn turn_of(const MemoryUpdate& u, int32_t entry) {
  const int32_t column = column_of_entry(u, entry);
  Turn turn{0, 0};
  for (int32_t first = 0; first < u.batch_size; first += kUpdateThreads) {
    const int32_t other = first + static_cast<int32_t>(threadIdx.x);
    const bool same = other < u.batch_size && column_of_entry(u, other) == column;
    turn.same += __syncthreads_count(same);
    turn.earlier += __syncthreads_count(same && other < entry);
  }
  return turn;
}

// row <- (alpha row + beta live) / length, unless that is not finite; the length. A row too long to be staged is blended
// twice.
__device__ __forceinline__ float blend_row(float* row, const float* live, int64_t d, float alpha, float beta,
                                           BlendShared& shared) {
  constexpr int kInFlight = 8;  // loads of a thread before it needs the first
  const bool is_staged = d <= kStagedFloats;
  double squares = 0;
  for (int64_t first = threadIdx.x; first < d; first += kInFlight * kUpdateThreads) {
    float before[kInFlight], now[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t k = first + i * kUpdateThreads;
      before[i] = k < d ? row[k] : 0.0f;
      now[i] = k < d ? live[k] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t k = first + i * kUpdateThreads;
      const float value = blended(before[i], now[i], alpha, beta);
      squares += static_cast<double>(value) * static_cast<double>(value);
      if (k < d && is_staged) shared.staged[k] = value;
    }
  }
  const float exact = static_cast<float>(sqrt(block_sum(squares, shared.parts)));
  const float length = exact < kSmallestLength ? kSmallestLength : exact;
  if (!is_finite(length)) return length;
  for (int64_t k = threadIdx.x; k < d; k += kUpdateThreads) {
    row[k] = (is_staged ? shared.staged[k] : blended(row[k], live[k], alpha, beta)) / length;
  }
  return length;
}

// Blends the row of the first entry of an index with all its entries, in batch order; visit(entry, length) after each.
template <class Visit>
__device__ __forceinline__ void blend_entries(const MemoryUpdate& u, int32_t entry, int32_t same, BlendShared& shared,
                                              Visit&& visit) {
  const int64_t column = u.index[entry];
  const float alpha = *u.momentum, beta = 1.0f - alpha;
#pragma unroll 1
  for (int32_t b = entry, left = same; left > 0; ++b) {
    if (u.index[b] != column) continue;
    --left;
    visit(b, blend_row(u.memory + column * u.d, u.features + b * u.d, u.d, alpha, beta, shared));
    __syncthreads();
  }
}

// One block a batch entry. Bound by latency: two passes over a row.
static __global__ void __launch_bounds__(kUpdateThreads, 3) update_rows_kernel(MemoryUpdate u) {
  __shared__ BlendShared shared;
  const auto entry = static_cast<int32_t>(blockIdx.x);
  const Turn turn = turn_of(u, entry);
  if (turn.earlier != 0 || column_of_entry(u, entry) >= u.n) return;
  blend_entries(u, entry, turn.same, shared, [](int32_t, float) {});
}

}  // namespace snnet
