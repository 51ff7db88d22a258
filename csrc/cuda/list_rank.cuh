// The momentum update of neighbour lists, second and third launch: which pairs have room, and the rows that change.
#pragma once

#include "list_update.cuh"

namespace snnet {

constexpr int kMembersAtOnce = 4;  // whose products a warp makes

// ---- Rank.

// Whether a row is in the batch: it has a block of its own.
__device__ __forceinline__ bool is_member(const ListUpdate& u, int32_t row) {
  for (int32_t b = 0; b < u.rows.batch_size; ++b) {
    if (u.entries[b].row == row) return true;
  }
  return false;
}

struct RankShared {
  int32_t parts[kUpdateWarps];
  int32_t displaced;
};

// Pairs of a batch member with the members: products. Each of the two rows makes its own, from the same bits.
__device__ __forceinline__ void multiply_members(const ListUpdate& u, int32_t entry, const EntryState& state) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t i = state.row;
  int32_t* columns = u.lists.columns_of(i);
  const int32_t batch_size = u.rows.batch_size;
#pragma unroll 1
  for (int32_t first = static_cast<int32_t>(threadIdx.x) / kWarp; first < batch_size;
       first += kMembersAtOnce * kUpdateWarps) {
    const float* rows[kMembersAtOnce];
    float products[kMembersAtOnce];
#pragma unroll
    for (int m = 0; m < kMembersAtOnce; ++m) {
      const int32_t b = first + m * kUpdateWarps;
      const int32_t l = b < batch_size ? u.entries[b].row : -1;
      rows[m] = u.memory_row(l < 0 ? i : l);  // its own in place of one that is not there
    }
    warp_products(u.memory_row(i), rows, u.rows.d, products);
#pragma unroll
    for (int m = 0; m < kMembersAtOnce; ++m) {
      const int32_t b = first + m * kUpdateWarps;
      if (b >= batch_size) break;
      const int32_t l = u.entries[b].row;
      float risen = __builtin_nanf("");
      if (l >= 0 && (state.moved || u.entries[b].moved)) {
        const int32_t place = find_column(columns, state.count, l);
        const bool stays = products[m] > u.lists.floors[i] || products[m] > u.lists.floors[l];
        if (stays && place < 0) risen = products[m];
        if (lane == 0 && place >= 0) {
          u.lists.values_of(i)[place] = products[m];
          if (!stays) columns[place] = -1;
        }
      }
      if (lane == 0) u.pairs[static_cast<int64_t>(entry) * batch_size + b] = risen;
    }
  }
}

// A batch member by a block.
__device__ __forceinline__ void rank_entry(const ListUpdate& u, int32_t entry, RankShared& shared) {
  const BlockGroup<kUpdateThreads> group(shared.parts);
  const EntryState state = u.entries[entry];
  const int64_t i = state.row;
  const int32_t* columns = u.lists.columns_of(i);
  const float* values = u.lists.values_of(i);
  const float* pairs = u.pairs + static_cast<int64_t>(entry) * u.rows.batch_size;
  if (group.thread == 0) shared.displaced = 0;
  multiply_members(u, entry, state);
  __syncthreads();
  const auto visit = [&](auto&& show) {
    for (int32_t p = group.thread; p < state.count; p += kUpdateThreads) {
      if (columns[p] >= 0) show(selection_key(values[p], columns[p]));
    }
    for (int32_t e = group.thread; e < state.events; e += kUpdateThreads) {
      const Event event = load_event(u, u.slot(entry, e));
      if (event.column >= 0) show(selection_key(event.value, event.row));
    }
    for (int32_t b = group.thread; b < u.rows.batch_size; b += kUpdateThreads) {
      if (pairs[b] == pairs[b]) show(selection_key(pairs[b], u.entries[b].row));
    }
  };
  int wanted = 0;
  visit([&](Key) { ++wanted; });
  wanted = group.sum(wanted);
  if (wanted <= u.lists.capacity) return;
  const Key last = bar_of_largest(group, u.lists.capacity, visit);
  for (int32_t p = group.thread; p < state.count; p += kUpdateThreads) {
    const int32_t l = columns[p];
    // A member sees by itself that there is no room here.
    if (l < 0 || selection_key(values[p], l) >= last || is_member(u, l)) continue;
    const int32_t displaced = atomicAdd(&shared.displaced, 1);
    if (displaced < u.most_own()) push(u, u.slot_of_own(entry, displaced), l, state.row, values[p]);
  }
  __syncthreads();
  if (group.thread != 0) return;
  u.entries[entry].last = last;
  u.entries[entry].displaced = shared.displaced < u.most_own() ? shared.displaced : u.most_own();
}

// A row outside of the batch that pairs have risen in, by a warp.
__device__ __forceinline__ void rank_row(const ListUpdate& u, int32_t row) {
  const WarpGroup group;
  // Others may push events of a full row meanwhile: all lanes go by one head.
  const int32_t head = __shfl_sync(kAllLanes, __ldcg(u.lists.counts + row), 0);
  __threadfence();
  int risen = 0;
  int32_t rest = 0;  // from there on lanes are too few to hold a key each
  Key held = 0;
  const int32_t count = u.lists.within(visit_chain(u, head, [&](int32_t slot, const Event& event) {
    if (!u.is_risen(slot, event)) return;
    if (risen == group.thread) held = selection_key(event.value, event.column);
    if (risen == kWarp) rest = ~slot;
    ++risen;
  }));
  const int32_t* columns = u.lists.columns_of(row);
  const float* values = u.lists.values_of(row);
  const auto visit = [&](auto&& show) {
    for (int32_t p = group.thread; p < count; p += kWarp) {
      if (columns[p] >= 0) show(selection_key(values[p], columns[p]));
    }
    if (held != 0) show(held);
    if (group.thread != 0) return;
    visit_chain(u, rest, [&](int32_t slot, const Event& event) {
      if (u.is_risen(slot, event)) show(selection_key(event.value, event.column));
    });
  };
  int wanted = 0;
  visit([&](Key) { ++wanted; });
  Key last = 0;
  if (group.sum(wanted) > u.lists.capacity) last = bar_of_largest(group, u.lists.capacity, visit);
  int32_t at = head;  // each pair that has risen may push out one other
  visit_chain(u, head, [&](int32_t slot, const Event& event) {
    if (group.thread == 0 && u.is_risen(slot, event)) u.last[slot] = last;
  });
  for (int32_t first = 0; last != 0 && first < count; first += kWarp) {
    const int32_t p = first + group.thread;
    const int32_t l = p < count ? columns[p] : -1;
    const float value = l >= 0 ? values[p] : 0.0f;
    const bool is_out = l >= 0 && selection_key(value, l) < last;
#pragma unroll 1
    for (unsigned left = __ballot_sync(kAllLanes, is_out); left != 0; left &= left - 1) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      int32_t slot = -1;
      while (at < 0 && slot < 0) {
        const Event event = load_event(u, ~at);
        if (u.is_risen(~at, event)) slot = ~at;
        at = event.next;
      }
      if (slot >= 0 && group.thread == source) push(u, u.slot_of_displaced(slot), l, row, value);
    }
  }
}

// The first event of a chain stands for its row.
__device__ __forceinline__ bool is_first_of_chain(const Event& event) { return event.row >= 0 && event.next >= 0; }

// Blocks: one a batch entry, then kPartsOfEvents a batch entry. Latency bound, but for the B² d of the products.
static __global__ void __launch_bounds__(kUpdateThreads, 2) rank_lists_kernel(ListUpdate u) {
  __shared__ RankShared shared;
  const auto entry = static_cast<int32_t>(blockIdx.x % u.rows.batch_size);
  const auto part = static_cast<int32_t>(blockIdx.x / u.rows.batch_size);
  if (u.entries[entry].row < 0) return;
  if (part == 0) {
    rank_entry(u, entry, shared);
    return;
  }
  const int32_t events = u.entries[entry].events;
  const int32_t warp = (part - 1) * kUpdateWarps + static_cast<int32_t>(threadIdx.x) / kWarp;
#pragma unroll 1
  for (int32_t e = warp; e < events; e += kPartsOfEvents * kUpdateWarps) {
    const Event event = load_event(u, u.slot(entry, e));
    if (is_first_of_chain(event)) rank_row(u, event.row);
  }
}

// ---- Write.

// A row without the entries that were pushed out or have no room, closed up: how many are left, and the floor. Marks
// (column -1) may be there already.
template <class Group>
__device__ __forceinline__ int32_t close_up(const ListUpdate& u, int32_t row, int32_t head, Key last, int32_t& count,
                                            float& floor, const Group& group) {
  int32_t* columns = u.lists.columns_of(row);
  float* values = u.lists.values_of(row);
  const int32_t known = count;
  count = u.lists.within(visit_chain(u, head, [&](int32_t slot, const Event& event) {
    if (slot < u.first_slots()) return;
    floor = event.value > floor ? event.value : floor;
    const int32_t end = known >= 0 ? known : u.lists.capacity;
    for (int32_t p = group.thread; p < end; p += Group::kSize) {
      if (columns[p] == event.column) columns[p] = -1;
    }
  }));
  group.sync();  // what is pushed out has been marked, here and by the caller
  int32_t kept = 0;
  for (int32_t first = 0; first < count; first += Group::kSize) {
    const int32_t p = first + group.thread;
    const int32_t column = p < count ? columns[p] : -1;
    const float value = column >= 0 ? values[p] : 0.0f;
    const bool stays = column >= 0 && selection_key(value, column) >= last;
    if (column >= 0 && !stays) floor = value > floor ? value : floor;
    group.sync();  // all have been read
    int total = 0;
    const int32_t place = kept + group.place(stays, total);
    if (stays) {
      columns[place] = column;
      values[place] = value;
    }
    kept += total;
  }
  return kept;
}

// Empties the places of a row behind its `kept` entries, and says how many they are.
template <class Group>
__device__ __forceinline__ void finish_row(const ListUpdate& u, int32_t row, int32_t kept, int32_t count, float floor,
                                           const Group& group) {
  for (int32_t p = kept + group.thread; p < count; p += Group::kSize) {
    u.lists.columns_of(row)[p] = -1;
    u.lists.values_of(row)[p] = -__builtin_inff();
  }
  floor = group.maximum(floor);
  if (group.thread != 0) return;
  u.lists.floors[row] = floor;
  u.lists.counts[row] = kept;
}

// Takes what the threads of a group bring: a pair that is there, and has room in both rows.
template <class Group>
__device__ __forceinline__ void take_pairs(const ListUpdate& u, int32_t row, int32_t& kept, float& floor, bool is_there,
                                           int32_t column, float value, Key own_last, Key other_last,
                                           const Group& group) {
  const bool has_room = is_there && selection_key(value, column) >= own_last && selection_key(value, row) >= other_last;
  if (is_there && !has_room) floor = value > floor ? value : floor;
  int total = 0;
  const int32_t place = kept + group.place(has_room, total);
  if (has_room && place < u.lists.capacity) {
    u.lists.columns_of(row)[place] = column;
    u.lists.values_of(row)[place] = value;
  }
  kept += total;
}

__device__ __forceinline__ void write_entry(const ListUpdate& u, int32_t entry, int32_t* parts) {
  const BlockGroup<kUpdateThreads> group(parts);
  const EntryState state = u.entries[entry];
  const int32_t row = state.row;
  const int32_t head = u.lists.counts[row];
  float floor = u.lists.floors[row];
  floor = state.raised > floor ? state.raised : floor;
  // Members whose rows have no room for this one.
#pragma unroll 1
  for (int32_t b = group.thread / kWarp; b < u.rows.batch_size; b += kUpdateWarps) {
    const EntryState& other = u.entries[b];
    if (other.row < 0 || other.last == 0) continue;
    const int32_t place = find_column(u.lists.columns_of(row), state.count, other.row);
    if (place < 0) continue;
    const float value = u.lists.values_of(row)[place];
    __syncwarp();
    if (selection_key(value, row) >= other.last) continue;
    if (group.thread % kWarp == 0) u.lists.columns_of(row)[place] = -1;
    floor = value > floor ? value : floor;
  }
  int32_t count = state.count;
  int32_t kept = close_up(u, row, head, state.last, count, floor, group);
#pragma unroll 1
  for (int32_t first = 0; first < state.events; first += kUpdateThreads) {
    const int32_t e = first + group.thread, slot = u.slot(entry, e);
    Event event{-1, -1, 0.0f, 0};
    if (e < state.events) event = load_event(u, slot);
    const bool is_there = event.column >= 0;
    take_pairs(u, row, kept, floor, is_there, event.row, event.value, state.last, is_there ? u.last[slot] : 0, group);
  }
#pragma unroll 1
  for (int32_t first = 0; first < u.rows.batch_size; first += kUpdateThreads) {
    const int32_t b = first + group.thread;
    const bool exists = b < u.rows.batch_size;
    const float value = exists ? u.pairs[static_cast<int64_t>(entry) * u.rows.batch_size + b] : __builtin_nanf("");
    take_pairs(u, row, kept, floor, value == value, exists ? u.entries[b].row : -1, value, state.last,
               exists ? u.entries[b].last : 0, group);
  }
  finish_row(u, row, kept, count, floor, group);
}

// A row outside of the batch, by a warp.
__device__ __forceinline__ void write_row(const ListUpdate& u, int32_t row) {
  const WarpGroup group;
  const int32_t head = u.lists.counts[row];
  float floor = u.lists.floors[row];
  Key last = 0;
  visit_chain(u, head, [&](int32_t slot, const Event& event) {
    if (u.is_risen(slot, event)) last = u.last[slot];
  });
  int32_t count = -1;
  int32_t kept = close_up(u, row, head, last, count, floor, group);
  visit_chain(u, head, [&](int32_t slot, const Event& event) {
    if (!u.is_risen(slot, event)) return;
    take_pairs(u, row, kept, floor, group.thread == 0, event.column, event.value, last,
               u.entries[slot / u.segment].last, group);
  });
  finish_row(u, row, kept, count, floor, group);
}

// The row of an event outside of the batch, if the event stands for it.
__device__ __forceinline__ void write_row_of(const ListUpdate& u, const Event& event, bool may_be_member) {
  if (!is_first_of_chain(event)) return;
  if (may_be_member) {
    bool found = false;
    for (int32_t b = static_cast<int32_t>(threadIdx.x) % kWarp; b < u.rows.batch_size; b += kWarp) {
      found |= u.entries[b].row == event.row;
    }
    if (__any_sync(kAllLanes, found)) return;
  }
  write_row(u, event.row);
}

// Blocks as those of rank_lists_kernel. Latency bound.
static __global__ void __launch_bounds__(kUpdateThreads) write_lists_kernel(ListUpdate u) {
  __shared__ int32_t parts[kUpdateWarps];
  const auto entry = static_cast<int32_t>(blockIdx.x % u.rows.batch_size);
  const auto part = static_cast<int32_t>(blockIdx.x / u.rows.batch_size);
  const EntryState state = u.entries[entry];
  if (state.row < 0) return;
  if (part == 0) {
    write_entry(u, entry, parts);
    return;
  }
  const int32_t warp = (part - 1) * kUpdateWarps + static_cast<int32_t>(threadIdx.x) / kWarp;
  constexpr int32_t kWarps = kPartsOfEvents * kUpdateWarps;
#pragma unroll 1
  for (int32_t e = warp; e < state.events; e += kWarps) {
    const int32_t slot = u.slot(entry, e);
    const Event event = load_event(u, slot);
    write_row_of(u, event, false);
    if (event.column >= 0) write_row_of(u, load_event(u, u.slot_of_displaced(slot)), true);
  }
#pragma unroll 1
  for (int32_t e = warp; e < state.displaced; e += kWarps) {
    write_row_of(u, load_event(u, u.slot_of_own(entry, e)), true);
  }
}

}  // namespace snnet
