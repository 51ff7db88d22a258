// The hard negatives of up to three label sets of one row by one radix selection: the block of a row finds, for each
// set, the key of the last of its largest negatives. Keys are those of common/select.h, so ties go to lower columns.
#pragma once

#include "../common/loss.h"
#include "../common/select.h"
#include "device.cuh"

namespace snnet {

constexpr int kLossThreads = 1024;
constexpr int kLossWarps = kLossThreads / kWarp;
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
static_assert(kBins == 2 * kLossThreads);

// A row of similarities as ordered_bits: in shared memory where it fits, else made from the row each time.
struct LossRow {
  const float* values;
  const uint32_t* keys;
  bool staged;  // keys [n] are there

  __device__ __forceinline__ uint32_t ordered(int64_t column) const {
    return staged ? keys[column] : ordered_bits(__ldg(values + column));
  }
};

// The labels of one row [n]: bit column % 32 of word column / 32.
struct RowLabels {
  const uint32_t* words[kMostSets];
  int sets;
  int64_t n;

  // Bits past the last column are 0 here.
  __device__ __forceinline__ uint32_t word(int set, int64_t at) const {
    const int64_t left = n - 32 * at;
    return set < sets && left > 0 ? __ldg(words[set] + at) & (left < 32 ? (1u << left) - 1 : ~0u) : 0;
  }
  // The columns of a word that are positive in some set.
  __device__ __forceinline__ uint32_t any(int64_t at) const {
    uint32_t columns = 0;
#pragma unroll
    for (int k = 0; k < kMostSets; ++k) columns |= word(k, at);
    return columns;
  }
  // The sets in which the column is positive, as a mask.
  __device__ __forceinline__ unsigned positive_in(int64_t column) const {
    unsigned mask = 0;
#pragma unroll
    for (int k = 0; k < kMostSets; ++k) mask |= (word(k, column / 32) >> (column % 32) & 1u) << k;
    return mask;
  }
};

// What is known of each set's threshold: the digits so far, how many of the keys that share them are still to be
// taken, and whether that is not yet all of them.
struct Thresholds {
  uint64_t prefix[kMostSets];
  int32_t left[kMostSets];
  bool open[kMostSets];
};

struct SelectionShared {
  int32_t histogram[kMostSets + 1][kBins];  // the last: for every set, while their prefixes are alike
  int32_t warp_totals[kMostSets][kLossWarps];
  Thresholds thresholds;
  uint64_t smallest[kMostSets];
};

// The digit of a key at `shift`, and the open sets whose prefix the key has.
struct KeyDigit {
  unsigned digit, sets;
};

__device__ __forceinline__ KeyDigit digit_of(uint64_t key, int shift, int bits, const Thresholds& known) {
  const int above = shift + bits;
  KeyDigit found{static_cast<unsigned>(key >> shift) & ((1u << bits) - 1), 0};
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    const bool shares = known.open[k] && (above == 64 || key >> (above % 64) == known.prefix[k]);
    found.sets |= shares ? 1u << k : 0u;
  }
  return found;
}

// Counts the digit at `shift` of the keys whose higher digits are a set's prefix: first of all columns, then a set's
// few positives are taken off.
__device__ void count_digits(const LossRow& row, const RowLabels& labels, int shift, int bits, const Thresholds& known,
                             bool alike, SelectionShared& shared) {
  for (int bin = threadIdx.x; bin < (kMostSets + 1) * kBins; bin += kLossThreads) (&shared.histogram[0][0])[bin] = 0;
  __syncthreads();
  constexpr int kInFlight = 4;  // columns of a thread whose loads are on their way at once
  for (int64_t first = threadIdx.x; first < labels.n; first += kInFlight * kLossThreads) {
    uint32_t ordered[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t column = first + i * kLossThreads;
      ordered[i] = column < labels.n ? row.ordered(column) : 0;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t column = first + i * kLossThreads;
      const KeyDigit own = digit_of(key_at(ordered[i], static_cast<int32_t>(column)), shift, bits, known);
      if (column >= labels.n || own.sets == 0) continue;
      if (alike) {
        atomicAdd(&shared.histogram[kMostSets][own.digit], 1);
        continue;
      }
#pragma unroll
      for (int k = 0; k < kMostSets; ++k) {
        if (own.sets >> k & 1u) atomicAdd(&shared.histogram[k][own.digit], 1);
      }
    }
  }
  for (int64_t word = threadIdx.x; word < (labels.n + 31) / 32; word += kLossThreads) {
    for (uint32_t left = labels.any(word); left != 0; left &= left - 1) {
      const int64_t column = 32 * word + lowest_bit(left);
      const uint64_t key = key_at(row.ordered(column), static_cast<int32_t>(column));
      const KeyDigit own = digit_of(key, shift, bits, known);
      if (own.sets == 0) continue;
      const unsigned positive = labels.positive_in(column);
#pragma unroll
      for (int k = 0; k < kMostSets; ++k) {
        if ((own.sets & positive) >> k & 1u) atomicAdd(&shared.histogram[k][own.digit], -1);
      }
    }
  }
  __syncthreads();
}

// From the counts, the digit of each set's threshold. Every thread looks at two bins, from the largest digit down.
__device__ void choose_digits(int shift, int bits, const Thresholds& known, bool alike, SelectionShared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int digit = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
  int32_t count[kMostSets], both[kMostSets], total[kMostSets];
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    count[k] = shared.histogram[k][digit] + (alike ? shared.histogram[kMostSets][digit] : 0);
    both[k] = count[k] + shared.histogram[k][digit - 1] + (alike ? shared.histogram[kMostSets][digit - 1] : 0);
    total[k] = warp_sum(both[k]);
    if (lane == 0) shared.warp_totals[k][warp] = total[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMostSets; ++k) {
    int32_t left = known.left[k] - warp_sum(lane < warp ? shared.warp_totals[k][lane] : 0);
    if (!known.open[k] || left <= 0 || left > total[k]) continue;  // another warp has the digit
    int32_t up_to = both[k];
    for (int step = 1; step < kWarp; step *= 2) {
      const int32_t before = __shfl_up_sync(kAllLanes, up_to, step);
      if (lane >= step) up_to += before;
    }
    left -= up_to - both[k];
    if (left <= 0 || left > both[k]) continue;
    const bool first = left <= count[k];
    const uint64_t prefix = known.prefix[k] << bits | static_cast<uint64_t>(first ? digit : digit - 1);
    const int32_t still = first ? left : left - count[k], sharing = first ? count[k] : both[k] - count[k];
    shared.thresholds.prefix[k] = prefix;
    shared.thresholds.left[k] = still;
    shared.thresholds.open[k] = still != sharing;
    shared.smallest[k] = prefix << shift;
  }
  __syncthreads();
}

// For each set the smallest key of its `wanted` largest negatives, to shared.smallest; wanted is at most the number
// of negatives, and 0 gives a key that none has.
__device__ void select_hard_negatives(const LossRow& row, const RowLabels& labels,
                                      const int32_t (&wanted)[kMostSets], SelectionShared& shared) {
  if (threadIdx.x == 0) {
    for (int k = 0; k < kMostSets; ++k) {
      shared.thresholds.prefix[k] = 0;
      shared.thresholds.left[k] = wanted[k];
      shared.thresholds.open[k] = wanted[k] > 0;
      shared.smallest[k] = ~uint64_t{0};
    }
  }
  __syncthreads();
  for (int above = 64; above > 0;) {
    const Thresholds known = shared.thresholds;
    bool open = false, alike = true;
    uint64_t prefix = 0;
#pragma unroll
    for (int k = 0; k < kMostSets; ++k) {
      if (!known.open[k]) continue;
      alike = alike && (!open || known.prefix[k] == prefix);
      prefix = known.prefix[k];
      open = true;
    }
    if (!open) break;
    const int bits = above < kDigitBits ? above : kDigitBits;
    above -= bits;
    count_digits(row, labels, above, bits, known, alike, shared);
    choose_digits(above, bits, known, alike, shared);
  }
}

}  // namespace snnet
