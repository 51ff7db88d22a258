// Which candidates of a batch are not cycle consistent: the second launch of a label prediction.
#pragma once

#include "label_plan.cuh"

namespace snnet {

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

}  // namespace snnet
