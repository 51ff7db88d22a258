// The product of gradient rows that are kept as entries and the memory.
#pragma once

#include "../common/select.h"
#include "block_sum.cuh"
#include "loss.cuh"

namespace snnet {

constexpr int kProductThreads = 256;
constexpr int kProductWarps = kProductThreads / kWarp;
constexpr int kEntriesInFlight = 8;
static_assert(kProductThreads == kSumThreads);

// `width` neighbouring floats of a row of the memory, by one load.
template <int width>
struct Floats;
template <>
struct Floats<1> {
  float at[1];
  __device__ __forceinline__ void load(const float* from) { at[0] = __ldg(from); }
};
template <>
struct Floats<4> {
  float at[4];
  __device__ __forceinline__ void load(const float* from) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from));
    at[0] = four.x, at[1] = four.y, at[2] = four.z, at[3] = four.w;
  }
};

// out [B, d] = gradient [B, n] memory [n, d] from entries [B, n], row b having entry_counts[b] by rising column.
// One block for 32 * width dimensions of a row, its warps share out the entries. Bound by the reads of the entries'
// rows: blocks that run together look at the same dimensions of neighbouring rows, so that most come from the L2.
// The first block also adds up the loss.
template <int width>
__global__ void __launch_bounds__(kProductThreads)
    sparse_product_kernel(const Entry* entries, const int32_t* entry_counts, const float* memory, int64_t n, int64_t d,
                          int64_t batch_size, float* out, const double* row_losses, float* loss) {
  constexpr int kDimensions = kWarp * width;  // of the block
  __shared__ float sums[kProductWarps][kDimensions];
  __shared__ double parts[kProductWarps];
  if (blockIdx.x == 0) sum_loss(row_losses, batch_size, loss, parts);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t b = blockIdx.x % batch_size, first = blockIdx.x / batch_size * kDimensions;
  const int64_t dimension = first + lane * width;
  const int32_t count = entry_counts[b];
  const Entry* own = entries + b * n;
  float sum[width] = {};
  if (dimension < d) {
    for (int32_t e = kEntriesInFlight * warp; e < count; e += kEntriesInFlight * kProductWarps) {
      float slope[kEntriesInFlight];
      Floats<width> row[kEntriesInFlight];
#pragma unroll
      for (int i = 0; i < kEntriesInFlight; ++i) {
        if (e + i >= count) continue;
        const Entry entry = own[e + i];
        slope[i] = entry.value;
        row[i].load(memory + entry.column * d + dimension);
      }
#pragma unroll
      for (int i = 0; i < kEntriesInFlight; ++i) {
        if (e + i >= count) continue;
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] += slope[i] * row[i].at[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < width; ++k) sums[warp][lane * width + k] = sum[k];
  __syncthreads();
  for (int k = threadIdx.x; k < kDimensions && first + k < d; k += kProductThreads) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kProductWarps; ++w) total += sums[w][k];
    out[b * d + first + k] = total;
  }
}

}  // namespace snnet
