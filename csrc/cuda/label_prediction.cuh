// Label prediction (MPLP) over the similarity cache: device code of three launches.
//
//   select   a block a sample: its candidates, ordered, and the nearest other image, from one read of its row
//   count    the whole GPU over all (sample, candidate) pairs: which candidates are not cycle consistent
//   decide   a block a sample: the candidates before the first inconsistent one, as bits
//
// The decision needs one comparison a candidate: the positives are those whose key lies above the largest key of an
// inconsistent candidate, and the first two. So candidates are counted all at once rather than one after the other,
// and one is given up when an inconsistent one before it is known. With marked blocks a warp counts a candidate and
// reads its marked blocks alone, without them a block of threads reads its whole row.
//
// Up to kListed candidates of a sample are listed (2 KB of scratch a sample). Where there are more, the sample's
// label row holds them as bits until the decision, and they are counted by words of 32 columns.
#pragma once

#include "label_count.cuh"
#include "label_words.cuh"

namespace snnet {

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
