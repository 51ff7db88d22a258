// Label prediction (MPLP) from neighbour lists: device code of four launches.
//
//   select    a block a sample: its candidates, from its list or its query row
//   complete  the whole GPU over slices of the rows whose lists end above the threshold: candidates by products
//   look      a warp a candidate: is it cycle consistent, as its list tells
//   multiply  the whole GPU over slices of the rows whose lists did not tell: ranks by products. The block that ends the
//             last slice of a sample decides: the candidates before the first inconsistent one, as bits
//
// The decision needs one comparison a candidate: the positives are those whose key lies above the largest key of an
// inconsistent candidate, and the first two. So candidates are looked at all at once rather than one after the other,
// and one is given up when an inconsistent one before it is known.
//
// If the list of a sample is complete above the threshold, its candidates fit into the places of a list and are stored
// as keys. A query row or a computed row may have more candidates. Then the sample's label row stores them as bits
// until the decision, and their similarities are read again.
//
// The number of rows to compute is known only on the device. The launch does not depend on it, only the time does.
#pragma once

#include "../common/cycle_check.h"
#include "list_tables.cuh"

namespace snnet {

constexpr int kLabelThreads = 256;
constexpr int kLabelWarps = kLabelThreads / kWarp;
constexpr int kLabelLoads = 4;
constexpr int kFewestKeys = 256;   // of a sample, before its candidates are bits
constexpr int kMostUntold = 4096;  // candidates that the whole GPU multiplies; the others a warp each

// Where the candidates of a sample stand: as keys, as bits of its label row, or as bits once that is multiplied.
enum Source : int32_t { kKeys, kBits, kProducts };

struct LabelPlan {
  int candidates;
  int32_t source;
};

struct Untold {
  Key key;  // of a candidate
  int32_t sample, above;
};

struct LabelScratch {
  Key* keys;                      // [B, places]
  Key* first;                     // [B] the largest key of a candidate, the anchor's
  Key* second;                    // [B] the next one
  Key* inconsistent;              // [B] the largest key of an inconsistent candidate, 0 while there is none
  Key* inconsistent_by_products;  // [B] the same of those that are multiplied
  Key* slices;                    // [B] of all candidates that are multiplied
  Key* finished;                  // [B] of these slices
  LabelPlan* plans;               // [B]
  Untold* untold;                 // [kMostUntold]
  int32_t* untold_count;
  unsigned long long* products;
  int32_t places;
};

// Label rows as 32-bit words [B, words]; words is a multiple of 4.
struct LabelWords {
  unsigned* bits;
  int64_t words;

  __device__ __forceinline__ unsigned* row(int64_t b) const { return bits + b * words; }
  // That a row is multiplied in, of kLabelWarps words each.
  __host__ __device__ __forceinline__ int64_t slices() const { return (words + kLabelWarps - 1) / kLabelWarps; }
};

// The two largest of the keys that a thread sees.
struct TwoLargest {
  Key largest = 0, next = 0;

  __device__ __forceinline__ void see(Key key) {
    next = key > largest ? largest : key > next ? key : next;
    largest = key > largest ? key : largest;
  }
};

__device__ __forceinline__ int64_t rank_of(const LabelPlan& plan, const PredictionOptions& options) {
  return largest_consistent_rank(plan.candidates, options.min_rank);
}

// ---- Select.

static __global__ void __launch_bounds__(kLabelThreads)
    mplp_lists_select_kernel(ListBatch batch, PredictionOptions options, LabelScratch scratch, LabelWords labels) {
  __shared__ Key parts[kLabelWarps];
  __shared__ int found;
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t b = blockIdx.x;
  const int64_t i = batch.own(b);
  const auto n = static_cast<int>(batch.lists.n);
  Key* keys = scratch.keys + b * scratch.places;
  if (thread == 0) found = 0;
  __syncthreads();
  const auto list = [&](float value, int column) {
    if (!(value > options.threshold)) return;
    const int place = atomicAdd(&found, 1);
    if (place < scratch.places) keys[place] = selection_key(value, column);
  };
  int32_t source = kKeys;
  if (batch.query_rows != nullptr) {
    visit_row<kLabelThreads, kLabelLoads>(VectorRow(batch.query_rows + b * n, n), [&](const auto& values, int column) {
      for (const float value : values) list(value, column++);
    });
  } else if (batch.lists.floors[i] > options.threshold) {
    source = kProducts;
  } else {
    const int32_t count = batch.lists.within(batch.lists.counts[i]);
    for (int32_t p = thread; p < count; p += kLabelThreads) {
      list(batch.lists.values_of(i)[p], batch.lists.columns_of(i)[p]);
    }
  }
  __syncthreads();
  TwoLargest own;
  if (found > scratch.places) {
    source = kBits;
    const int lane = thread % kWarp;
    for (int64_t word = thread / kWarp; word < labels.words; word += kLabelWarps) {
      const int64_t column = kWarp * word + lane;
      const float value = column < n ? batch.query_rows[b * n + column] : __builtin_nanf("");
      const unsigned bits = __ballot_sync(kAllLanes, value > options.threshold);
      if (lane == 0) labels.row(b)[word] = bits;
      if (value > options.threshold) own.see(selection_key(value, static_cast<int32_t>(column)));
    }
  } else {
    for (int e = thread; e < found; e += kLabelThreads) own.see(keys[e]);
  }
  const Key first = block_largest<kLabelThreads>(own.largest, parts);
  __syncthreads();
  const Key second = block_largest<kLabelThreads>(own.largest == first ? own.next : own.largest, parts);
  if (thread != 0) return;
  scratch.first[b] = first;
  scratch.second[b] = second;
  scratch.inconsistent[b] = scratch.inconsistent_by_products[b] = 0;
  scratch.slices[b] = scratch.finished[b] = 0;
  scratch.plans[b] = {found, source};
  if (b != 0) return;
  *scratch.untold_count = 0;
  *scratch.products = 0;
}

// ---- Complete.

// A block a slice of kLabelWarps words of a row. Bandwidth bound: 4 d n bytes a row.
static __global__ void __launch_bounds__(kLabelThreads)
    mplp_lists_complete_kernel(ListBatch batch, PredictionOptions options, LabelScratch scratch, LabelWords labels) {
  __shared__ ItemShared<kLabelThreads> shared;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t slices = labels.slices();
  const int64_t items = for_each_item<kLabelThreads, kLabelThreads>(
      batch.size, shared, [&](int64_t b) { return scratch.plans[b].source == kProducts ? slices : 0; },
      [&](int64_t b, int64_t slice, int64_t) {
        const int64_t word = slice * kLabelWarps + threadIdx.x / kWarp;
        if (word >= labels.words) return;
        const float value = products_of_word(batch, batch.own(b), word);
        const bool candidate = value > options.threshold;
        const unsigned bits = __ballot_sync(kAllLanes, candidate);
        if (lane == 0) labels.row(b)[word] = bits;
        if (bits == 0) return;
        const Key key = candidate ? selection_key(value, static_cast<int32_t>(kWarp * word + lane)) : 0;
        const Key largest = warp_largest(key), next = warp_largest(key == largest ? 0 : key);
        if (lane != 0) return;
        atomicAdd(&scratch.plans[b].candidates, __popc(bits));
        for (const Key mine : {largest, next}) {  // every key but the largest of all comes to the second place once
          const Key before = atomicMax(scratch.first + b, mine);
          atomicMax(scratch.second + b, before < mine ? before : mine);
        }
      });
  if (blockIdx.x == 0 && threadIdx.x == 0 && items > 0) *scratch.products = items / slices;
}

// ---- Look.

// Whether more than `rank` images are more similar to p than the anchor is, by a warp.
__device__ __forceinline__ Verdict look(const NeighborLists& lists, int64_t p, int32_t anchor, int64_t rank) {
  const int32_t count = lists.within(lists.counts[p]);
  const int32_t place = find_column(lists.columns_of(p), count, anchor);
  const float* values = lists.values_of(p);
  const float floor = lists.floors[p], bar = place < 0 ? floor : values[place];
  int above = 0;
#pragma unroll 4
  for (int32_t e = static_cast<int>(threadIdx.x) % kWarp; e < count; e += kWarp) above += values[e] > bar;
  return list_verdict(warp_sum(above), rank, place >= 0, bar, floor);
}

// How many of the columns of a word are more similar to p than `bar`, for all lanes of a warp.
__device__ __forceinline__ int above_in_word(const ListBatch& batch, int64_t p, float bar, int64_t word) {
  return __popc(__ballot_sync(kAllLanes, products_of_word(batch, p, word) > bar));
}

// Looks at a candidate of sample b, by a warp.
__device__ __forceinline__ void look_at(const ListBatch& batch, const LabelScratch& scratch, int64_t b, Key key,
                                        int64_t rank, const LabelWords& labels) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (__shfl_sync(kAllLanes, static_cast<int>(__ldcg(scratch.inconsistent + b) > key), 0)) return;
  const int32_t p = column_of_key(key), anchor = column_of_key(scratch.first[b]);
  Verdict verdict = look(batch.lists, p, anchor, rank);
  if (verdict == kUntold) {
    int slot = 0;
    if (lane == 0) slot = atomicAdd(scratch.untold_count, 1);
    slot = __shfl_sync(kAllLanes, slot, 0);
    if (slot < kMostUntold) {
      if (lane != 0) return;
      scratch.untold[slot] = {key, static_cast<int32_t>(b), 0};
      atomicAdd(scratch.slices + b, static_cast<Key>(labels.slices()));
      return;
    }
    const float bar = warp_product(batch.memory_row(p), batch.memory_row(anchor), batch.d);
    int64_t above = 0;
    for (int64_t word = 0; word < labels.words && above <= rank; ++word) above += above_in_word(batch, p, bar, word);
    if (above > rank) verdict = kInconsistent;
    if (lane == 0) atomicAdd(scratch.products, 1ull);
  }
  if (verdict == kInconsistent && lane == 0) atomicMax(scratch.inconsistent + b, key);
}

// A warp a candidate, of bits a word of them. Latency bound: its key, its columns, its values.
static __global__ void __launch_bounds__(kLabelThreads, 2)
    mplp_lists_look_kernel(ListBatch batch, PredictionOptions options, LabelScratch scratch, LabelWords labels) {
  __shared__ ItemShared<kLabelThreads> shared;
  for_each_item<kLabelThreads, kWarp>(
      batch.size, shared,
      [&](int64_t b) -> int64_t {
        const LabelPlan plan = scratch.plans[b];
        if (!needs_check(plan.candidates, options.min_rank, batch.lists.n)) return 0;
        return plan.source == kKeys ? plan.candidates : labels.words;
      },
      [&](int64_t b, int64_t item, int64_t) {
        const LabelPlan plan = scratch.plans[b];
        const int64_t rank = rank_of(plan, options);
        if (plan.source == kKeys) {
          look_at(batch, scratch, b, scratch.keys[b * scratch.places + item], rank, labels);
          return;
        }
#pragma unroll 1
        for (unsigned left = labels.row(b)[item]; left != 0; left &= left - 1) {
          const auto column = static_cast<int32_t>(kWarp * item) + __ffs(static_cast<int>(left)) - 1;
          look_at(batch, scratch, b, selection_key(batch.similarity(b, column), column), rank, labels);
        }
      });
}

// ---- Multiply and decide.

// The labels of a sample of which nothing is left to be multiplied, by a block.
__device__ __forceinline__ void decide(const ListBatch& batch, const LabelScratch& scratch, const LabelWords& labels,
                                       int64_t b) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int own = batch.own(b);
  const LabelPlan plan = scratch.plans[b];
  unsigned* row = labels.row(b);
  const Key by_lists = scratch.inconsistent[b], by_products = __ldcg(scratch.inconsistent_by_products + b);
  Key lowest = (by_lists > by_products ? by_lists : by_products) + 1;  // of a positive key
  if (plan.candidates > 0) {
    const Key second = plan.candidates > 1 ? scratch.second[b] : scratch.first[b];
    lowest = second < lowest ? second : lowest;
  }
  if (plan.source == kKeys) {
    for (int64_t word = thread; word < labels.words; word += kLabelThreads) {
      row[word] = word == own / kWarp ? 1u << own % kWarp : 0u;
    }
    __syncthreads();
    const Key* keys = scratch.keys + b * scratch.places;
    for (int e = thread; e < plan.candidates; e += kLabelThreads) {
      const int column = column_of_key(keys[e]);
      if (keys[e] >= lowest) atomicOr(row + column / kWarp, 1u << column % kWarp);
    }
    return;
  }
  for (int64_t word = thread / kWarp; word < labels.words; word += kLabelWarps) {
    unsigned bits = row[word];
    __syncwarp();
#pragma unroll 1
    for (unsigned left = lowest > 1 ? bits : 0u; left != 0; left &= left - 1) {
      const auto column = static_cast<int32_t>(kWarp * word) + __ffs(static_cast<int>(left)) - 1;
      if (selection_key(batch.similarity(b, column), column) < lowest) bits &= ~(left & (0u - left));
    }
    if (word == own / kWarp) bits |= 1u << own % kWarp;
    if (lane == 0) row[word] = bits;
  }
}

// A slice of a candidate whose list did not tell, by a block: how many images there are above the anchor.
__device__ __forceinline__ void multiply_slice(const ListBatch& batch, const PredictionOptions& options,
                                               const LabelScratch& scratch, const LabelWords& labels, Untold* own,
                                               int64_t slice) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Key key = own->key;
  const int64_t b = own->sample, rank = rank_of(scratch.plans[b], options);
  const int64_t word = slice * kLabelWarps + threadIdx.x / kWarp;
  if (scratch.inconsistent[b] > key) return;  // what lists tell has decided
  if (slice == 0 && threadIdx.x == 0) atomicAdd(scratch.products, 1ull);
  if (word >= labels.words) return;
  const bool is_known = __ldcg(scratch.inconsistent_by_products + b) >= key || __ldcg(&own->above) > rank;
  if (__shfl_sync(kAllLanes, static_cast<int>(is_known), 0)) return;
  const int32_t p = column_of_key(key), anchor = column_of_key(scratch.first[b]);
  const float bar = warp_product(batch.memory_row(p), batch.memory_row(anchor), batch.d);
  const int above = above_in_word(batch, p, bar, word);
  if (lane != 0 || above == 0) return;
  if (atomicAdd(&own->above, above) + above > rank) atomicMax(scratch.inconsistent_by_products + b, key);
}

// First the samples of which nothing is multiplied, then a block a slice. Bandwidth bound: 4 d n bytes a candidate.
static __global__ void __launch_bounds__(kLabelThreads)
    mplp_lists_multiply_kernel(ListBatch batch, PredictionOptions options, LabelScratch scratch, LabelWords labels) {
  const int64_t slices = labels.slices();
  const int64_t untold = *scratch.untold_count < kMostUntold ? *scratch.untold_count : kMostUntold;
#pragma unroll 1
  for (int64_t b = blockIdx.x; b < batch.size; b += gridDim.x) {
    if (scratch.slices[b] == 0) decide(batch, scratch, labels, b);
  }
#pragma unroll 1
  for (int64_t unit = blockIdx.x; unit < untold * slices; unit += gridDim.x) {
    Untold* own = scratch.untold + unit / slices;
    multiply_slice(batch, options, scratch, labels, own, unit % slices);
    const int64_t b = own->sample;
    if (is_last_block(scratch.finished + b, scratch.slices[b])) decide(batch, scratch, labels, b);
  }
}

}  // namespace snnet
