// The lists of own rows follow rows that have moved, whoever owns these; and pairs on their way into lists.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/recurrence.h"
#include "checks.h"
#include "neighbor_lists.h"
#include "products.h"
#include "risen.h"
#include "vector.h"

namespace snnet {

// The row is an own one, counted from the first of them; the column is counted from the first image of all.
struct Pair {
  int64_t row, column;
  float value;
};

inline std::tuple<Tensor, Tensor, Tensor> pair_tensors(const Tensor& like, const std::vector<Pair>& pairs) {
  const auto size = static_cast<int64_t>(pairs.size());
  Tensor rows = torch::stable::new_empty(like, {size}, ScalarType::Long);
  Tensor columns = torch::stable::new_empty(like, {size}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(like, {size}, ScalarType::Float);
  int64_t *row = rows.mutable_data_ptr<int64_t>(), *column = columns.mutable_data_ptr<int64_t>();
  float* value = floats(values);
  for (int64_t e = 0; e < size; ++e) {
    row[e] = pairs[e].row;
    column[e] = pairs[e].column;
    value[e] = pairs[e].value;
  }
  return {rows, columns, values};
}

constexpr int64_t kMovedNumbers = 2;  // behind a moved row: its length before the division, and its floor

// The rows index [m] that have moved, as their owners have sent them, [R, most, d + 2 + K], in order of the index.
struct MovedRows {
  Tensor held, rows;  // rows [count, d]
  std::vector<int64_t> entries;  // of the index, of the rows that are written
  std::vector<int64_t> index;    // their images
  std::vector<float> lengths, floors;
  std::vector<const float*> listed;  // the bits of what each listed before, listed_width of them
  int64_t size, count, listed_width;

  MovedRows(const Tensor& blended, const Tensor& positions, const Tensor& owner, int64_t d)
      : held(blended), rows(blended), size(positions.size(0)), count(0), listed_width(0) {
    const int64_t ranks = blended.size(0), most = blended.size(1), width = blended.size(2);
    SNNET_CHECK(blended.is_cpu() && blended.scalar_type() == ScalarType::Float && blended.is_contiguous() &&
                    width >= d + kMovedNumbers,
                "blended must be contiguous float32 [R, most, d + 2 + K] on the cpu");
    listed_width = width - d - kMovedNumbers;
    const int64_t* at = checked_vector<const int64_t>(positions, "index", size);
    const int64_t* owners = checked_vector<const int64_t>(owner, "owner", size);
    std::vector<int64_t> read(ranks);
    std::vector<const float*> found;
    for (int64_t s = 0; s < size; ++s) {
      SNNET_CHECK(owners[s] >= 0 && owners[s] < ranks, "owner must lie in [0, ", ranks, "), got ", owners[s]);
      SNNET_CHECK(read[owners[s]] < most, "a process owns more rows than the ", most, " of a block");
      const float* row = const_floats(blended) + (owners[s] * most + read[owners[s]]++) * width;
      if (!is_finite(row[d])) continue;  // it is not written
      found.push_back(row);
      entries.push_back(s);
      index.push_back(at[s]);
      lengths.push_back(row[d]);
      floors.push_back(row[d + 1]);
      listed.push_back(row + d + kMovedNumbers);
    }
    count = static_cast<int64_t>(found.size());
    rows = empty_floats(blended, count, d);
    for (int64_t r = 0; r < count; ++r) std::copy_n(found[r], d, floats(rows) + r * d);
  }
};

// The own side of an update whose rows have moved.
class OwnUpdate {
 public:
  // `similarity` [m, n] is that of the features of all m rows with the own ones before the update.
  OwnUpdate(const Tensor& memory, int64_t first, const NeighborLists& lists, const Tensor& similarity,
            const MovedRows& moved, float alpha)
      : lists_(lists), moved_(moved), first_(first), d_(memory.size(1)), count_(moved.count), alpha_(alpha),
        beta_(1.0f - alpha), memory_(floats(memory)), similarity_(const_floats(similarity)),
        rows_(const_floats(moved.rows)), entry_of_(lists.n, -1), pairs_(moved.count), risen_(moved.count),
        fallen_(moved.count),
        products_(lists.n > 0 ? inner_products(moved.rows, moved.rows) : moved.rows) {
    check_storage(memory, "memory", ScalarType::Float, lists.n, d_);
    check_storage(similarity, "similarity", ScalarType::Float, moved.size, lists.n);
    for (int64_t r = 0; r < count_; ++r) {
      if (is_own(moved.index[r])) entry_of_[moved.index[r] - first_] = static_cast<int32_t>(r);
    }
  }

  void run() {
    // Rows that moved here are written, and their lists made afresh of what all processes find.
    for (int64_t r = 0; r < count_; ++r) {
      if (!is_own(moved_.index[r])) continue;
      std::copy_n(moved_row(r), d_, memory_ + (moved_.index[r] - first_) * d_);
      lists_.clear(moved_.index[r] - first_);
    }
    torch::stable::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      std::vector<char> is_listed(lists_.n);
      const std::unique_ptr<Entry[]> rising(new Entry[lists_.n]);
      for (int64_t r = begin; r < end; ++r) {
        const std::vector<int32_t> listed = own_listed(r);
        follow_listed(r, listed, is_listed);
        find_risen(r, is_listed, rising.get());
        take_moved(r);
        for (const int32_t l : listed) is_listed[l] = 0;
      }
    });
    SNNET_CHECK(is_symmetric_, "lists must be symmetric, but a moved row lists one that does not list it");
    drop();
  }

  // The pairs of each of the m rows above one of their floors. Those that are new to a row that did not move are listed
  // there; those that find no room are `left` of it.
  std::vector<std::vector<Pair>> take_pairs(std::vector<Pair>& left) {
    std::vector<std::vector<Pair>> found(moved_.size);
    for (int64_t r = 0; r < count_; ++r) {
      std::vector<Pair>& pairs = found[moved_.entries[r]];
      pairs = std::move(pairs_[r]);
      pairs.insert(pairs.end(), risen_[r].begin(), risen_[r].end());
      for (const Pair& pair : risen_[r]) {
        const int64_t l = pair.column - first_;
        if (lists_.counts[l] < lists_.capacity) {
          lists_.append(l, moved_.index[r], pair.value);
        } else {
          left.push_back({l, moved_.index[r], pair.value});
        }
      }
    }
    return found;
  }

 private:
  bool is_own(int64_t i) const { return i >= first_ && i < first_ + lists_.n; }
  const float* moved_row(int64_t r) const { return rows_ + r * d_; }
  const float* memory_row(int64_t l) const { return memory_ + l * d_; }
  const float* similarity_row(int64_t r) const { return similarity_ + moved_.entries[r] * lists_.n; }

  bool is_above_a_floor(int64_t r, int64_t l, float value) const {
    return value > moved_.floors[r] || value > lists_.floors[l];
  }

  // The own rows that moved row r lists, counted from the first own one.
  std::vector<int32_t> own_listed(int64_t r) const {
    std::vector<int32_t> found;
    for (int64_t j = 0; j < moved_.listed_width; ++j) {
      int32_t column;
      std::memcpy(&column, moved_.listed[r] + j, sizeof column);
      if (column >= 0 && is_own(column)) found.push_back(static_cast<int32_t>(column - first_));
    }
    return found;
  }

  void follow_listed(int64_t r, const std::vector<int32_t>& rows, std::vector<char>& is_listed) {
    const float* s = similarity_row(r);
    const bool afresh = error_grows(moved_.lengths[r], alpha_);
    std::vector<std::pair<int32_t, float*>> stored_pairs;  // all of them, before the first is needed
    for (std::size_t j = 0; j < rows.size(); ++j) {
      constexpr std::size_t kAhead = 8;  // the rows are anywhere in memory
      if (j + kAhead < rows.size()) lists_.prefetch_columns(rows[j + kAhead]);
      const int32_t l = rows[j];
      is_listed[l] = 1;
      if (entry_of_[l] >= 0) continue;
      const int32_t place = lists_.place_of(l, moved_.index[r]);
      if (place == lists_.counts[l]) {
        is_symmetric_ = false;
        continue;
      }
      stored_pairs.push_back({l, lists_.values_of(l) + place});
      __builtin_prefetch(stored_pairs.back().second);
      __builtin_prefetch(s + l);
    }
    for (const auto& [l, stored] : stored_pairs) {
      *stored = afresh ? static_cast<float>(vector_kernels().dot(moved_row(r), memory_row(l), d_))
                       : blended_similarity(*stored, s[l], alpha_, beta_, moved_.lengths[r]);
      if (is_above_a_floor(r, l, *stored)) {
        pairs_[r].push_back({r, first_ + l, *stored});
      } else {
        fallen_[r].push_back(l);
      }
    }
  }

  // Unlisted pairs of a moved row with unmoved own ones that are above a floor now.
  void find_risen(int64_t r, const std::vector<char>& is_listed, Entry* rising) {
    const MovedRow moved{moved_row(r), similarity_row(r), moved_.lengths[r], moved_.floors[r]};
    const OtherRows others{memory_, lists_.floors, lists_.n, d_, alpha_, beta_};
    const auto is_taken = [&](int32_t l) { return is_listed[l] != 0 || entry_of_[l] >= 0; };
    find_risen_pairs(moved, others, rising, is_taken,
                     [&](int32_t l, float product) { risen_[r].push_back({r, first_ + l, product}); });
  }

  // Pairs of moved rows: products. The owner of the lower image decides for both rows: another process may round the
  // product otherwise, and a pair in one of two lists is an error.
  void take_moved(int64_t r) {
    const float* products = const_floats(products_);
    for (int64_t c = 0; c < count_; ++c) {
      if (!is_own(std::min(moved_.index[r], moved_.index[c]))) continue;
      const float value = products[r * count_ + c];
      if (value > moved_.floors[r] || value > moved_.floors[c]) pairs_[r].push_back({r, moved_.index[c], value});
    }
  }

  // What has fallen below both floors leaves the rows that did not move.
  void drop() {
    for (int64_t r = 0; r < count_; ++r) {
      for (const int32_t l : fallen_[r]) {
        const int32_t place = lists_.place_of(l, moved_.index[r]);
        if (place < lists_.counts[l]) lists_.erase(l, place);  // else it came twice
      }
    }
  }

  const NeighborLists& lists_;
  const MovedRows& moved_;
  int64_t first_, d_, count_;
  float alpha_, beta_;
  float* memory_;
  const float *similarity_, *rows_;
  std::vector<int32_t> entry_of_;  // [n], the entry that moved an own row, or -1
  std::vector<std::vector<Pair>> pairs_, risen_;
  std::vector<std::vector<int32_t>> fallen_;  // own rows that are to list a moved one no more
  std::atomic<bool> is_symmetric_{true};
  Tensor products_;  // of the moved rows with each other
};

}  // namespace snnet
