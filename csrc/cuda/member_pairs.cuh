// The cells of the similarity cache between two members of the batch.
#pragma once

#include "cache_tile.cuh"

namespace snnet {

constexpr int kSide = 4;  // a warp takes 4 x 4 places of the order

// Blocks whose warps take kSide places each way. Those above the diagonal have nothing to do.
SNNET_INLINE int64_t pair_blocks_across(int32_t batch_size) {
  return (batch_size + kSide * kUpdateWarps - 1) / (kSide * kUpdateWarps);
}
SNNET_INLINE int64_t pair_blocks(int32_t batch_size) {
  return (batch_size + kSide - 1) / kSide * pair_blocks_across(batch_size);
}

// The column of the index whose first entry has `place` in the order; -1 for any other place.
__device__ __forceinline__ int32_t member_at(const MemoryUpdate& u, int32_t place) {
  return place < u.batch_size && is_first_of_index(u, place) ? u.order[place].column : -1;
}

__device__ __forceinline__ bool is_moved(const MemoryUpdate& u, int32_t place) {
  return u.factors[u.order[place].entry].occurrences != kUnmoved;
}

// S'[i,j] and S'[j,i] are the product of the two rows of the updated memory; the lanes of a warp go along d. No error of
// the cache before lives on in it.
__device__ void update_pairs(const MemoryUpdate& u, int64_t block) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t across = pair_blocks_across(u.batch_size);
  const auto place_i = static_cast<int32_t>(block / across) * kSide;
  const auto first_j = static_cast<int32_t>(block % across) * kSide * kUpdateWarps;
  if (first_j > place_i) return;  // j up to i
  wait_for(u.progress + kFinished, u.batch_size);
  const int32_t place_j = first_j + kSide * warp;
  if (place_j > place_i) return;
  const float* rows_i[kSide];
  const float* rows_j[kSide];
#pragma unroll
  for (int m = 0; m < kSide; ++m) {
    const int32_t i = member_at(u, place_i + m), j = member_at(u, place_j + m);
    rows_i[m] = u.memory + (i < 0 ? 0 : i) * u.d;  // row 0 in place of one that is not there
    rows_j[m] = u.memory + (j < 0 ? 0 : j) * u.d;
  }
  float sums[kSide][kSide] = {};
#pragma unroll 2
  for (int64_t k = lane; k < u.d; k += kWarp) {
    float of_i[kSide], of_j[kSide];
#pragma unroll
    for (int m = 0; m < kSide; ++m) {
      of_i[m] = rows_i[m][k];
      of_j[m] = rows_j[m][k];
    }
#pragma unroll
    for (int a = 0; a < kSide; ++a) {
#pragma unroll
      for (int b = 0; b < kSide; ++b) sums[a][b] += of_i[a] * of_j[b];
    }
  }
  float own = 0.0f;  // a lane a pair
#pragma unroll
  for (int a = 0; a < kSide; ++a) {
#pragma unroll
    for (int b = 0; b < kSide; ++b) {
      const float sum = warp_sum(sums[a][b]);
      if (lane == a * kSide + b) own = sum;
    }
  }
  if (lane >= kSide * kSide) return;
  const int64_t i = member_at(u, place_i + lane / kSide), j = member_at(u, place_j + lane % kSide);
  if (i < 0 || j < 0 || place_j + lane % kSide > place_i + lane / kSide) return;
  if (!is_moved(u, place_i + lane / kSide) && !is_moved(u, place_j + lane % kSide)) return;
  u.cache[i * u.n + j] = own;
  u.cache[j * u.n + i] = own;
  if (u.blocks.bits == nullptr || !(own > u.blocks.floor)) return;
  u.blocks.mark(i, j);
  u.blocks.mark(j, i);
}

}  // namespace snnet
