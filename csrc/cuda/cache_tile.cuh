// The cells of the similarity cache that a batch changes, a tile a block.
#pragma once

#include "memory_rows.cuh"

namespace snnet {

// The first place in the order whose column is at least `column`.
__device__ int32_t first_place(const MemoryUpdate& u, int64_t column) {
  int32_t low = 0, high = u.batch_size;
  while (low < high) {
    const int32_t step = (high - low + kUpdateThreads - 1) / kUpdateThreads;
    const int64_t place = low + static_cast<int64_t>(step) * threadIdx.x;
    const int32_t below = __syncthreads_count(place < high && u.order[place].column < column);
    if (below == 0) break;
    if (low + static_cast<int64_t>(below) * step < high) high = low + below * step;
    low += (below - 1) * step + 1;
  }
  return low;
}

__device__ __forceinline__ bool is_first_of_index(const MemoryUpdate& u, int32_t place) {
  return u.order[place].column < u.n && (place == 0 || u.order[place - 1].column != u.order[place].column);
}

// shared.tile <- products of the tile's rows and columns of the updated memory. Sums of 64 terms are added up: fewer
// roundings of large sums.
__device__ void tile_products(const MemoryUpdate& u, int64_t first_column, UpdateShared& shared) {
  constexpr int kDepth = 16, kTerms = 64, kRowPitch = kTileRows + 1;
  static_assert(kDepth * (kRowPitch + kTilePitch) <= kTileRows * kTilePitch);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* left = shared.tile;                       // [kDepth, kRowPitch]
  float* right = shared.tile + kDepth * kRowPitch;  // [kDepth, kTilePitch]
  float total[kRowsOfThread][kColumnsOfThread] = {}, part[kRowsOfThread][kColumnsOfThread] = {};
  for (int64_t first = 0; first < u.d; first += kDepth) {
    const int k = threadIdx.x % kDepth;
    const bool exists = first + k < u.d;
    for (int r = threadIdx.x / kDepth; r < kTileRows; r += kUpdateThreads / kDepth) {
      const bool used = exists && shared.rows[r].entry >= 0;
      left[k * kRowPitch + r] = used ? u.memory[shared.rows[r].column * u.d + first + k] : 0.0f;
    }
    for (int c = threadIdx.x / kDepth; c < kTileColumns; c += kUpdateThreads / kDepth) {
      const bool used = exists && first_column + c < u.n;
      right[k * kTilePitch + c] = used ? u.memory[(first_column + c) * u.d + first + k] : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int depth = 0; depth < kDepth; ++depth) {
      for (int r = 0; r < kRowsOfThread; ++r) {
        const float own = left[depth * kRowPitch + warp + kUpdateWarps * r];
        for (int c = 0; c < kColumnsOfThread; ++c) part[r][c] += own * right[depth * kTilePitch + lane + kWarp * c];
      }
    }
    __syncthreads();
    if ((first + kDepth) % kTerms != 0 && first + kDepth < u.d) continue;
    for (int r = 0; r < kRowsOfThread; ++r) {
      for (int c = 0; c < kColumnsOfThread; ++c) {
        total[r][c] += part[r][c];
        part[r][c] = 0.0f;
      }
    }
  }
  for (int r = 0; r < kRowsOfThread; ++r) {
    for (int c = 0; c < kColumnsOfThread; ++c) {
      shared.tile[(warp + kUpdateWarps * r) * kTilePitch + lane + kWarp * c] = total[r][c];
    }
  }
}

// S[i,l] and s[b,l] of the thread's cells of a tile; 0 past its ends, and for members of the batch.
__device__ __forceinline__ void load_cells(const MemoryUpdate& u, const UpdateShared& shared, int64_t first_column,
                                           int64_t end_column, float (&before)[kRowsOfThread][kColumnsOfThread],
                                           float (&live)[kRowsOfThread][kColumnsOfThread]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int c = 0; c < kColumnsOfThread; ++c) {
    const int at = lane + kWarp * c;
    const int64_t column = first_column + at;
    const bool used = column < end_column && !shared.is_member[at];
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      const PlacedEntry row = shared.rows[warp + kUpdateWarps * r];
      before[r][c] = used && row.entry >= 0 ? u.cache[row.column * u.n + column] : 0.0f;
      live[r][c] = used && row.entry >= 0 ? u.similarity[row.entry * u.n + column] : 0.0f;
    }
  }
}

// before <- S'[i,l] for l outside the batch, for the thread's cells in the row at `place` of the order.
__device__ __forceinline__ void move_row(const MemoryUpdate& u, int32_t place, const RowFactors& of_row,
                                         int64_t first_column, int64_t end_column, float alpha,
                                         float (&before)[kColumnsOfThread], const float (&live)[kColumnsOfThread]) {
  if (of_row.occurrences == 1) {
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      before[c] = blended_similarity(before[c], live[c], alpha, 1.0f - alpha, of_row.length);
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kColumnsOfThread; ++c) {
    before[c] = scaled(of_row.kept, before[c]) + scaled(of_row.weight, live[c]);
  }
#pragma unroll 1
  for (int32_t t = 1; t < of_row.occurrences; ++t) {
    const int64_t b = u.order[place + t].entry;
    const float weight = u.factors[b].weight;
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      const int64_t column = first_column + threadIdx.x % kWarp + kWarp * c;
      if (column < end_column && weight != 0.0f) before[c] += weight * u.similarity[b * u.n + column];
    }
  }
}

static_assert(kTileColumns == kColumnsOfThread * kBlockColumns && kBlockColumns * kWarp % kTileColumns == 0);

// The cells of 32 places of the order times 128 columns, and their mirror images, with the marks of their blocks;
// those of two batch members are left out.
__device__ void update_tile(const MemoryUpdate& u, int64_t tile, UpdateShared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t groups = (u.batch_size + kTileRows - 1) / kTileRows;
  const int32_t place = static_cast<int32_t>(tile % groups) * kTileRows;  // of the tile's first row
  const int64_t first_column = tile / groups * kTileColumns;
  const int64_t end_column = first_column + kTileColumns < u.n ? first_column + kTileColumns : u.n;

  wait_for(u.progress + kPlaced, u.batch_size);
  if (threadIdx.x < kTileColumns) shared.is_member[threadIdx.x] = false;
  if (threadIdx.x < kTileRows) {
    const int32_t own = place + static_cast<int32_t>(threadIdx.x);
    shared.rows[threadIdx.x] = own < u.batch_size && is_first_of_index(u, own) ? u.order[own] : PlacedEntry{-1, 0};
  }
  // Its barriers let every thread see what was just written.
  const int32_t first_member = first_place(u, first_column), end_member = first_place(u, end_column);
#pragma unroll 1
  for (int32_t m = first_member + static_cast<int32_t>(threadIdx.x); m < end_member; m += kUpdateThreads) {
    if (is_first_of_index(u, m)) shared.is_member[u.order[m].column - first_column] = true;
  }
  __syncthreads();
  // A warp takes 128 bytes of a row at a time whether rows are aligned or not; all loads are on their way before
  // the rows of the memory are waited for.
  float before[kRowsOfThread][kColumnsOfThread], live[kRowsOfThread][kColumnsOfThread];
  load_cells(u, shared, first_column, end_column, before, live);

  wait_for(u.progress + kFinished, u.batch_size);
  bool afresh = false;
  if (threadIdx.x < kTileRows && shared.rows[threadIdx.x].entry >= 0) {
    shared.factors[threadIdx.x] = u.factors[shared.rows[threadIdx.x].entry];
    afresh = shared.factors[threadIdx.x].occurrences == kAfresh;
    if (shared.factors[threadIdx.x].occurrences == kUnmoved) shared.rows[threadIdx.x].entry = -1;
  }
  if (__syncthreads_or(afresh)) {
    tile_products(u, first_column, shared);
    load_cells(u, shared, first_column, end_column, before, live);  // again: registers are short meanwhile
  }

  const float alpha = *u.momentum;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const int row = warp + kUpdateWarps * r;
    const PlacedEntry own = shared.rows[row];
    if (own.entry < 0) continue;
    const bool moved = shared.factors[row].occurrences != kAfresh;
    if (moved) {
      move_row(u, place + row, shared.factors[row], first_column, end_column, alpha, before[r], live[r]);
    }
    unsigned high_blocks = 0;
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      const int at = lane + kWarp * c;
      const int64_t column = first_column + at;
      const bool written = column < end_column && !shared.is_member[at];
      float& value = shared.tile[row * kTilePitch + at];
      if (written) {
        if (moved) value = before[r][c];
        u.cache[own.column * u.n + column] = value;
      }
      if (u.blocks.bits == nullptr) continue;
      const bool high = written && value > u.blocks.floor;
      if (high) u.blocks.mark(column, own.column);
      high_blocks |= static_cast<unsigned>(__ballot_sync(kAllLanes, high) != 0) << c;
    }
    // The blocks of a tile's row lie in one word.
    if (lane == 0 && high_blocks != 0) {
      const int64_t block = first_column / kBlockColumns;
      atomicOr(u.blocks.row(own.column) + block / kWarp, high_blocks << block % kWarp);
    }
  }
  __syncthreads();
  // The columns, 32 sectors a write in rising order: these bound the kernel.
  const PlacedEntry row_of_lane = shared.rows[lane];
  for (int at = warp; at < end_column - first_column; at += kUpdateWarps) {
    if (row_of_lane.entry < 0 || shared.is_member[at]) continue;
    u.cache[(first_column + at) * u.n + row_of_lane.column] = shared.tile[lane * kTilePitch + at];
  }
}

}  // namespace snnet
