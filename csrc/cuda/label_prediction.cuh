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

#include "../common/walk.h"
#include "cache_blocks.cuh"
#include "label_words.cuh"
#include "rows.cuh"

namespace snnet {

constexpr int kListed = 256;
constexpr int kSelectThreads = 1024;
constexpr int kCountThreads = 256;
// Blocks of a multiprocessor; a candidate is counted by kGroup threads, a block or a warp.
template <int kGroup>
constexpr int kCountBlocks = kGroup == kWarp ? 4 : 6;
constexpr int kDecideThreads = 512;
constexpr int kRowLoads = 4;     // 16-byte loads of a thread in flight
constexpr int kBlockLoads = 16;  // the same of 4 bytes, a marked block each

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

// Threads that count a candidate together: the block reads its whole row, a warp the marked blocks of it.
template <int kGroup>
__device__ __forceinline__ void group_barrier() {
  if constexpr (kGroup == kWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// What a group shares.
template <int kGroup>
struct CountShared {
  static constexpr int kMarks = kWarp * kWarp;  // blocks that 32 words of marks stand for
  Key taken;
  unsigned above;
  uint16_t marked[kGroup == kWarp ? kMarks : 1];  // places of marked blocks among them
};

// Adds the entries of a row above `bar` to *above (shared, 0 before), until the warp sees more than `rank` of them or
// an inconsistent candidate before this one. Called by all warps of a group, `thread` is the place in it.
template <int kGroup>
__device__ __forceinline__ void count_above(const VectorRow& row, float bar, unsigned rank, Key key,
                                            const Key* barrier, unsigned* above, int thread) {
  constexpr int kLoads = kGroup == kWarp ? 2 * kRowLoads : kRowLoads;  // a warp alone has fewer in flight
  unsigned count = 0;
  if (thread < row.loose()) count = row.row[row.loose_column(thread)] > bar;
  int stop = __shfl_sync(kAllLanes, static_cast<int>(__ldcg(barrier) > key), 0);
  for (int first = thread; !stop; first += kLoads * kGroup) {
    float4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int v = first + i * kGroup;
      loaded[i] = v < row.vectors ? __ldcs(row.vector(v)) : make_float4(bar, bar, bar, bar);
    }
    const Key known = __ldcg(barrier);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      count += (loaded[i].x > bar) + (loaded[i].y > bar) + (loaded[i].z > bar) + (loaded[i].w > bar);
    }
    count = __reduce_add_sync(kAllLanes, count);
    if (thread % kWarp == 0) stop = atomicAdd(above, count) + count > rank || known > key;
    stop = __shfl_sync(kAllLanes, stop, 0) || first - thread + kLoads * kGroup >= row.vectors;
    count = 0;
  }
}

// The marked blocks among those of 32 words of marks, a lane a word, listed by one warp; how many.
__device__ __forceinline__ int list_marked(unsigned marks, uint16_t* marked, int lane) {
  const int own = __popc(marks);
  int place = own;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int before = __shfl_up_sync(kAllLanes, place, delta);
    if (lane >= delta) place += before;
  }
  const int found = __shfl_sync(kAllLanes, place, kWarp - 1);
  place -= own;
  __syncwarp();  // the last list has been read
  for (; marks != 0; marks &= marks - 1) {
    marked[place++] = static_cast<uint16_t>(kWarp * lane + __ffs(static_cast<int>(marks)) - 1);
  }
  __syncwarp();
  return found;
}

// *above <- the entries above `bar` in the marked blocks of a row, or some number above `rank`; fewer where an
// inconsistent candidate before this one is known. By one warp, which has kBlockLoads blocks in flight.
__device__ __forceinline__ void count_in_blocks(const float* row, int n, const unsigned* marks, int64_t words,
                                                float bar, unsigned rank, Key key, const Key* barrier,
                                                CountShared<kWarp>& shared, int lane) {
  unsigned count = 0;
  for (int first = 0; first < words && count <= rank; first += kWarp) {
    const unsigned own = first + lane < words ? __ldg(marks + first + lane) : 0u;
    if (__any_sync(kAllLanes, __ldcg(barrier) > key)) break;
    const int found = list_marked(own, shared.marked, lane);
    const int base = kWarp * kBlockColumns * first + lane;
    for (int e = 0; e < found && count <= rank; e += kBlockLoads) {
      float loaded[kBlockLoads];
#pragma unroll
      for (int i = 0; i < kBlockLoads; ++i) {
        const int column = e + i < found ? base + kBlockColumns * shared.marked[e + i] : n;
        loaded[i] = column < n ? __ldg(row + column) : bar;
      }
#pragma unroll
      for (int i = 0; i < kBlockLoads; ++i) count += __popc(__ballot_sync(kAllLanes, loaded[i] > bar));
    }
  }
  if (lane == 0) shared.above = count;
}

// The next candidate of a word, the most similar first, for all threads of a group; 0 if none is left that could
// decide. `mine` is the key of the column that a lane of its first warp has, 0 where that is no candidate or was taken.
template <int kGroup>
__device__ __forceinline__ Key take_candidate(Key& mine, const Key* barrier, Key* taken, int thread) {
  group_barrier<kGroup>();  // the last one taken has been read
  if (thread < kWarp) {
    const Key best = warp_largest(mine);
    if (mine == best) mine = 0;
    if (thread == 0) *taken = best > __ldcg(barrier) ? best : 0;
  }
  group_barrier<kGroup>();
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

// A group a candidate, all candidates of the batch at once. By whole rows bandwidth bound: 4 n bytes a candidate, less
// what the two ways out save. By marked blocks latency bound: its key, its marks and its bar, its blocks.
template <int kGroup>
__global__ void __launch_bounds__(kCountThreads, kCountBlocks<kGroup>)
    mplp_count_kernel(Batch batch, CacheBlocks blocks, PredictionOptions options, Scratch scratch, LabelRows labels) {
  constexpr int kGroups = kCountThreads / kGroup;
  __shared__ int64_t first_item[kCountThreads + 1];
  __shared__ int64_t parts[kCountThreads / kWarp];
  __shared__ Plan plans[kCountThreads];
  __shared__ CountShared<kGroup> of_groups[kGroups];
  CountShared<kGroup>& shared = of_groups[threadIdx.x / kGroup];
  const int thread = static_cast<int>(threadIdx.x) % kGroup;  // of the group
  const int64_t groups = static_cast<int64_t>(gridDim.x) * kGroups;
  const int64_t group = blockIdx.x + static_cast<int64_t>(gridDim.x) * (threadIdx.x / kGroup);
  int64_t numbered = 0;  // items of earlier samples
  for (int64_t first_sample = 0; first_sample < batch.size; first_sample += kCountThreads) {
    const int64_t own = first_sample + threadIdx.x;
    __syncthreads();  // what stands here has been read
    plans[threadIdx.x] = own < batch.size ? scratch.plans[own] : Plan{0, 0};
    first_item[threadIdx.x + 1] = block_running_sum<kCountThreads>(plans[threadIdx.x].items, parts);
    if (threadIdx.x == 0) first_item[0] = 0;
    __syncthreads();
    // Of all items every groups-th is this group's; those of a sample come in the order of its candidates.
    int64_t item = (group + groups - numbered % groups) % groups;
    for (; item < first_item[kCountThreads]; item += groups) {
      const int sample = sample_of(first_item, item);
      const Plan plan = plans[sample];
      const int64_t b = first_sample + sample;
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
      Key key = listed ? keys[plan.candidates - plan.items + place]
                       : take_candidate<kGroup>(mine, barrier, &shared.taken, thread);
      while (key != 0) {
        const int p = column_of_key(key);
        const float* row = batch.cache_row(p);
        const float bar = row[column_of_key(keys[0])];
        if (thread == 0) shared.above = 0;
        group_barrier<kGroup>();
        if constexpr (kGroup == kWarp) {
          if (blocks.hold_all_above(bar)) {
            count_in_blocks(row, batch.n, blocks.row(p), blocks.words, bar, rank, key, barrier, shared,
                            thread);
          } else {
            count_above<kGroup>(VectorRow(row, batch.n), bar, rank, key, barrier, &shared.above, thread);
          }
        } else {
          count_above<kGroup>(VectorRow(row, batch.n), bar, rank, key, barrier, &shared.above, thread);
        }
        group_barrier<kGroup>();
        if (thread == 0 && shared.above > rank) atomicMax(scratch.barrier + b, key);
        key = listed ? 0 : take_candidate<kGroup>(mine, barrier, &shared.taken, thread);
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
