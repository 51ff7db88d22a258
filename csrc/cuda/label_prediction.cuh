// Label prediction (MPLP) over the similarity cache: device code of three launches.
//
//   select   a block a sample: its candidates, ordered, and the nearest other image, from one read of its row
//   count    the whole GPU over all (sample, candidate) pairs: which candidates are not cycle consistent
//   decide   a block a sample: the candidates before the first inconsistent one, as bits
//
// The decision needs one comparison a candidate: the positives are those whose key lies above the largest key of an
// inconsistent candidate, and the first two. So candidates are counted all at once rather than one after the other,
// and one is given up when an inconsistent one before it is known.
//
// Up to kListed candidates of a sample are listed (2 KB of scratch a sample). Where there are more, the sample's
// label row holds them as bits until the decision, and they are counted by words of 32 columns.
#pragma once

#include "../common/walk.h"
#include "label_words.cuh"
#include "rows.cuh"

namespace snnet {

constexpr int kListed = 256;
constexpr int kSelectThreads = 1024;
constexpr int kCountThreads = 256;
constexpr int kCountBlocks = 6;  // on a multiprocessor
constexpr int kDecideThreads = 512;
constexpr int kRowLoads = 4;  // 16-byte loads of a thread in flight

struct PredictionOptions {
  float threshold;
  int64_t min_rank;
  bool strict;
};

// What one sample asks of the count: the last `items` of its listed candidates, else `items` words of its label row.
struct Plan {
  int candidates, items;
};

// Between the launches. Keys fall; of a sample with more candidates than fit only the first two are set.
struct Scratch {
  Key* keys;     // [B, kListed]
  Key* barrier;  // [B] the largest key of an inconsistent candidate, 0 while there is none
  Plan* plans;   // [B]
};

// The label rows of a batch as 32-bit words [B, words]; words is a multiple of 4.
struct LabelRows {
  unsigned* bits;
  int64_t words;

  __device__ __forceinline__ unsigned* row(int64_t b) const { return bits + b * words; }
};

// What is read of P before it changes: y_sym [B, vectors] from its transpose and y_nh from its rows.
struct Inquiry {
  const uint4* rows;
  const uint4* columns;
  uint4* symmetric;
  uint4* neighbor;
  int64_t vectors;

  __device__ __forceinline__ void copy(int64_t b, int own, Key nearest) const {
    const uint4* from_columns = columns + own * vectors;
    const uint4* from_rows = rows + column_of_key(nearest) * vectors;
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
      const uint4 sym = from_columns[v], nh = nearest != 0 ? from_rows[v] : make_uint4(0, 0, 0, 0);
      symmetric[b * vectors + v] = sym;
      neighbor[b * vectors + v] = nh;
    }
  }
};

// ---- Select.

// Appends the candidates among neighbouring entries to the list, as far as it goes, and counts them in *found.
template <int kCount>
__device__ __forceinline__ void list_candidates(const float (&values)[kCount], int column, float threshold, int* found,
                                                Key* listed) {
  int candidates = 0;
  for (int i = 0; i < kCount; ++i) candidates += values[i] > threshold;
  if (candidates == 0) return;
  int place = atomicAdd(found, candidates);
  for (int i = 0; i < kCount; ++i) {
    if (!(values[i] > threshold)) continue;
    if (place < kListed) listed[place] = selection_key(values[i], column + i);
    ++place;
  }
}

// The candidates of an overflowing row as bits of its label row; returns their two largest keys. Barriers.
__device__ __forceinline__ void mark_candidates(const VectorRow& row, float threshold, unsigned* bits, int64_t words,
                                                Key* parts, Key& first, Key& second) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Key largest = 0, next = 0;  // of this thread
  for (int64_t word = threadIdx.x / kWarp; word < words; word += kSelectThreads / kWarp) {
    const int64_t column = kWarp * word + lane;
    const bool candidate = column < row.n && row.row[column] > threshold;
    const unsigned candidates = __ballot_sync(kAllLanes, candidate);
    if (lane == 0) bits[word] = candidates;
    const Key key = candidate ? selection_key(row.row[column], static_cast<int32_t>(column)) : 0;
    next = key > largest ? largest : key > next ? key : next;
    largest = key > largest ? key : largest;
  }
  __syncthreads();
  first = block_largest<kSelectThreads>(largest, parts);
  __syncthreads();
  second = block_largest<kSelectThreads>(largest == first ? next : largest, parts);
}

// Latency bound: the index, the row with all its loads in flight, the neighbour's labels. 4 B n bytes are read.
__global__ void __launch_bounds__(kSelectThreads)
    mplp_select_kernel(Batch batch, PredictionOptions options, Scratch scratch, LabelRows labels, Inquiry inquiry) {
  __shared__ Key listed[kListed];
  __shared__ Key parts[kSelectThreads / kWarp];
  __shared__ int found;
  const int64_t b = blockIdx.x;
  const int own = batch.own(b);
  const VectorRow row(batch.row(b, own), batch.n);
  if (threadIdx.x == 0) found = 0;
  __syncthreads();

  NearestOther other{own};
  visit_row<kSelectThreads, kRowLoads>(row, [&](const auto& values, int column) {
    other.look(values, column);
    list_candidates(values, column, options.threshold, &found, listed);
  });
  const Key nearest = block_largest<kSelectThreads>(other.key, parts);  // its barrier completes the list
  if (inquiry.rows != nullptr) inquiry.copy(b, own, nearest);

  const int candidates = found;
  Key* keys = scratch.keys + b * kListed;
  int items = 0;
  if (candidates <= kListed) {
    for (int e = static_cast<int>(threadIdx.x); e < candidates; e += kSelectThreads) {
      int place = 0;
      for (int f = 0; f < candidates; ++f) place += listed[f] > listed[e];
      keys[place] = listed[e];
    }
    items = candidates;
  } else {
    Key first, second;
    mark_candidates(row, options.threshold, labels.row(b), labels.words, parts, first, second);
    if (threadIdx.x == 0) {
      keys[0] = first;
      keys[1] = second;
    }
    items = (row.n + kWarp - 1) / kWarp;
  }
  if (threadIdx.x == 0) {
    const int64_t rank = largest_consistent_rank(candidates, options.min_rank, options.strict);
    // The anchor never counts, so no rank can exceed n - 1.
    if (!needs_walk(candidates, options.strict) || rank >= row.n - 1) items = 0;
    // A sample that is its own anchor is consistent: no entry of the row is above the row's largest.
    if (items > 0 && candidates <= kListed && batch.query_rows == nullptr) {
      const float itself = row.row[own];
      if (itself > options.threshold && selection_key(itself, own) > nearest) --items;
    }
    scratch.plans[b] = {candidates, items};
    scratch.barrier[b] = 0;
  }
}

// ---- Count.

// Adds the entries of a row above `bar` to *above (shared, 0 before), until the warp sees more than `rank` of them or
// an inconsistent candidate before this one. Called by all warps.
__device__ __forceinline__ void count_above(const VectorRow& row, float bar, unsigned rank, Key key,
                                            const Key* barrier, unsigned* above) {
  const auto thread = static_cast<int>(threadIdx.x);
  unsigned count = 0;
  if (thread < row.loose()) count = row.row[row.loose_column(thread)] > bar;
  int stop = __shfl_sync(kAllLanes, static_cast<int>(__ldcg(barrier) > key), 0);
  for (int first = thread; !stop; first += kRowLoads * kCountThreads) {
    float4 loaded[kRowLoads];
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int v = first + i * kCountThreads;
      loaded[i] = v < row.vectors ? __ldcs(row.vector(v)) : make_float4(bar, bar, bar, bar);
    }
    const Key known = __ldcg(barrier);
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      count += (loaded[i].x > bar) + (loaded[i].y > bar) + (loaded[i].z > bar) + (loaded[i].w > bar);
    }
    count = __reduce_add_sync(kAllLanes, count);
    if (thread % kWarp == 0) stop = atomicAdd(above, count) + count > rank || known > key;
    stop = __shfl_sync(kAllLanes, stop, 0) || first - thread + kRowLoads * kCountThreads >= row.vectors;
    count = 0;
  }
}

// The next candidate of a word, the most similar first, for all threads; 0 if none is left that could decide.
// `mine` is the key of the column that a lane of the first warp has, 0 where that is no candidate or was taken.
__device__ __forceinline__ Key take_candidate(Key& mine, const Key* barrier, Key* taken) {
  __syncthreads();  // the last one taken has been read
  if (threadIdx.x < kWarp) {
    const Key best = warp_largest(mine);
    if (mine == best) mine = 0;
    if (threadIdx.x == 0) *taken = best > __ldcg(barrier) ? best : 0;
  }
  __syncthreads();
  return *taken;
}

// The sample that an item belongs to: first_item[s] <= item < first_item[s + 1].
__device__ __forceinline__ int sample_of(const int64_t* first_item, int64_t item) {
  int low = 0, high = kCountThreads;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_item[middle] <= item ? low : high) = middle;
  }
  return low;
}

// Bandwidth bound: every candidate's row at most once, 4 n bytes each, less what the two ways out save.
__global__ void __launch_bounds__(kCountThreads, kCountBlocks)
    mplp_count_kernel(Batch batch, PredictionOptions options, Scratch scratch, LabelRows labels) {
  __shared__ int64_t first_item[kCountThreads + 1];
  __shared__ int64_t parts[kCountThreads / kWarp];
  __shared__ Plan plans[kCountThreads];
  __shared__ Key taken;
  __shared__ unsigned above;
  const auto thread = static_cast<int>(threadIdx.x);
  int64_t numbered = 0;  // items of earlier groups
  for (int64_t group = 0; group < batch.size; group += kCountThreads) {
    plans[thread] = group + thread < batch.size ? scratch.plans[group + thread] : Plan{0, 0};
    first_item[thread + 1] = block_running_sum<kCountThreads>(plans[thread].items, parts);
    if (thread == 0) first_item[0] = 0;
    __syncthreads();
    // Of all items every gridDim.x-th is this block's; those of a sample come in the order of its candidates.
    int64_t item = (blockIdx.x + gridDim.x - numbered % gridDim.x) % gridDim.x;
    for (; item < first_item[kCountThreads]; item += gridDim.x) {
      const int sample = sample_of(first_item, item);
      const Plan plan = plans[sample];
      const int64_t b = group + sample;
      const auto place = static_cast<int>(item - first_item[sample]);
      const Key* keys = scratch.keys + b * kListed;
      const Key* barrier = scratch.barrier + b;
      const bool listed = plan.candidates <= kListed;
      const auto rank =
          static_cast<unsigned>(largest_consistent_rank(plan.candidates, options.min_rank, options.strict));
      Key mine = 0;
      if (!listed && thread < kWarp && (labels.row(b)[place] >> thread & 1) != 0) {
        const int column = kWarp * place + thread;
        mine = selection_key(batch.row(b, batch.own(b))[column], column);
      }
      Key key = listed ? keys[plan.candidates - plan.items + place] : take_candidate(mine, barrier, &taken);
      while (key != 0) {
        if (thread == 0) above = 0;
        __syncthreads();
        const VectorRow row(batch.cache_row(column_of_key(key)), batch.n);
        count_above(row, row.row[column_of_key(keys[0])], rank, key, barrier, &above);
        __syncthreads();
        if (thread == 0 && above > rank) atomicMax(scratch.barrier + b, key);
        key = listed ? 0 : take_candidate(mine, barrier, &taken);
      }
    }
    numbered += first_item[kCountThreads];
  }
}

// ---- Decide.

// The bits of one word of a label row, but its own image's. Listed: `count` positive columns; else those of the
// candidates in `marked` whose key is at least `lowest`.
__device__ __forceinline__ unsigned bits_of_word(int word, const int* positives, int count) {
  unsigned bits = 0;
  for (int e = 0; e < count; ++e) {
    if (positives[e] / kWarp == word) bits |= 1u << positives[e] % kWarp;
  }
  return bits;
}

__device__ __forceinline__ unsigned bits_of_word(int word, unsigned marked, const float* row, Key lowest) {
  unsigned bits = 0;
  for (; marked != 0; marked &= marked - 1) {
    const int column = kWarp * word + __ffs(static_cast<int>(marked)) - 1;
    if (selection_key(row[column], column) >= lowest) bits |= marked & (0u - marked);
  }
  return bits;
}

// A block a sample: its label row and, where P is given, P[index] and its transpose. Latency bound.
__global__ void __launch_bounds__(kDecideThreads, 2)
    mplp_decide_kernel(Batch batch, PredictionOptions options, Scratch scratch, LabelRows labels, LabelMemory memory) {
  __shared__ int positives[kListed];
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t b = blockIdx.x;
  const int own = batch.own(b);
  const Key* keys = scratch.keys + b * kListed;
  const int candidates = scratch.plans[b].candidates;
  const bool listed = candidates <= kListed;
  Key lowest = scratch.barrier[b] + 1;  // of a positive key
  if (!options.strict && candidates > 0) {
    const Key second = keys[candidates > 1 ? 1 : 0];
    lowest = second < lowest ? second : lowest;
  }
  int count = 0;  // of the positives, which the list begins with
  for (int first = 0; listed && first < candidates; first += kDecideThreads) {
    const int e = first + thread;
    const bool positive = e < candidates && keys[e] >= lowest;
    if (positive) positives[e] = column_of_key(keys[e]);
    count += __syncthreads_count(positive);
  }
  const bool written = memory.rows != nullptr && is_newest(batch.index, b, batch.size, batch.n);
  for (int word = thread; word < labels.words; word += kDecideThreads) {
    unsigned bits = listed ? bits_of_word(word, positives, count)
                           : bits_of_word(word, labels.row(b)[word], batch.row(b, own), lowest);
    if (own / kWarp == word) bits |= 1u << own % kWarp;
    labels.row(b)[word] = bits;
    if (written) memory.write_word(own, word, bits);
  }
}

}  // namespace snnet
