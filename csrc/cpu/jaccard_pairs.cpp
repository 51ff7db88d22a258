// Pairs of images whose Jaccard distance is at most a limit. A row of V sums to 1, so such a pair has an overlap of at
// least m. Columns of a row that sum to less than m cannot make a pair near by themselves: the pair must also share one
// of the other columns. So the search skips such columns, those shared by most rows first. Each pair that it finds is
// then compared over all columns.
#include "shared_columns.h"

namespace snnet {
namespace {

// All rows, sorted by their first column whose value is at least half of the row's largest. Images of one person mostly
// have the same such column, so the columns that they share are still in the cache.
std::vector<int32_t> by_main_column(const SparseRows& code) {
  std::vector<int32_t> main(code.n, static_cast<int32_t>(code.n));
  for (int64_t row = 0; row < code.n; ++row) {
    const float* begin = code.values + code.starts[row];
    const float* end = code.values + code.starts[row + 1];
    if (begin == end) continue;
    const float half = *std::max_element(begin, end) / 2;
    const float* found = std::find_if(begin, end, [&](float value) { return value >= half; });
    if (found != end) main[row] = code.columns[code.starts[row] + (found - begin)];
  }
  std::vector<int32_t> order = consecutive(0, code.n);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return main[a] < main[b]; });
  return order;
}

// The symmetric matrix of which `upper` has each pair once: row and columns are places in `order`.
SparseTensors both_triangles(const SparseRows& upper, const std::vector<int32_t>& order, const Tensor& like) {
  const auto each_entry = [&](const auto& found) {
    for (int64_t place = 0; place < upper.n; ++place) {
      for (int64_t e = upper.starts[place]; e < upper.starts[place + 1]; ++e) {
        const int32_t row = order[place], column = order[upper.columns[e]];
        found(row, column, upper.values[e]);
        if (row != column) found(column, row, upper.values[e]);
      }
    }
  };
  Tensor indptr = torch::stable::new_empty(like, {upper.n + 1}, ScalarType::Long);
  int64_t* starts = indptr.mutable_data_ptr<int64_t>();
  std::fill(starts, starts + upper.n + 1, 0);
  each_entry([&](int32_t row, int32_t, float) { ++starts[row + 1]; });
  for (int64_t i = 0; i < upper.n; ++i) starts[i + 1] += starts[i];
  std::vector<Entry> entries(starts[upper.n]);
  std::vector<int64_t> next(starts, starts + upper.n);
  each_entry([&](int32_t row, int32_t column, float value) { entries[next[row]++] = {value, column}; });

  Tensor indices = torch::stable::new_empty(like, {starts[upper.n]}, ScalarType::Int);
  Tensor values = torch::stable::new_empty(like, {starts[upper.n]}, ScalarType::Float);
  int32_t* column = indices.mutable_data_ptr<int32_t>();
  float* value = floats(values);
  torch::stable::parallel_for(0, upper.n, kRowsOfPart, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::sort(entries.begin() + starts[row], entries.begin() + starts[row + 1],
                [](const Entry& a, const Entry& b) { return a.column < b.column; });
    }
    for (int64_t e = starts[begin]; e < starts[end]; ++e) {
      column[e] = entries[e].column;
      value[e] = entries[e].value;
    }
  });
  return {indptr, indices, values};
}

constexpr float kMargin = 1e-4F;  // more than a sum of a row can round
// The share of m that skipped columns may sum to. With 1, a row that shares almost nothing of the visited columns could
// still be near, and would have to be compared. With 3/4, a fifth of the visits remain, and few rows are compared
// needlessly.
constexpr float kLeftOut = 0.75F;

// Finds the rows near one row, at its position in `order` or after it. Each thread has its own instance.
class NearRows {
 public:
  NearRows(const SparseRows& code, const std::vector<int32_t>& order, const ByColumn& others, float limit)
      : code_(code),
        order_(order),
        others_(others),
        limit_(limit),
        least_overlap_(2 * (1 - limit) / (2 - limit) - kMargin),
        overlaps_(code.n, 0.0F),
        row_(code.n, 0.0F) {}

  // Calls found(place, distance) for each.
  template <class Found>
  void find(int64_t place, const Found& found) {
    const int64_t row = order_[place];
    const float left_out = leave_out(row);
    if (left_out == 0 || !compare_met(place, left_out, found)) sum_all(place, found);
  }

 private:
  struct Column {
    float cost;  // visits of rows over weight
    int64_t entry;
  };

  int64_t sharers(int64_t entry) const {
    return others_.starts[code_.columns[entry] + 1] - others_.starts[code_.columns[entry]];
  }

  // Divides the row's entries into those to visit and others, whose sum it returns.
  float leave_out(int64_t row) {
    by_cost_.clear();
    visits_ = 0;
    for (int64_t e = code_.starts[row]; e < code_.starts[row + 1]; ++e) {
      const auto visits = static_cast<float>(sharers(e));
      by_cost_.push_back({code_.values[e] > 0 ? visits / code_.values[e] : visits, e});  // never NaN
      visits_ += sharers(e);
    }
    std::sort(by_cost_.begin(), by_cost_.end(), [](const Column& a, const Column& b) { return a.cost > b.cost; });
    visited_.clear();
    float left_out = 0;
    for (const Column& column : by_cost_) {
      if (left_out + code_.values[column.entry] < kLeftOut * least_overlap_) {
        left_out += code_.values[column.entry];
      } else {
        visited_.push_back(column.entry);
      }
    }
    return left_out;
  }

  // Adds what `entry` shares to the overlaps, and lists who is met first.
  void add_sharers(int64_t entry, int64_t place) {
    const std::size_t met = met_.size();
    met_.resize(met + sharers(entry) + 1);
    int32_t* next = met_.data() + met;
    each_sharer(code_, entry, others_, place, [&](int32_t other, float smaller) {
      *next = other;
      next += overlaps_[other] == 0;  // no branch: it could not be foreseen
      overlaps_[other] += smaller;
    });
    met_.resize(next - met_.data());
  }

  // False where so many rows may be near that the sums by column take less.
  template <class Found>
  bool compare_met(int64_t place, float left_out, const Found& found) {
    met_.clear();
    for (const int64_t entry : visited_) add_sharers(entry, place);
    open_.clear();
    for (const int32_t other : met_) {
      if (overlaps_[other] + left_out >= least_overlap_) open_.push_back(other);
      overlaps_[other] = -1;  // one that came back to 0 stands twice
    }
    for (const int32_t other : met_) overlaps_[other] = 0;
    if (static_cast<int64_t>(open_.size()) * code_.starts[code_.n] > visits_ * code_.n) return false;

    const int64_t row = order_[place], begin = code_.starts[row], end = code_.starts[row + 1];
    for (int64_t e = begin; e < end; ++e) row_[code_.columns[e]] = code_.values[e];
    for (const int32_t other : open_) {
      float overlap = 0;
      for (int64_t e = code_.starts[order_[other]]; e < code_.starts[order_[other] + 1]; ++e) {
        overlap += std::min(row_[code_.columns[e]], code_.values[e]);
      }
      tell(other, overlap, found);
    }
    for (int64_t e = begin; e < end; ++e) row_[code_.columns[e]] = 0;
    return true;
  }

  template <class Found>
  void sum_all(int64_t place, const Found& found) {
    met_.clear();
    const int64_t row = order_[place];
    for (int64_t e = code_.starts[row]; e < code_.starts[row + 1]; ++e) add_sharers(e, place);
    for (const int32_t other : met_) {
      tell(other, overlaps_[other], found);
      overlaps_[other] = 0;
    }
  }

  template <class Found>
  void tell(int32_t other, float overlap, const Found& found) const {
    const float distance = jaccard_distance(overlap);
    if (overlap != 0 && distance <= limit_) found(other, distance);
  }

  const SparseRows& code_;
  const std::vector<int32_t>& order_;
  const ByColumn& others_;
  const float limit_, least_overlap_;
  int64_t visits_ = 0;  // of all entries of the row
  std::vector<Column> by_cost_;
  std::vector<int64_t> visited_;
  std::vector<float> overlaps_;
  std::vector<int32_t> met_, open_;
  std::vector<float> row_;  // the values by column
};

// The pairs of rows that share something and whose Jaccard distance is at most max_distance. Either row of a pair adds
// up the same values in the same order, by rising column, so that one sum serves both.
SparseTensors jaccard_pairs(const Tensor& indptr, const Tensor& indices, const Tensor& values, double max_distance) {
  const SparseRows code(indptr, indices, values);
  const std::vector<int32_t> order = by_main_column(code);
  const ByColumn others(code, order);
  const NearRows fresh(code, order, others, static_cast<float>(max_distance));
  const auto [starts, columns, distances] =
      build_rows(values, consecutive(0, code.n), fresh, [&](int64_t place, NearRows& near, SparsePart& part) {
        near.find(place, [&](int32_t other, float distance) { part.append(other, distance); });
      });
  return both_triangles(SparseRows(starts, columns, distances), order, values);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) { m.impl("jaccard_pairs", TORCH_BOX(&snnet::jaccard_pairs)); }
