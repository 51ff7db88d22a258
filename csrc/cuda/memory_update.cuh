// The momentum update of the memory and, by the recurrence, of the cached similarity matrix, in one launch.
//
// Blocks claim tickets. The first B are the batch entries: each finds its place in the order by (index, entry), and
// the first entry of an index blends and renormalises its row of the memory. The others are tiles of 32 places of
// that order times 128 columns of the cache; they load what they need, wait for all rows and write their cells. Of
// two batch members i < j the tile of row i alone reads S[i,j] and writes both S[i,j] and S[j,i]: nothing is written
// twice or read by another, and the cache stays symmetric to the bit.
//
// A repeated index moves its row by m' = kept m + sum of weight_b f_b over its entries b, so the cells follow from
// the products with the memory before the update. Where the error would grow, and for an index that comes very
// often, they are products with the updated memory instead.
#pragma once

#include "../common/recurrence.h"
#include "block_sum.cuh"

namespace snnet {

constexpr int kUpdateThreads = 256;
constexpr int kUpdateWarps = kUpdateThreads / kWarp;
constexpr int kTileRows = 32, kTileColumns = 128;
constexpr int kRowsOfThread = kTileRows / kUpdateWarps, kColumnsOfThread = kTileColumns / kWarp;
constexpr int kTilePitch = kTileColumns + 1;  // odd: a warp reads a column of the tile without bank conflicts
constexpr int32_t kMostOccurrences = 16;

// How the row of a batch entry's index moves: kept, length and occurrences stand at the first entry of an index.
struct RowFactors {
  float weight, kept, length;
  int32_t occurrences;  // 0: the cells of this row are products with the updated memory
};

// An entry in the order by (index, entry).
struct PlacedEntry {
  int32_t entry, column;  // column: the entry's index, or n where that is out of range
};

struct MemoryUpdate {
  float* memory;            // [n, d]
  float* cache;             // [n, n], or null: then what follows features is null too
  const int64_t* index;     // [B]
  const float* momentum;    // []
  const float* features;    // [B, d]
  const float* similarity;  // [B, n], with the memory before the update
  const float* gram;        // [B, B]
  int32_t* progress;        // [3], zero at first: tickets claimed, entries placed, rows finished
  PlacedEntry* order;       // [B]
  RowFactors* factors;      // [B]
  int64_t n, d;
  int32_t batch_size;
};
enum Progress { kClaimed, kPlaced, kFinished };

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

// row <- (alpha row + beta live) / length; the length. staged [d] may be the row itself.
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
      if (k < d) staged[k] = value;
    }
  }
  const float exact = static_cast<float>(sqrt(block_sum(squares, parts)));
  const float length = exact < kSmallestLength ? kSmallestLength : exact;
  for (int64_t k = threadIdx.x; k < d; k += kUpdateThreads) row[k] = staged[k] / length;
  return length;
}

// Blends the row of the first entry of an index with all its entries, in batch order.
__device__ void update_row(const MemoryUpdate& u, int32_t entry, const Turn& turn, UpdateShared& shared) {
  const int64_t column = u.index[entry];
  const float alpha = *u.momentum, beta = 1.0f - alpha;
  float* row = u.memory + column * u.d;
  float* staged = u.d <= kTileRows * kTilePitch ? shared.tile : row;
  const bool publishes = u.cache != nullptr && threadIdx.x == 0;
  bool afresh = turn.same > kMostOccurrences;
  int32_t last = entry;
#pragma unroll 1
  for (int32_t b = entry, left = turn.same; left > 0; ++b) {
    if (u.index[b] != column) continue;
    const float length = blend_row(row, u.features + b * u.d, staged, u.d, alpha, beta, shared.parts);
    afresh = afresh || error_grows(length, alpha);
    if (publishes) u.factors[b].length = length;
    last = b;
    --left;
  }
  if (!publishes) return;
  float kept = 1.0f;
#pragma unroll 1
  for (int32_t b = last; b >= entry; --b) {
    if (u.index[b] != column) continue;
    u.factors[b].weight = beta / u.factors[b].length * kept;
    kept *= alpha / u.factors[b].length;
  }
  u.factors[entry].kept = kept;
  u.factors[entry].occurrences = afresh ? 0 : turn.same;
}

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

// S' of two batch members from their first entries' places; formulas of equal weight for both sides.
__device__ float pair_similarity(const MemoryUpdate& u, int32_t place_i, const RowFactors& of_i, int32_t place_j,
                                 const RowFactors& of_j) {
  const int64_t i = u.order[place_i].column, j = u.order[place_j].column;
  const float before = u.cache[i * u.n + j];
  if (of_i.occurrences == 1 && of_j.occurrences == 1) {
    const int64_t b = u.order[place_i].entry, c = u.order[place_j].entry;
    const float alpha = *u.momentum;
    return blended_pair(before, u.similarity[b * u.n + j] + u.similarity[c * u.n + i],
                        u.gram[(b > c ? b : c) * u.batch_size + (b > c ? c : b)], alpha, 1.0f - alpha, of_i.length,
                        of_j.length);
  }
  float with_i = 0.0f, with_j = 0.0f, among = 0.0f;
#pragma unroll 1
  for (int32_t t = 0; t < of_j.occurrences; ++t) {
    const int64_t c = u.order[place_j + t].entry;
    with_i += u.factors[c].weight * u.similarity[c * u.n + i];
  }
#pragma unroll 1
  for (int32_t t = 0; t < of_i.occurrences; ++t) {
    const int64_t b = u.order[place_i + t].entry;
    float live = 0.0f;
#pragma unroll 1
    for (int32_t v = 0; v < of_j.occurrences; ++v) {
      const int64_t c = u.order[place_j + v].entry;
      live += u.factors[c].weight * u.gram[b * u.batch_size + c];
    }
    with_j += u.factors[b].weight * u.similarity[b * u.n + j];
    among += u.factors[b].weight * live;
  }
  return of_i.kept * of_j.kept * before + of_i.kept * with_i + of_j.kept * with_j + among;
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

// S[i,l] and s[b,l] of the thread's cells of a tile; 0 where there is none.
__device__ __forceinline__ void load_cells(const MemoryUpdate& u, const UpdateShared& shared, int64_t first_column,
                                           int64_t end_column, float (&before)[kRowsOfThread][kColumnsOfThread],
                                           float (&live)[kRowsOfThread][kColumnsOfThread]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const PlacedEntry row = shared.rows[warp + kUpdateWarps * r];
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      const int64_t column = first_column + lane + kWarp * c;
      const bool used = row.entry >= 0 && column < end_column;
      before[r][c] = used ? u.cache[row.column * u.n + column] : 0.0f;
      live[r][c] = used ? u.similarity[row.entry * u.n + column] : 0.0f;
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
  for (int c = 0; c < kColumnsOfThread; ++c) before[c] = of_row.kept * before[c] + of_row.weight * live[c];
#pragma unroll 1
  for (int32_t t = 1; t < of_row.occurrences; ++t) {
    const int64_t b = u.order[place + t].entry;
    const float weight = u.factors[b].weight;
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      const int64_t column = first_column + threadIdx.x % kWarp + kWarp * c;
      if (column < end_column) before[c] += weight * u.similarity[b * u.n + column];
    }
  }
}

// The cells of 32 places of the order times 128 columns, and their mirror images.
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
    shared.is_member[u.order[m].column - first_column] = true;
  }
  // A warp takes 128 bytes of a row at a time whether rows are aligned or not; all loads are on their way before
  // the rows of the memory are waited for.
  float before[kRowsOfThread][kColumnsOfThread], live[kRowsOfThread][kColumnsOfThread];
  load_cells(u, shared, first_column, end_column, before, live);

  wait_for(u.progress + kFinished, u.batch_size);
  bool afresh = false;
  if (threadIdx.x < kTileRows && shared.rows[threadIdx.x].entry >= 0) {
    shared.factors[threadIdx.x] = u.factors[shared.rows[threadIdx.x].entry];
    afresh = shared.factors[threadIdx.x].occurrences == 0;
  }
#pragma unroll 1
  for (int32_t m = first_member + static_cast<int32_t>(threadIdx.x); m < end_member; m += kUpdateThreads) {
    if (is_first_of_index(u, m)) afresh = afresh || u.factors[u.order[m].entry].occurrences == 0;
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
    const bool moved = shared.factors[row].occurrences != 0;
    if (moved) {
      move_row(u, place + row, shared.factors[row], first_column, end_column, alpha, before[r], live[r]);
    }
#pragma unroll
    for (int c = 0; c < kColumnsOfThread; ++c) {
      const int at = lane + kWarp * c;
      const int64_t column = first_column + at;
      if (column >= end_column || shared.is_member[at]) continue;
      float& value = shared.tile[row * kTilePitch + at];
      if (moved) value = before[r][c];
      u.cache[own.column * u.n + column] = value;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t e = threadIdx.x; e < kTileRows * (end_member - first_member); e += kUpdateThreads) {
    const int row = e % kTileRows;
    const int32_t member = first_member + e / kTileRows;
    if (shared.rows[row].entry < 0 || member < place + row || !is_first_of_index(u, member)) continue;
    const int64_t i = shared.rows[row].column, j = u.order[member].column;
    const RowFactors& of_i = shared.factors[row];
    const RowFactors& of_j = u.factors[u.order[member].entry];
    const float value = of_i.occurrences == 0 || of_j.occurrences == 0
                            ? shared.tile[row * kTilePitch + j - first_column]
                            : pair_similarity(u, place + row, of_i, member, of_j);
    u.cache[i * u.n + j] = value;
    u.cache[j * u.n + i] = value;
  }
  // The columns, 32 sectors a write in rising order: these bound the kernel.
  const PlacedEntry own = shared.rows[lane];
  for (int at = warp; at < end_column - first_column; at += kUpdateWarps) {
    if (own.entry < 0 || shared.is_member[at]) continue;
    u.cache[(first_column + at) * u.n + own.column] = shared.tile[lane * kTilePitch + at];
  }
}

// One block a ticket. Bound by memory: s and the rows are read once, the rows written once, and each of the B n
// cells of the columns costs a 32-byte sector read and written.
__global__ void __launch_bounds__(kUpdateThreads, 3) update_memory_kernel(MemoryUpdate u) {
  __shared__ UpdateShared shared;
  if (threadIdx.x == 0) shared.ticket = atomicAdd(u.progress + kClaimed, 1);
  __syncthreads();
  const int32_t ticket = shared.ticket;
  if (ticket >= u.batch_size) {
    update_tile(u, ticket - u.batch_size, shared);
    return;
  }
  const Turn turn = turn_of(u, ticket);
  const int32_t column = column_of_entry(u, ticket);
  if (threadIdx.x == 0) u.order[turn.place] = {ticket, column};
  announce(u.progress + kPlaced);
  if (turn.earlier == 0 && column < u.n) update_row(u, ticket, turn, shared);
  announce(u.progress + kFinished);
}

// One block a batch entry, without a cache. Bound by latency: two passes over a row.
__global__ void __launch_bounds__(kUpdateThreads, 3) update_rows_kernel(MemoryUpdate u) {
  __shared__ UpdateShared shared;
  const int32_t entry = static_cast<int32_t>(blockIdx.x);
  const Turn turn = turn_of(u, entry);
  if (turn.earlier == 0 && column_of_entry(u, entry) < u.n) update_row(u, entry, turn, shared);
}

}  // namespace snnet
