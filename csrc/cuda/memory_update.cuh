// The momentum update of the memory and, by the recurrence, of the cached similarity matrix, in one launch.
//
// Blocks claim tickets. The first B are the batch entries: each finds its place in the order by (index, entry), and
// the first entry of an index blends and renormalises its row of the memory. The next are pairs of batch members,
// which wait for all rows. The others are tiles of 32 places of that order times 128 columns of the cache; they load
// what they need, wait for all rows and write their cells. Each cell is read and written by one block alone, with
// its mirror image: the cache stays symmetric to the bit. The marks of a new row are zeroed with it, before it is
// announced; tiles and pairs then set bits.
//
// A repeated index moves its row by m' = kept m + sum of weight_b f_b over its entries b, so the cells follow from
// the products with the memory before the update. Where the error would grow, for an index that comes very often,
// and between two batch members, they are products with the updated memory instead.
#pragma once

#include "member_pairs.cuh"

namespace snnet {

// One block a ticket. Bound by memory: s and the rows are read once, the rows written once, and each of the B n
// cells of the columns costs a 32-byte sector read and written.
__global__ void __launch_bounds__(kUpdateThreads, 3) update_memory_kernel(MemoryUpdate u) {
  __shared__ UpdateShared shared;
  if (threadIdx.x == 0) shared.ticket = atomicAdd(u.progress + kClaimed, 1);
  __syncthreads();
  const int32_t ticket = shared.ticket;
  if (ticket >= u.batch_size) {
    const int64_t pairs = pair_blocks(u.batch_size), later = ticket - u.batch_size;
    if (later < pairs) {
      update_pairs(u, later);
    } else {
      update_tile(u, later - pairs, shared);
    }
    return;
  }
  const Turn turn = turn_of(u, ticket);
  const int32_t column = column_of_entry(u, ticket);
  if (threadIdx.x == 0) u.order[turn.place] = {ticket, column};
  announce(u.progress + kPlaced);
  if (turn.earlier == 0 && column < u.n) update_row(u, ticket, turn, shared);
  announce(u.progress + kFinished);
}

// One block a batch entry, without a cache. Bound by latency: two passes over a row.
__global__ void __launch_bounds__(kUpdateThreads, 3) update_rows_kernel(MemoryUpdate u) {
  __shared__ UpdateShared shared;
  const int32_t entry = static_cast<int32_t>(blockIdx.x);
  const Turn turn = turn_of(u, entry);
  if (turn.earlier == 0 && column_of_entry(u, entry) < u.n) update_row(u, entry, turn, shared);
}

}  // namespace snnet
