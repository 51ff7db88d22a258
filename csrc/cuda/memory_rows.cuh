// The momentum update of the rows of the memory, and what it leaves for the tiles of the cache.
#pragma once

#include "../common/recurrence.h"
#include "block_sum.cuh"
#include "cache_blocks.cuh"

namespace snnet {

constexpr int kUpdateThreads = 256;
constexpr int kUpdateWarps = kUpdateThreads / kWarp;
constexpr int kTileRows = 32, kTileColumns = 128;
constexpr int kRowsOfThread = kTileRows / kUpdateWarps, kColumnsOfThread = kTileColumns / kWarp;
constexpr int kTilePitch = kTileColumns + 1;  // odd: a warp reads a column of the tile without bank conflicts
constexpr int32_t kMostOccurrences = 16;  // of an index before its cells are products: one thread adds them up

constexpr int32_t kAfresh = 0, kUnmoved = -1;

// How the row of a batch entry's index moves: kept, length and occurrences stand at the first entry of an index.
struct RowFactors {
  float weight, kept, length;
  int32_t occurrences;  // kAfresh: the cells of this row are products with the updated memory; kUnmoved: they stay
};

// An entry in the order by (index, entry).
struct PlacedEntry {
  int32_t entry, column;  // column: the entry's index, or n where that is out of range
};

enum Progress { kClaimed, kPlaced, kFinished, kProgressWords };

struct MemoryUpdate {
  float* memory;            // [n, d]
  float* cache;             // [n, n], or null: then what follows features is null too
  const int64_t* index;     // [B]
  const float* momentum;    // []
  const float* features;    // [B, d]
  const float* similarity;  // [B, n], with the memory before the update
  int32_t* progress;        // [kProgressWords], zero at first: tickets claimed, entries placed, entries whose row is finished
  PlacedEntry* order;       // [B]
  RowFactors* factors;      // [B]
  CacheBlocks blocks;       // of the cache
  int64_t n, d;
  int32_t batch_size;
};

struct UpdateShared {
  float tile[kTileRows * kTilePitch];  // also a row that is being blended, and the operands of products
  RowFactors factors[kTileRows];
  PlacedEntry rows[kTileRows];  // entry -1: not the first of its index, nothing to do
  bool is_member[kTileColumns];
  double parts[kUpdateWarps];
  int32_t ticket;
};

__device__ __forceinline__ int32_t column_of_entry(const MemoryUpdate& u, int32_t entry) {
  const int64_t column = u.index[entry];
  return static_cast<int32_t>(column >= 0 && column < u.n ? column : u.n);
}

// What the block has written so far is seen by blocks that wait for it.
__device__ void announce(int32_t* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
  }
}

__device__ void wait_for(const int32_t* counter, int32_t wanted) {
  if (threadIdx.x == 0) {
    while (*static_cast<const volatile int32_t*>(counter) < wanted) __nanosleep(64);
    __threadfence();
  }
  __syncthreads();
}

// Of the batch entries: how many come before `entry` in the order, have its index, have it and come before.
struct Turn {
  int32_t place, same, earlier;
};

__device__ Turn turn_of(const MemoryUpdate& u, int32_t entry) {
  const int32_t column = column_of_entry(u, entry);
  Turn turn{0, 0, 0};
  for (int32_t first = 0; first < u.batch_size; first += kUpdateThreads) {
    const int32_t other = first + static_cast<int32_t>(threadIdx.x);
    const bool exists = other < u.batch_size;
    const int32_t theirs = exists ? column_of_entry(u, other) : 0;
    turn.place += __syncthreads_count(exists && theirs < column);
    turn.same += __syncthreads_count(exists && theirs == column);
    turn.earlier += __syncthreads_count(exists && theirs == column && other < entry);
  }
  turn.place += turn.earlier;
  return turn;
}

// row <- (alpha row + beta live) / length, unless that is not finite; the length. staged [d] holds the blend between
// the passes; without it the blend is made twice.
__device__ float blend_row(float* row, const float* live, float* staged, int64_t d, float alpha, float beta,
                           double* parts) {
  constexpr int kInFlight = 8;  // loads of a thread before it needs the first
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
      if (k < d && staged != nullptr) staged[k] = value;
    }
  }
  const float exact = static_cast<float>(sqrt(block_sum(squares, parts)));
  const float length = exact < kSmallestLength ? kSmallestLength : exact;
  if (!is_finite(length)) return length;
  for (int64_t k = threadIdx.x; k < d; k += kUpdateThreads) {
    row[k] = (staged != nullptr ? staged[k] : blended(row[k], live[k], alpha, beta)) / length;
  }
  return length;
}

// Blends the row of the first entry of an index with all its entries, in batch order.
__device__ void update_row(const MemoryUpdate& u, int32_t entry, const Turn& turn, UpdateShared& shared) {
  const int64_t column = u.index[entry];
  const float alpha = *u.momentum, beta = 1.0f - alpha;
  float* row = u.memory + column * u.d;
  float* staged = u.d <= kTileRows * kTilePitch ? shared.tile : nullptr;
  const bool publishes = u.cache != nullptr && threadIdx.x == 0;
  bool afresh = turn.same > kMostOccurrences, moved = false;
  int32_t last = entry;
#pragma unroll 1
  for (int32_t b = entry, left = turn.same; left > 0; ++b) {
    if (u.index[b] != column) continue;
    const float length = blend_row(row, u.features + b * u.d, staged, u.d, alpha, beta, shared.parts);
    afresh = afresh || error_grows(length, alpha);
    moved = moved || is_finite(length);
    if (publishes) u.factors[b].length = length;
    last = b;
    --left;
  }
  if (moved) {  // the tiles and pairs that the row lies in mark its blocks afresh
    for (int64_t word = threadIdx.x; word < u.blocks.words; word += kUpdateThreads) u.blocks.row(column)[word] = 0;
  }
  if (!publishes) return;
  float kept = 1.0f;
#pragma unroll 1
  for (int32_t b = last; b >= entry; --b) {
    if (u.index[b] != column) continue;
    const bool applied = is_finite(u.factors[b].length);
    u.factors[b].weight = applied ? beta / u.factors[b].length * kept : 0.0f;
    if (applied) kept *= alpha / u.factors[b].length;
  }
  u.factors[entry].kept = kept;
  u.factors[entry].occurrences = !moved ? kUnmoved : afresh ? kAfresh : turn.same;
}

}  // namespace snnet
