// The own side of a momentum update of rows anywhere, and pairs that come into the lists of own rows.
//
// Rows are counted from the first own one, columns from the first image of all. A moved pair is listed in both of its
// rows, whoever owns them: each owner changes its own, and tells the other owner what found no room.
#include <algorithm>
#include <functional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "memory_rows.h"
#include "own_update.h"

namespace snnet {
namespace {

// What the own ones of the rows index [m] become, distinct ones, in their order: float32 [most, d + 2 + K], the row, its
// length before the division (NaN where it is not to be written), its floor and the columns that it lists, as bits.
Tensor blended_rows(const Tensor& memory, int64_t first, const Tensor& columns, const Tensor& floors, const Tensor& index,
                    const Tensor& features, const Tensor& momentum, int64_t most) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1), size = index.size(0);
  check_storage(memory, "memory", ScalarType::Float, n, d);
  const int64_t capacity = columns.dim() == 2 ? columns.size(1) : 0, width = d + kMovedNumbers + capacity;
  check_storage(columns, "columns", ScalarType::Int, n, capacity);
  const float* floor = checked_vector<const float>(floors, "floors", n);
  const int64_t* at = checked_vector<const int64_t>(index, "index", size);
  check_matrix(features, "features", ScalarType::Float, size, d);
  const Tensor live = torch::stable::contiguous(features);
  const float alpha = checked_momentum(momentum);
  std::vector<int64_t> own;
  for (int64_t b = 0; b < size; ++b) {
    if (at[b] >= first && at[b] < first + n) own.push_back(b);
  }
  const auto count = static_cast<int64_t>(own.size());
  SNNET_CHECK(count <= most, "most must be at least the number of own rows, ", count, ", got ", most);
  Tensor blended = torch::stable::new_zeros(memory, {most, width});
  const VectorKernels& kernels = vector_kernels();
  torch::stable::parallel_for(0, count, grain(3 * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = at[own[r]] - first;
      const float* before = const_floats(memory) + i * d;
      float* out = floats(blended) + r * width;
      const float length = blend_row(kernels, before, const_floats(live) + own[r] * d, alpha, 1.0f - alpha, d, out);
      const bool is_written = is_finite(length);
      if (!is_written) std::copy_n(before, d, out);
      out[d] = is_written ? length : std::numeric_limits<float>::quiet_NaN();
      out[d + 1] = floor[i];
      std::memcpy(out + d + kMovedNumbers, columns.const_data_ptr<int32_t>() + i * capacity, 4 * capacity);
    }
  });
  return blended;
}

// Two results. One block per process, int32 [R, m + 1 + 2 room]: the number of pairs of each sample, whether a row here
// is full, and the first pairs for that process. And all pairs, (column, bits of the value) int32 [E, 2], sorted by the
// process that owns their sample, then by sample.
std::tuple<Tensor, Tensor> travelling_pairs(const Tensor& like, const std::vector<std::vector<Pair>>& pairs,
                                            const int64_t* owner, int64_t ranks, int64_t room, bool is_full) {
  const auto size = static_cast<int64_t>(pairs.size()), width = size + 1 + 2 * room;
  Tensor blocks = torch::stable::new_zeros(like, {ranks, width}, ScalarType::Int);
  int32_t* block = blocks.mutable_data_ptr<int32_t>();
  int64_t total = 0;
  for (int64_t s = 0; s < size; ++s) total += static_cast<int64_t>(pairs[s].size());
  Tensor travelling = torch::stable::new_empty(like, {total, 2}, ScalarType::Int);
  int32_t* out = travelling.mutable_data_ptr<int32_t>();
  for (int64_t r = 0; r < ranks; ++r, block += width) {
    const int32_t* begin = out;
    for (int64_t s = 0; s < size; ++s) {
      block[s] = static_cast<int32_t>(pairs[s].size());
      for (std::size_t e = 0; owner[s] == r && e < pairs[s].size(); ++e, out += 2) {
        out[0] = static_cast<int32_t>(pairs[s][e].column);
        std::memcpy(out + 1, &pairs[s][e].value, sizeof(float));
      }
    }
    block[size] = is_full;
    std::copy_n(begin, std::min<int64_t>(out - begin, 2 * room), block + size + 1);
  }
  return {blocks, travelling};
}

// Writes the own ones of the rows index [m] that have moved, blended float32 [R, most, d + 2 + K] as blended_rows gives
// them, brings the own lists up to them, and lists what is new to rows that did not move. Blocks and pairs as
// travelling_pairs gives them, for the owners of the moved rows; and (row, column, value) that found no room here.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> follow_moved_rows_(
    const Tensor& memory, const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
    int64_t first, const Tensor& similarity, const Tensor& blended, const Tensor& index, const Tensor& owner,
    const Tensor& momentum, int64_t room) {
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  SNNET_CHECK(blended.dim() == 3, "blended must have 3 dimensions, got ", blended.dim());
  const MovedRows moved(blended, index, owner, memory.size(1));
  OwnUpdate update(memory, first, lists, similarity, moved, checked_momentum(momentum));
  update.run();
  std::vector<Pair> left;
  const auto pairs = update.take_pairs(left);
  const auto [blocks, travelling] = travelling_pairs(blended, pairs, owner.const_data_ptr<int64_t>(), blended.size(0),
                                                     room, !left.empty());
  const auto [row, column, value] = pair_tensors(blended, left);
  return {blocks, travelling, row, column, value};
}

// What has come in the blocks of all processes int32 [R, m + 1 + 2 room] for the own ones of the rows index [m], and
// behind them in `rest` int32 [E, 2], process by process: (row, column, value); and int64 [2]: the most pairs that one
// process has for another, and whether a row has more than `capacity` or a process is full. Without a
// rest that is needed there are no pairs.
std::tuple<Tensor, Tensor, Tensor, Tensor> moved_pairs(const Tensor& blocks, const Tensor& rest, const Tensor& index,
                                                       const Tensor& owner, int64_t rank, int64_t first,
                                                       int64_t capacity) {
  const int64_t size = index.size(0), ranks = rows_of(blocks, "blocks"), width = blocks.size(1);
  SNNET_CHECK(width > size && (width - size - 1) % 2 == 0, "blocks must have ", size, " + 1 + 2 room columns, got ",
              width);
  check_storage(blocks, "blocks", ScalarType::Int, ranks, width);
  SNNET_CHECK(rank >= 0 && rank < ranks, "rank must lie in [0, ", ranks, "), got ", rank);
  const int64_t room = (width - size - 1) / 2, beyond = rows_of(rest, "rest");
  check_storage(rest, "rest", ScalarType::Int, beyond, 2);
  const int64_t* at = checked_vector<const int64_t>(index, "index", size);
  const int64_t* owners = checked_vector<const int64_t>(owner, "owner", size);
  const int32_t *block = blocks.const_data_ptr<int32_t>(), *behind = rest.const_data_ptr<int32_t>();
  std::vector<int64_t> sent(ranks * ranks), of_row(size);
  bool overflows = false;
  for (int64_t r = 0; r < ranks; ++r) {
    overflows |= block[r * width + size] != 0;
    for (int64_t s = 0; s < size; ++s) {
      SNNET_CHECK(owners[s] >= 0 && owners[s] < ranks, "owner must lie in [0, ", ranks, "), got ", owners[s]);
      const int32_t number = block[r * width + s];
      SNNET_CHECK(number >= 0, "blocks must tell numbers of pairs, got ", number);
      sent[r * ranks + owners[s]] += number;
      of_row[s] += number;
    }
  }
  for (int64_t s = 0; s < size; ++s) overflows |= of_row[s] > capacity;
  const int64_t most = sent.empty() ? 0 : *std::max_element(sent.begin(), sent.end());
  Tensor told = torch::stable::new_empty(index, {2});
  told.mutable_data_ptr<int64_t>()[0] = most;
  told.mutable_data_ptr<int64_t>()[1] = overflows;
  std::vector<Pair> found;
  int64_t needed = 0;  // behind the room
  for (int64_t r = 0; r < ranks; ++r) needed += std::max<int64_t>(sent[r * ranks + rank] - room, 0);
  SNNET_CHECK(beyond == 0 || beyond == needed, "rest must have the ", needed, " pairs behind the room, got ", beyond);
  for (int64_t r = 0, used = 0; r < ranks && beyond == needed; ++r) {
    const int32_t* pair = block + r * width + size + 1;
    int64_t left = std::min(sent[r * ranks + rank], room);  // of the block
    for (int64_t s = 0; s < size; ++s) {
      for (int32_t e = 0; owners[s] == rank && e < block[r * width + s]; ++e, pair += 2) {
        if (left-- == 0) pair = behind + 2 * used;
        used += left < 0;
        float value;
        std::memcpy(&value, pair + 1, sizeof value);
        found.push_back({at[s] - first, pair[0], value});
      }
    }
  }
  const auto [row, column, value] = pair_tensors(blocks, found);
  return {row, column, value, told};
}

// A row keeps the first `capacity` of what it lists and what is new to it. What it does not keep: (row, column, value).
std::tuple<Tensor, Tensor, Tensor> insert_pairs_(const Tensor& columns, const Tensor& values, const Tensor& counts,
                                                 const Tensor& floors, const Tensor& row, const Tensor& column,
                                                 const Tensor& value) {
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  const int64_t* rows = positions.const_data_ptr<int64_t>();
  const int64_t* others = checked_vector<const int64_t>(column, "column", size);
  const float* similarity = checked_vector<const float>(value, "value", size);
  std::unordered_map<int64_t, std::vector<uint64_t>> too_many;  // keys of the rows without room for all
  for (int64_t e = 0; e < size; ++e) {
    const int64_t i = rows[e];
    const uint64_t key = selection_key(similarity[e], static_cast<int32_t>(others[e]));
    const auto found = too_many.find(i);
    if (found != too_many.end()) {
      found->second.push_back(key);
    } else if (lists.counts[i] < lists.capacity) {
      lists.append(i, others[e], similarity[e]);
    } else {
      too_many[i].push_back(key);
    }
  }
  std::vector<Pair> cut;
  for (auto& [i, keys] : too_many) {
    lists.add_keys(i, keys);
    std::nth_element(keys.begin(), keys.begin() + lists.capacity - 1, keys.end(), std::greater<>());
    lists.clear(i);
    for (std::size_t k = 0; k < keys.size(); ++k) {
      const Pair pair{i, column_of_key(keys[k]), value_of_key(keys[k])};
      if (static_cast<int64_t>(k) < lists.capacity) {
        lists.append(i, pair.column, pair.value);
      } else {
        cut.push_back(pair);
      }
    }
  }
  return pair_tensors(value, cut);
}

// Pairs that have no room on one of their sides leave the other, and raise the floors of both.
void remove_pairs_(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                   const Tensor& row, const Tensor& column, const Tensor& value) {
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  const int64_t* others = checked_vector<const int64_t>(column, "column", size);
  const float* similarity = checked_vector<const float>(value, "value", size);
  for (int64_t e = 0; e < size; ++e) {
    const int64_t i = positions.const_data_ptr<int64_t>()[e];
    const int32_t place = lists.place_of(i, others[e]);
    if (place < lists.counts[i]) lists.erase(i, place);
    lists.floors[i] = std::max(lists.floors[i], similarity[e]);
  }
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("blended_rows", TORCH_BOX(&snnet::blended_rows));
  m.impl("follow_moved_rows_", TORCH_BOX(&snnet::follow_moved_rows_));
  m.impl("moved_pairs", TORCH_BOX(&snnet::moved_pairs));
  m.impl("insert_pairs_", TORCH_BOX(&snnet::insert_pairs_));
  m.impl("remove_pairs_", TORCH_BOX(&snnet::remove_pairs_));
}
