// The momentum update of the memory and of its symmetric neighbour lists: device code of three launches.
//
//   follow   a block a batch entry: its row of the memory, the values of the pairs that it lists with rows outside the
//            batch, and which pairs with those have risen above a floor
//   rank     a row of the batch a block, another row that pairs have risen in a warp: pairs of two batch members, and
//            `last`, the smallest key that a row has room for, where it has no room for all
//   write    the same rows, and those that lose a pair to a full row: each drops, takes and closes up its own entries
//
// In each launch one writer changes an entry, and one the order of a row. A row learns of changes in other rows from
// events on its chain, a linked list. The head of the chain is in `counts`: ~slot of the newest event; the last event
// stores the count itself. So nothing has to be cleared, and no block waits. Both rows of a pair decide from the `last`
// of both, hence from the same bits, whether it has room. If not, both raise their floors. The tables need no mirrors:
// a warp finds an entry in a row by looking through its columns.
//
// A batch entry has a fixed number of events. A pair that has risen and finds none raises the floors of both its rows,
// one that should go and finds none stays listed: lists are complete above their floors all the same.
//
// A repeated index moves its row by all its entries at once, one after the other in batch order: a pair that is not
// listed meets the bounds of all of them.
#pragma once

#include "list_tables.cuh"
#include "memory_update.cuh"

namespace snnet {

constexpr float kResized = 1e-5f;  // a row whose length differed from 1 by more has moved, even without its feature
constexpr int kColumnsAtOnce = 32768;  // a bit each in shared memory
constexpr int kRowLoadsAhead = 4;
constexpr int kMirrorsAtOnce = 4;    // that a warp looks for
constexpr int kFewestEvents = 256;   // of a batch entry, if there are so many images
constexpr int kEventsOfPlace = 2;    // of a batch entry, for each place of a row
constexpr int kPartsOfEvents = 2;    // blocks that share the events of a batch entry

// Something that happens to a row.
struct alignas(16) Event {
  int32_t row;
  int32_t column;  // to be taken, or taken away; -1: only a place became empty
  float value;
  int32_t next;  // on the chain of the row: ~slot, or the count of the row
};

// What the launches know of the first batch entry of an index; row -1: not the first, or out of range.
struct EntryState {
  int32_t row, count;  // and its entries before the update
  int32_t moved;
  int32_t events, displaced;  // that it has written
  float raised;               // by pairs that found no event
  Key last;                   // 0: room for all
};

struct ListUpdate {
  MemoryUpdate rows;
  const float* similarity;  // [B, n], with the memory before the update
  NeighborLists lists;
  // Event slots: `segment` per batch entry for changes of rows outside the batch; with each of these one more, for the
  // pair that it pushes out of its row; and segment + B per batch entry for pairs that its own row pushes out.
  Event* events;
  Key* last;            // of the row of an event, [B, segment]
  EntryState* entries;  // [B]
  float* lengths;       // [B] of the rows before they are divided by them
  float* pairs;         // [B, B] of members that have risen, NaN elsewhere
  int32_t segment;

  __device__ __forceinline__ int32_t first_slots() const { return rows.batch_size * segment; }
  __device__ __forceinline__ int32_t slot(int32_t entry, int32_t event) const { return entry * segment + event; }
  __device__ __forceinline__ int32_t slot_of_displaced(int32_t slot) const { return first_slots() + slot; }
  __device__ __forceinline__ int32_t slot_of_own(int32_t entry, int32_t displaced) const {
    return 2 * first_slots() + entry * most_own() + displaced;
  }
  __device__ __forceinline__ int32_t most_own() const { return segment + rows.batch_size; }
  __device__ __forceinline__ int32_t slots() const { return 2 * first_slots() + rows.batch_size * most_own(); }
  __device__ __forceinline__ const float* memory_row(int64_t i) const { return rows.memory + i * rows.d; }

  // Whether an event is a pair that a row outside of the batch may take.
  __device__ __forceinline__ bool is_risen(int32_t slot, const Event& event) const {
    return slot < first_slots() && event.column >= 0;
  }
};

__device__ __forceinline__ Event load_event(const ListUpdate& u, int32_t slot) {
  const int4 words = __ldcg(reinterpret_cast<const int4*>(u.events + slot));  // not from the L1: others write here
  return {words.x, words.y, __int_as_float(words.z), words.w};
}

// Puts an event on the chain of its row: by one thread, while others may do so.
__device__ __forceinline__ void push(const ListUpdate& u, int32_t slot, int32_t row, int32_t column, float value) {
  int32_t* head = u.lists.counts + row;
  int32_t seen = __ldcg(head);
  while (true) {
    u.events[slot] = {row, column, value, seen};
    __threadfence();  // whoever sees the head sees the event
    const int32_t before = atomicCAS(head, seen, ~slot);
    if (before == seen) return;
    seen = before;
  }
}

// visit(slot, event) from `head` on, the newest first, by all threads alike; returns the count at the end.
template <class Visit>
__device__ __forceinline__ int32_t visit_chain(const ListUpdate& u, int32_t head, Visit&& visit) {
  while (head < 0 && ~head < u.slots()) {
    const int32_t slot = ~head;
    const Event event = load_event(u, slot);
    visit(slot, event);
    head = event.next;
  }
  return head;
}

__device__ __forceinline__ void raise_floor(float* floor, float value) {
  value += 0.0f;  // -0 becomes +0
  if (value >= 0.0f) {
    atomicMax(reinterpret_cast<int*>(floor), __float_as_int(value));
  } else {
    atomicMin(reinterpret_cast<unsigned*>(floor), __float_as_uint(value));
  }
}

// ---- Follow.

// A row of the batch that has moved.
struct MovedRow {
  int32_t entry, row, occurrences;
  float alpha, beta;
  bool afresh;   // old error would grow
  bool resized;  // it was not of length 1: for a momentum of 1 all that moves it
  float length;  // of the last occurrence
};

struct FollowShared {
  BlendShared blend;
  unsigned is_known[kColumnsAtOnce / kWarp];  // columns of the batch, and what the row lists
  int32_t events;
  float raised[kUpdateWarps];
};

// Blends the row with all entries of its index; whether it has moved.
__device__ __forceinline__ bool move_entry(const ListUpdate& u, MovedRow& moved, FollowShared& shared) {
  bool any = false;
  blend_entries(u.rows, moved.entry, moved.occurrences, shared.blend, [&](int32_t b, float length) {
    moved.afresh = moved.afresh || error_grows(length, moved.alpha);
    moved.resized = moved.resized || fabsf(length - 1.0f) > kResized;
    moved.length = length;
    any = any || is_finite(length);
    if (threadIdx.x == 0) u.lengths[b] = length;
  });
  return any;
}

// `value` of a pair with row l, moved by all entries of the index; each step adds the slack to what it divides.
__device__ __forceinline__ float follow(const ListUpdate& u, const MovedRow& moved, float value, int64_t l,
                                        float slack) {
#pragma unroll 1
  for (int32_t b = moved.entry, left = moved.occurrences; left > 0; ++b) {
    if (u.rows.index[b] != moved.row) continue;
    --left;
    const float length = u.lengths[b];
    if (!is_finite(length)) continue;
    value = (blended(value, u.similarity[b * u.rows.n + l], moved.alpha, moved.beta) + slack) / length;
  }
  return value;
}

// The new value of a listed pair, which is dropped where it is at or below both floors: by one thread.
__device__ __forceinline__ void follow_pair(const ListUpdate& u, const MovedRow& moved, int64_t l, int32_t place,
                                            int32_t mirror, float value, float own_floor, FollowShared& shared) {
  u.lists.values_of(moved.row)[place] = value;
  if (mirror >= 0) u.lists.values_of(l)[mirror] = value;
  if (value > own_floor || value > u.lists.floors[l]) return;
  const int32_t event = atomicAdd(&shared.events, 1);
  if (event >= u.segment) return;  // stays
  u.lists.columns_of(moved.row)[place] = -1;
  if (mirror >= 0) u.lists.columns_of(l)[mirror] = -1;
  push(u, u.slot(moved.entry, event), static_cast<int32_t>(l), -1, value);
}

// New values of listed pairs with rows in [begin, end) outside of the batch; marks what is listed there.
__device__ __forceinline__ void follow_listed(const ListUpdate& u, const MovedRow& moved, int32_t count, int64_t begin,
                                              int64_t end, FollowShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = moved.row;
  const int32_t* columns = u.lists.columns_of(i);
  const float* values = u.lists.values_of(i);
  const float own_floor = u.lists.floors[i];
#pragma unroll 1
  for (int32_t first = static_cast<int32_t>(threadIdx.x) - lane; first < count; first += kUpdateThreads) {
    const int32_t place = first + lane;
    const int64_t column = place < count ? columns[place] : -1;
    bool followed = false;
    if (column >= begin && column < end) {
      const auto bit = static_cast<int>(column - begin);
      followed = (atomicOr(shared.is_known + bit / kWarp, 1u << bit % kWarp) >> bit % kWarp & 1) == 0;
    }
    const float blend = followed && !moved.afresh ? follow(u, moved, values[place], column, 0.0f) : 0.0f;
    unsigned left = __ballot_sync(kAllLanes, followed);
#pragma unroll 1
    while (left != 0) {
      int sources[kMirrorsAtOnce];
      const int32_t* others[kMirrorsAtOnce];
      int32_t mirrors[kMirrorsAtOnce];
      int taken = 0;
#pragma unroll
      for (int m = 0; m < kMirrorsAtOnce; ++m) {  // the last one again where fewer are left
        if (left != 0) {
          sources[m] = __ffs(static_cast<int>(left)) - 1;
          ++taken;
        } else {
          sources[m] = sources[m - 1];
        }
        left &= left - 1;
        others[m] = u.lists.columns_of(__shfl_sync(kAllLanes, static_cast<int32_t>(column), sources[m]));
      }
      find_column(others, u.lists.capacity, moved.row, mirrors);
#pragma unroll
      for (int m = 0; m < kMirrorsAtOnce; ++m) {
        if (m >= taken) break;
        const int64_t l = __shfl_sync(kAllLanes, static_cast<int32_t>(column), sources[m]);
        float value = __shfl_sync(kAllLanes, blend, sources[m]);
        if (moved.afresh) value = warp_product(u.memory_row(i), u.memory_row(l), u.rows.d);
        if (lane == 0) follow_pair(u, moved, l, first + sources[m], mirrors[m], value, own_floor, shared);
      }
    }
  }
}

// Pairs with rows in [begin, end) that are not marked as known, and that lie above a floor now.
__device__ __forceinline__ void find_risen(const ListUpdate& u, const MovedRow& moved, int64_t begin, int64_t end,
                                           FollowShared& shared, float& raised) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = moved.row;
  const float own_floor = u.lists.floors[i];
#pragma unroll 1
  for (int64_t first = begin; first < end; first += kRowLoadsAhead * kUpdateThreads) {
    float floor[kRowLoadsAhead], live[kRowLoadsAhead];
#pragma unroll
    for (int k = 0; k < kRowLoadsAhead; ++k) {
      const int64_t l = first + k * kUpdateThreads + threadIdx.x;
      floor[k] = l < end ? u.lists.floors[l] : 0.0f;
      live[k] = l < end ? u.similarity[moved.entry * u.rows.n + l] : 0.0f;
    }
    bool may_rise[kRowLoadsAhead];
#pragma unroll
    for (int k = 0; k < kRowLoadsAhead; ++k) {
      const int64_t l = first + k * kUpdateThreads + threadIdx.x;
      const float bar = floor[k] < own_floor ? floor[k] : own_floor;  // what is not listed is at or below both
      const float bound = moved.occurrences == 1
                              ? (blended(bar, live[k], moved.alpha, moved.beta) + kSlack) / moved.length
                          : l < end ? follow(u, moved, bar, l, kSlack)
                                    : bar;
      may_rise[k] = l < end && bound > bar;
    }
#pragma unroll
    for (int k = 0; k < kRowLoadsAhead; ++k) {
      const int64_t own = first + k * kUpdateThreads + threadIdx.x;
      const auto bit = static_cast<int>(own - begin);
      if (may_rise[k]) may_rise[k] = (shared.is_known[bit / kWarp] >> bit % kWarp & 1) == 0;
#pragma unroll 1
      for (unsigned left = __ballot_sync(kAllLanes, may_rise[k]); left != 0; left &= left - 1) {
        const int64_t l = own - lane + __ffs(static_cast<int>(left)) - 1;
        const float value = warp_product(u.memory_row(i), u.memory_row(l), u.rows.d);
        if (lane != 0 || !(value > own_floor || value > u.lists.floors[l])) continue;
        const int32_t event = atomicAdd(&shared.events, 1);
        if (event < u.segment) {
          const int32_t slot = u.slot(moved.entry, event);
          u.events[u.slot_of_displaced(slot)].row = -1;
          push(u, slot, static_cast<int32_t>(l), moved.row, value);
        } else {
          raise_floor(u.lists.floors + l, value);
          raised = value > raised ? value : raised;
        }
      }
    }
  }
}

// Bound by latency and by the reads of s and of the mirrored entries.
static __global__ void __launch_bounds__(kUpdateThreads, 2) follow_lists_kernel(ListUpdate u) {
  __shared__ FollowShared shared;
  const auto thread = static_cast<int>(threadIdx.x);
  const auto entry = static_cast<int32_t>(blockIdx.x);
  const Turn turn = turn_of(u.rows, entry);
  const int32_t row = column_of_entry(u.rows, entry);
  const bool is_first = turn.earlier == 0 && row < u.rows.n;
  EntryState state{is_first ? row : -1, 0, 0, 0, 0, -__builtin_inff(), 0};
  if (is_first) {
    const float alpha = *u.rows.momentum;
    MovedRow moved{entry, row, turn.same, alpha, 1.0f - alpha, false, false, 0.0f};
    state.count = u.lists.within(u.lists.counts[row]);
    if (thread == 0) shared.events = 0;
    state.moved = move_entry(u, moved, shared);
    float raised = -__builtin_inff();
#pragma unroll 1
    for (int64_t begin = 0; state.moved && begin < u.rows.n; begin += kColumnsAtOnce) {
      const int64_t end = begin + kColumnsAtOnce < u.rows.n ? begin + kColumnsAtOnce : u.rows.n;
      __syncthreads();
      for (int word = thread; word < kColumnsAtOnce / kWarp; word += kUpdateThreads) shared.is_known[word] = 0;
      __syncthreads();
      for (int32_t b = thread; b < u.rows.batch_size; b += kUpdateThreads) {
        const int64_t column = u.rows.index[b];
        if (column < begin || column >= end) continue;
        const auto bit = static_cast<int>(column - begin);
        atomicOr(shared.is_known + bit / kWarp, 1u << bit % kWarp);
      }
      __syncthreads();
      follow_listed(u, moved, state.count, begin, end, shared);
      __syncthreads();
      if (moved.beta > 0.0f || moved.resized) find_risen(u, moved, begin, end, shared, raised);
    }
    if (thread % kWarp == 0) shared.raised[thread / kWarp] = raised;
    __syncthreads();
    for (const float other : shared.raised) state.raised = other > state.raised ? other : state.raised;
    state.events = shared.events < u.segment ? shared.events : u.segment;
  }
  if (thread == 0) u.entries[entry] = state;
}

}  // namespace snnet
