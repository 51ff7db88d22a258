// The mutual label loss of up to three label sets with its gradient.
#pragma once

#include "../common/recurrence.h"
#include "device.cuh"
#include "hard_negatives.cuh"

namespace snnet {

// The loss of similarity [B, n]; sets of weight 0 are left out, the other weights sum to 1.
struct LabelLoss {
  const float* similarity;
  const uint32_t* labels[kMostSets];  // [B, words]
  double weights[kMostSets];
  double delta, ratio;
  int64_t batch_size, n, words;
  int sets;
};

// The parts of a row's loss that depend on the counts of positives.
struct RowWeights {
  double positive[kMostSets], hard[kMostSets];
  int32_t wanted[kMostSets];  // hard negatives
};

struct LossShared {
  SelectionShared selection;
  RowWeights weights;
  double parts[kLossWarps];
  int32_t positives[kMostSets][kLossWarps];
  int32_t entries[kLossWarps];
};

__device__ __forceinline__ RowLabels labels_of_row(const LabelLoss& loss, int64_t b) {
  RowLabels labels{};
  labels.sets = loss.sets;
  labels.n = loss.n;
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) labels.words[k] = k < loss.sets ? loss.labels[k] + b * loss.words : nullptr;
  return labels;
}

__device__ void weigh_row(const LabelLoss& loss, const RowLabels& labels, LossShared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int32_t own[kMostSets] = {};
  for (int64_t word = threadIdx.x; word < (loss.n + 31) / 32; word += kLossThreads) {
#pragma unroll
    for (int k = 0; k < kMostSets; ++k) own[k] += __popc(labels.word(k, word));
  }
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    own[k] = warp_sum(own[k]);
    if (lane == 0) shared.positives[k][warp] = own[k];
  }
  __syncthreads();
  if (warp < kMostSets) {  // a warp for each set: divisions are slow
    const int32_t positives = warp_sum(shared.positives[warp][lane]);
    const int64_t negatives = loss.n - positives;
    const int64_t hard = warp < loss.sets ? hard_negatives(negatives, loss.ratio) : 0;
    double weight = 0;
#pragma unroll
    for (int k = 0; k < kMostSets; ++k) weight = k == warp ? loss.weights[k] : weight;
    const double share = weight / static_cast<double>(loss.batch_size);
    if (lane == 0) {
      shared.weights.positive[warp] = positives > 0 ? loss.delta * share / static_cast<double>(positives) : 0.0;
      shared.weights.hard[warp] = hard > 0 ? share / static_cast<double>(hard) : 0.0;
      shared.weights.wanted[warp] = static_cast<int32_t>(hard);
    }
  }
  __syncthreads();
}

// What a column adds to the loss of its row, and its slope; false where it adds nothing.
__device__ __forceinline__ bool column_loss(const LossShared& shared, uint64_t key, unsigned positive, double& value,
                                            float& slope) {
  double as_positive = 0, as_hard = 0;
  bool is_hard = false;
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    if (positive >> k & 1u) {
      as_positive += shared.weights.positive[k];
    } else if (key >= shared.selection.smallest[k]) {
      as_hard += shared.weights.hard[k];
      is_hard = true;
    }
  }
  if (positive == 0 && !is_hard) return false;
  // A weight of 0 counts: it makes NaN of what is not finite.
  const double similarity = value_of_key(key), above = similarity + 1, below = similarity - 1;
  value = (is_hard ? as_hard * above * above : 0) + (positive != 0 ? as_positive * below * below : 0);
  slope = static_cast<float>(2 * ((is_hard ? as_hard * above : 0) + (positive != 0 ? as_positive * below : 0)));
  return true;
}

// Calls visit(column, used, value, slope) for columns 32 * [first, last) + lane of a row, all lanes of a warp
// together; past the last column nothing is used.
template <class Visit>
__device__ __forceinline__ void visit_columns(const LossRow& row, const RowLabels& labels, const LossShared& shared,
                                              int64_t first, int64_t last, const Visit& visit) {
  const int lane = threadIdx.x % kWarp;
  uint32_t lowest = ~0u;  // below it nothing is a hard negative
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    const auto high = static_cast<uint32_t>(shared.selection.smallest[k] >> 32);
    lowest = high < lowest ? high : lowest;
  }
  for (int64_t start = first; start < last; start += kWarp) {
    const uint32_t positives_of_lane = start + lane < last ? labels.any(start + lane) : 0;
    const int words = static_cast<int>(last - start < kWarp ? last - start : kWarp);
    for (int word = 0; word < words; ++word) {
      const uint32_t positives = __shfl_sync(kAllLanes, positives_of_lane, word);
      const int64_t column = 32 * (start + word) + lane;
      const bool exists = column < labels.n, is_positive = positives >> lane & 1u;
      const uint32_t ordered = exists ? row.ordered(column) : 0;
      double value = 0;
      float slope = 0;
      bool used = exists && (is_positive || ordered >= lowest);
      if (used) {  // few
        used = column_loss(shared, key_at(ordered, static_cast<int32_t>(column)),
                           is_positive ? labels.positive_in(column) : 0, value, slope);
      }
      visit(column, used, value, slope);
    }
  }
}

// The loss of row b and either its dense gradient or the entries of it that are not 0, by rising column.
__device__ void hard_negative_row(const LabelLoss& loss, int64_t b, const LossRow& row, LossShared& shared,
                                  double* row_loss, float* grad, Entry* entries, int32_t* entry_count) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const RowLabels labels = labels_of_row(loss, b);
  weigh_row(loss, labels, shared);
  select_hard_negatives(row, labels, shared.weights.wanted, shared.selection);
  // Each warp has a range of columns to itself, so that entries can be put in their order.
  const int64_t words = (loss.n + 31) / 32, words_of_warp = (words + kLossWarps - 1) / kLossWarps;
  const int64_t first = warp * words_of_warp;
  const int64_t last = first + words_of_warp < words ? first + words_of_warp : words;
  double total = 0;
  if (entries == nullptr) {
    visit_columns(row, labels, shared, first, last, [&](int64_t column, bool, double value, float slope) {
      total += value;
      if (column < labels.n) grad[column] = slope;
    });
  } else {
    int32_t own = 0;
    visit_columns(row, labels, shared, first, last, [&](int64_t, bool used, double, float) { own += used; });
    own = warp_sum(own);
    if (lane == 0) shared.entries[warp] = own;
    __syncthreads();
    int32_t place = warp_sum(lane < warp ? shared.entries[lane] : 0);
    if (warp == kLossWarps - 1 && lane == 0) *entry_count = place + own;
    visit_columns(row, labels, shared, first, last, [&](int64_t column, bool used, double value, float slope) {
      total += value;
      const unsigned all = __ballot_sync(kAllLanes, used);
      if (used) entries[place + __popc(all & ((1u << lane) - 1))] = {slope, static_cast<int32_t>(column)};
      place += __popc(all);
    });
  }
  total = block_sum(total, shared.parts);
  if (threadIdx.x == 0) *row_loss = total;
}

// kind "mmcl", one block a row; `staged`: the row's keys fit in shared memory. grad [B, n] or entries [B, n] is null.
// Bound by latency: some four passes over a row in shared memory; s is read and the gradient written once.
template <bool staged>
__global__ void __launch_bounds__(kLossThreads, 1)
    hard_negative_loss_kernel(LabelLoss loss, double* row_losses, float* grad, Entry* entries,
                              int32_t* entry_counts) {
  LossShared& shared = *dynamic_shared<LossShared>();
  auto* keys = reinterpret_cast<uint32_t*>(&shared + 1);
  const int64_t b = blockIdx.x, n = loss.n;
  const LossRow row{loss.similarity + b * n, keys, staged};
  if (staged) {
    constexpr int kInFlight = 4;
    const VectorRow vectors(row.values, static_cast<int>(n));
    visit_row<kLossThreads, kInFlight>(vectors, [&](const auto& values, int column) {
      for (float value : values) keys[column++] = ordered_bits(value);
    });
  }
  hard_negative_row(loss, b, row, shared, row_losses + b, grad == nullptr ? nullptr : grad + b * n,
                    entries == nullptr ? nullptr : entries + b * n,
                    entry_counts == nullptr ? nullptr : entry_counts + b);
}

constexpr int kSquareThreads = 256;
constexpr int kSquareColumns = 4096;  // of a block

// kind "l2", one block for kSquareColumns columns of a row: their part of the loss and the gradient. With the mean
// label ȳ, y² = y gives Σ_k λ_k (s − y_k)² = s² + ȳ (1 − 2 s). Bound by memory: s read and the gradient written once.
static __global__ void __launch_bounds__(kSquareThreads) square_loss_kernel(LabelLoss loss, int64_t blocks_of_row,
                                                                            double* parts_of_loss, float* grad) {
  __shared__ double parts[kSquareThreads / kWarp];
  __shared__ uint32_t positives[kSquareColumns / 32];  // in some set
  const int64_t b = blockIdx.x / blocks_of_row, first = blockIdx.x % blocks_of_row * kSquareColumns;
  const int64_t end = first + kSquareColumns < loss.n ? first + kSquareColumns : loss.n;
  const float* row = loss.similarity + b * loss.n;
  const RowLabels labels = labels_of_row(loss, b);
  const float scale = static_cast<float>(2.0 / static_cast<double>(loss.batch_size));
  double total = 0;
  if (threadIdx.x < kSquareColumns / 32) positives[threadIdx.x] = labels.any(first / 32 + threadIdx.x);
  __syncthreads();
  constexpr int kInFlight = 8;
  for (int64_t start = first + threadIdx.x; start < end; start += kInFlight * kSquareThreads) {
    float similarity[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t column = start + i * kSquareThreads;
      similarity[i] = column < end ? __ldg(row + column) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t column = start + i * kSquareThreads;
      if (column >= end) break;
      double mean = 0;
      if (positives[(column - first) / 32] >> (column % 32) & 1u) {
        const unsigned positive = labels.positive_in(column);
#pragma unroll
        for (int k = 0; k < kMostSets; ++k) mean += positive >> k & 1u ? loss.weights[k] : 0.0;
        // What is infinite has that square whatever its label.
        if (is_finite(similarity[i])) total += mean * (1 - 2 * static_cast<double>(similarity[i]));
      }
      total += static_cast<double>(similarity[i]) * static_cast<double>(similarity[i]);
      grad[b * loss.n + column] = scale * (similarity[i] - static_cast<float>(mean));
    }
  }
  total = block_sum(total, parts);
  if (threadIdx.x == 0) parts_of_loss[blockIdx.x] = total / static_cast<double>(loss.batch_size);
}

constexpr int kSumThreads = 256;

// loss = the sum of parts [count], by one block.
__device__ void sum_loss(const double* parts_of_loss, int64_t count, float* loss, double* parts) {
  double total = 0;
  for (int64_t part = threadIdx.x; part < count; part += kSumThreads) total += parts_of_loss[part];
  total = block_sum(total, parts);
  if (threadIdx.x == 0) *loss = static_cast<float>(total);
}

static __global__ void __launch_bounds__(kSumThreads)
    sum_loss_kernel(const double* parts_of_loss, int64_t count, float* loss) {
  __shared__ double parts[kSumThreads / kWarp];
  sum_loss(parts_of_loss, count, loss, parts);
}

// ---- The product of gradient rows that are kept as entries and the memory.

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
