// The neighbour lists of the rows that one process owns: ranks of candidates, and the parts of an update.
//
// Rows are counted from the first own one, columns from the first image of all. A moved pair is listed in both of its
// rows, whoever owns them: each owner changes its own, and tells the other owner what found no room.
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "../common/recurrence.h"
#include "checks.h"
#include "memory_rows.h"
#include "neighbor_lists.h"
#include "products.h"
#include "risen.h"
#include "vector.h"

namespace snnet {
namespace {

constexpr int8_t kConsistent = 0, kInconsistent = 1, kUntold = 2;

struct Pair {
  int64_t row, column;
  float value;
};

class OwnLists : public NeighborLists {
 public:
  using NeighborLists::NeighborLists;

  // The place of a column in row i, or its count.
  int32_t place_of(int64_t i, int64_t column) const {
    const int32_t* own = columns_of(i);
    return static_cast<int32_t>(std::find(own, own + counts[i], static_cast<int32_t>(column)) - own);
  }

  void append(int64_t i, int64_t column, float value) const {
    const int32_t place = counts[i]++;
    columns_of(i)[place] = static_cast<int32_t>(column);
    values_of(i)[place] = value;
  }

  // The last entry of row i takes the place.
  void erase(int64_t i, int32_t place) const {
    const int32_t last = --counts[i];
    columns_of(i)[place] = columns_of(i)[last];
    values_of(i)[place] = values_of(i)[last];
    columns_of(i)[last] = -1;
    values_of(i)[last] = -std::numeric_limits<float>::infinity();
  }

  void clear(int64_t i) const {
    std::fill_n(columns_of(i), counts[i], -1);
    std::fill_n(values_of(i), counts[i], -std::numeric_limits<float>::infinity());
    counts[i] = 0;
  }
};

OwnLists checked_lists(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors) {
  const OwnLists lists(columns, values, counts, floors, rows_of(columns, "lists.columns"));
  lists.check_counts();
  return lists;
}

// values int64 [m], one for each of `size` things
const int64_t* checked_longs(const Tensor& values, const char* name, int64_t size) {
  SNNET_CHECK(values.is_cpu() && values.scalar_type() == ScalarType::Long && values.dim() == 1 &&
                  values.is_contiguous() && values.size(0) == size,
              name, " must be contiguous int64 [", size, "] on the cpu");
  return values.const_data_ptr<int64_t>();
}

const float* checked_floats(const Tensor& values, const char* name, int64_t size) {
  SNNET_CHECK(values.is_cpu() && values.scalar_type() == ScalarType::Float && values.dim() == 1 &&
                  values.is_contiguous() && values.size(0) == size,
              name, " must be contiguous float32 [", size, "] on the cpu");
  return const_floats(values);
}

std::tuple<Tensor, Tensor, Tensor> pair_tensors(const Tensor& like, const std::vector<Pair>& pairs) {
  const auto size = static_cast<int64_t>(pairs.size());
  Tensor rows = torch::stable::new_empty(like, {size}, ScalarType::Long);
  Tensor columns = torch::stable::new_empty(like, {size}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(like, {size}, ScalarType::Float);
  for (int64_t e = 0; e < size; ++e) {
    rows.mutable_data_ptr<int64_t>()[e] = pairs[e].row;
    columns.mutable_data_ptr<int64_t>()[e] = pairs[e].column;
    floats(values)[e] = pairs[e].value;
  }
  return {rows, columns, values};
}

// What the lists of own rows [m] tell of their images: candidates above the threshold int32 [m, capacity] in falling
// order, -1 behind the last; how many, int64 [m]; the nearest other image int64 [m], -1 without one; whether the list
// tells both, bool [m].
std::tuple<Tensor, Tensor, Tensor, Tensor> listed_candidates(const Tensor& columns, const Tensor& values,
                                                             const Tensor& counts, const Tensor& floors,
                                                             const Tensor& row, int64_t first, double threshold) {
  const OwnLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  Tensor candidates = torch::stable::new_empty(row, {size, lists.capacity}, ScalarType::Int);
  Tensor numbers = torch::stable::new_empty(row, {size}, ScalarType::Long);
  Tensor neighbors = torch::stable::new_empty(row, {size}, ScalarType::Long);
  Tensor told = torch::stable::new_empty(row, {size}, ScalarType::Bool);
  const auto bar = static_cast<float>(threshold);
  torch::stable::parallel_for(0, size, grain(4 * lists.capacity), [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys;
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = positions.const_data_ptr<int64_t>()[e];
      uint64_t nearest = 0;  // the key of the nearest other image
      keys.clear();
      for (int32_t j = 0; j < lists.counts[i]; ++j) {
        const float value = lists.values_of(i)[j];
        const uint64_t key = selection_key(value, lists.columns_of(i)[j]);
        if (value > bar) keys.push_back(key);
        if (lists.columns_of(i)[j] != first + i) nearest = std::max(nearest, key);
      }
      std::sort(keys.begin(), keys.end(), std::greater<>());
      int32_t* out = candidates.mutable_data_ptr<int32_t>() + e * lists.capacity;
      std::transform(keys.begin(), keys.end(), out, column_of_key);
      std::fill(out + keys.size(), out + lists.capacity, -1);
      constexpr float kNothing = -std::numeric_limits<float>::infinity();
      const float largest = nearest == 0 ? kNothing : value_of_key(nearest), floor = lists.floors[i];
      numbers.mutable_data_ptr<int64_t>()[e] = static_cast<int64_t>(keys.size());
      neighbors.mutable_data_ptr<int64_t>()[e] = largest == kNothing ? -1 : column_of_key(nearest);
      // What is not listed may be as large as the floor, and come first by its column.
      told.mutable_data_ptr<bool>()[e] = !(floor > bar) && (largest > floor || floor == kNothing);
    }
  });
  return {candidates, numbers, neighbors, told};
}

// Whether more than rank[e] images are more similar to row[e] than anchor[e] is: int8 [m], 2 where its list does not tell.
Tensor listed_ranks(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                    const Tensor& row, const Tensor& anchor, const Tensor& rank) {
  const OwnLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  const int64_t* rows = positions.const_data_ptr<int64_t>();
  const int64_t *anchors = checked_longs(anchor, "anchor", size), *ranks = checked_longs(rank, "rank", size);
  Tensor verdicts = torch::stable::new_empty(row, {size}, ScalarType::Char);
  int8_t* out = verdicts.mutable_data_ptr<int8_t>();
  torch::stable::parallel_for(0, size, grain(2 * lists.capacity), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t p = rows[e];
      const int32_t place = lists.place_of(p, anchors[e]);
      const bool is_listed = place < lists.counts[p];
      const float floor = lists.floors[p], bar = is_listed ? lists.values_of(p)[place] : floor;
      const bool behind = vector_kernels().count_above(lists.values_of(p), lists.counts[p], bar, ranks[e]) > ranks[e];
      out[e] = behind ? kInconsistent : is_listed && bar >= floor ? kConsistent : kUntold;
    }
  });
  return verdicts;
}

// memory[index] <- normalize(alpha memory[index] + (1 - alpha) f), distinct rows: their lengths before the division.
// A row whose length is not finite is not written.
Tensor blend_rows_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1);
  check_storage(memory, "memory", ScalarType::Float, n, d);
  const Tensor positions = checked_index(index, n);
  const int64_t size = positions.size(0);
  check_matrix(features, "features", ScalarType::Float, size, d);
  const float alpha = checked_momentum(momentum);
  const Tensor live = torch::stable::contiguous(features);
  const MemoryRows rows{memory, floats(memory), positions.const_data_ptr<int64_t>(), const_floats(live), d,
                        alpha,  1.0f - alpha};
  Round round(size);
  for (int64_t b = 0; b < size; ++b) round[b] = b;
  Tensor found = torch::stable::new_empty(memory, {size}, ScalarType::Float);
  std::fill_n(floats(found), size, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> lengths = blend_rows(rows, round);
  for (std::size_t r = 0; r < round.size(); ++r) floats(found)[round[r]] = lengths[r];
  return found;
}

// The own side of an update whose rows have moved.
class OwnUpdate {
 public:
  OwnUpdate(const Tensor& memory, int64_t first, const OwnLists& lists, const Tensor& similarity, const Tensor& moved,
            const Tensor& moved_index, const Tensor& moved_floors, const Tensor& lengths, const Tensor& moved_columns,
            float alpha)
      : lists_(lists), first_(first), d_(memory.size(1)), count_(rows_of(moved, "moved")),
        listed_width_(moved_columns.dim() == 2 ? moved_columns.size(1) : 0), alpha_(alpha), beta_(1.0f - alpha),
        memory_(const_floats(memory)), similarity_(const_floats(similarity)), moved_(const_floats(moved)),
        index_(checked_longs(moved_index, "moved_index", count_)),
        floors_(checked_floats(moved_floors, "moved_floors", count_)),
        lengths_(checked_floats(lengths, "lengths", count_)), listed_(moved_columns.const_data_ptr<int32_t>()),
        entry_of_(lists.n, -1), pairs_(count_), risen_(count_) {
    check_storage(memory, "memory", ScalarType::Float, lists.n, d_);
    check_storage(similarity, "similarity", ScalarType::Float, count_, lists.n);
    check_storage(moved, "moved", ScalarType::Float, count_, d_);
    check_storage(moved_columns, "moved_columns", ScalarType::Int, count_, listed_width_);
    for (int64_t r = 0; r < count_; ++r) {
      if (is_own(index_[r])) entry_of_[index_[r] - first_] = static_cast<int32_t>(r);
    }
    if (lists.n > 0) products_.emplace(inner_products(moved, moved));
  }

  void run() {
    // Rows that moved here are made afresh of what all processes find.
    for (int64_t r = 0; r < count_; ++r) {
      if (is_own(index_[r])) lists_.clear(index_[r] - first_);
    }
    torch::stable::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      std::vector<char> is_listed(lists_.n);
      const std::unique_ptr<Entry[]> rising(new Entry[lists_.n]);
      for (int64_t r = begin; r < end; ++r) {
        follow_listed(r, is_listed);
        find_risen(r, is_listed, rising.get());
        take_moved(r);
        for (const int32_t l : own_listed(r)) is_listed[l] = 0;
      }
    });
    SNNET_CHECK(is_symmetric_, "lists must be symmetric, but a moved row lists one that does not list it");
    drop();
  }

  // The pairs (sample, column, value) above one of their floors, sample by sample, and which of them are new.
  std::tuple<Tensor, Tensor, Tensor, Tensor> found(const Tensor& like) const {
    std::vector<Pair> pairs;
    std::vector<char> risen;
    for (int64_t r = 0; r < count_; ++r) {
      pairs.insert(pairs.end(), pairs_[r].begin(), pairs_[r].end());
      risen.insert(risen.end(), pairs_[r].size(), 0);
      pairs.insert(pairs.end(), risen_[r].begin(), risen_[r].end());
      risen.insert(risen.end(), risen_[r].size(), 1);
    }
    auto [samples, columns, values] = pair_tensors(like, pairs);
    Tensor fresh = torch::stable::new_empty(like, {static_cast<int64_t>(risen.size())}, ScalarType::Bool);
    std::copy(risen.begin(), risen.end(), fresh.mutable_data_ptr<bool>());
    return {samples, columns, values, fresh};
  }

 private:
  bool is_own(int64_t i) const { return i >= first_ && i < first_ + lists_.n; }
  const float* moved_row(int64_t r) const { return moved_ + r * d_; }
  const float* memory_row(int64_t l) const { return memory_ + l * d_; }
  const float* similarity_row(int64_t r) const { return similarity_ + r * lists_.n; }

  bool is_above_a_floor(int64_t r, int64_t l, float value) const {
    return value > floors_[r] || value > lists_.floors[l];
  }

  // The own rows that moved row r lists, counted from the first own one.
  std::vector<int32_t> own_listed(int64_t r) const {
    std::vector<int32_t> found;
    for (int64_t j = 0; j < listed_width_; ++j) {
      const int64_t column = listed_[r * listed_width_ + j];
      if (column >= 0 && is_own(column)) found.push_back(static_cast<int32_t>(column - first_));
    }
    return found;
  }

  void follow_listed(int64_t r, std::vector<char>& is_listed) {
    const float* s = similarity_row(r);
    const bool afresh = error_grows(lengths_[r], alpha_);
    const std::vector<int32_t> rows = own_listed(r);
    for (std::size_t j = 0; j < rows.size(); ++j) {
      constexpr std::size_t kAhead = 8;  // the rows are anywhere in memory
      if (j + kAhead < rows.size()) __builtin_prefetch(lists_.columns_of(rows[j + kAhead]));
      const int32_t l = rows[j];
      is_listed[l] = 1;
      if (entry_of_[l] >= 0) continue;
      const int32_t place = lists_.place_of(l, index_[r]);
      if (place == lists_.counts[l]) {
        is_symmetric_ = false;
        continue;
      }
      float* stored = lists_.values_of(l) + place;
      *stored = afresh ? static_cast<float>(vector_kernels().dot(moved_row(r), memory_row(l), d_))
                       : blended_similarity(*stored, s[l], alpha_, beta_, lengths_[r]);
      if (is_above_a_floor(r, l, *stored)) pairs_[r].push_back({r, first_ + l, *stored});
    }
  }

  // Unlisted pairs of a moved row with unmoved own ones that are above a floor now.
  void find_risen(int64_t r, const std::vector<char>& is_listed, Entry* rising) {
    const MovedRow moved{moved_row(r), similarity_row(r), lengths_[r], floors_[r]};
    const OtherRows others{memory_, lists_.floors, lists_.n, d_, alpha_, beta_};
    const auto is_taken = [&](int32_t l) { return is_listed[l] != 0 || entry_of_[l] >= 0; };
    find_risen_pairs(moved, others, rising, is_taken,
                     [&](int32_t l, float product) { risen_[r].push_back({r, first_ + l, product}); });
  }

  // Pairs of moved rows, of which the column is an own one: products.
  void take_moved(int64_t r) {
    for (int64_t c = 0; c < count_; ++c) {
      if (!is_own(index_[c])) continue;
      const float value = const_floats(*products_)[std::max(r, c) * count_ + std::min(r, c)];
      if (value > floors_[r] || value > floors_[c]) pairs_[r].push_back({r, index_[c], value});
    }
  }

  // What has fallen below both floors leaves the rows that did not move.
  void drop() {
    for (int64_t r = 0; r < count_; ++r) {
      for (const int32_t l : own_listed(r)) {
        if (entry_of_[l] >= 0) continue;
        const int32_t place = lists_.place_of(l, index_[r]);
        if (place < lists_.counts[l] && !is_above_a_floor(r, l, lists_.values_of(l)[place])) lists_.erase(l, place);
      }
    }
  }

  const OwnLists& lists_;
  int64_t first_, d_, count_, listed_width_;
  float alpha_, beta_;
  const float *memory_, *similarity_, *moved_;
  const int64_t* index_;
  const float *floors_, *lengths_;
  const int32_t* listed_;
  std::vector<int32_t> entry_of_;  // [n], the entry that moved an own row, or -1
  std::vector<std::vector<Pair>> pairs_, risen_;
  std::atomic<bool> is_symmetric_{true};
  std::optional<Tensor> products_;  // of the moved rows with each other
};

std::tuple<Tensor, Tensor, Tensor, Tensor> follow_moved_rows_(
    const Tensor& memory, int64_t first, const Tensor& columns, const Tensor& values, const Tensor& counts,
    const Tensor& floors, const Tensor& similarity, const Tensor& moved, const Tensor& moved_index,
    const Tensor& moved_floors, const Tensor& lengths, const Tensor& moved_columns, const Tensor& momentum) {
  const OwnLists lists = checked_lists(columns, values, counts, floors);
  OwnUpdate update(memory, first, lists, similarity, moved, moved_index, moved_floors, lengths, moved_columns,
                   checked_momentum(momentum));
  update.run();
  return update.found(moved);
}

// A row keeps the first `capacity` of what it lists and what is new to it. What it does not keep: (row, column, value).
std::tuple<Tensor, Tensor, Tensor> insert_pairs_(const Tensor& columns, const Tensor& values, const Tensor& counts,
                                                 const Tensor& floors, const Tensor& row, const Tensor& column,
                                                 const Tensor& value) {
  const OwnLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  const int64_t* rows = positions.const_data_ptr<int64_t>();
  const int64_t* others = checked_longs(column, "column", size);
  const float* similarity = checked_floats(value, "value", size);
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
    for (int32_t j = 0; j < lists.counts[i]; ++j) {
      keys.push_back(selection_key(lists.values_of(i)[j], lists.columns_of(i)[j]));
    }
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
  const OwnLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0);
  const int64_t* others = checked_longs(column, "column", size);
  const float* similarity = checked_floats(value, "value", size);
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
  m.impl("listed_candidates", TORCH_BOX(&snnet::listed_candidates));
  m.impl("listed_ranks", TORCH_BOX(&snnet::listed_ranks));
  m.impl("blend_rows_", TORCH_BOX(&snnet::blend_rows_));
  m.impl("follow_moved_rows_", TORCH_BOX(&snnet::follow_moved_rows_));
  m.impl("insert_pairs_", TORCH_BOX(&snnet::insert_pairs_));
  m.impl("remove_pairs_", TORCH_BOX(&snnet::remove_pairs_));
}
