// Pairs of images whose Jaccard distance is at most a limit. A row of V sums to 1, so such a pair has an overlap of at
// least m. Columns of a row that sum to less than m cannot make a pair near by themselves: the pair must also share one
// of the other columns. So the search skips such columns, those shared by most rows first. Each pair that it finds is
// then compared over all columns.
#include "jaccard_pairs.h"

#include "shared_columns.h"

namespace snnet {
namespace {

constexpr float kMargin = 1e-4F;  // more than a sum of a row can round
// The share of m that skipped columns may sum to. With 1, a row that shares almost nothing of the visited columns could
// still be near, and would have to be compared. With 3/4, a fifth of the visits remain, and few rows are compared
// needlessly.
constexpr float kLeftOut = 0.75F;

// Finds the rows near one row, at its place or behind it. Each thread has its own instance.
class NearRows {
 public:
  NearRows(const SparseRows& weights, const ByColumn& others, float limit)
      : weights_(weights),
        others_(others),
        limit_(limit),
        least_overlap_(2 * (1 - limit) / (2 - limit) - kMargin),
        mean_entries_(static_cast<double>(weights.size()) / static_cast<double>(weights.n())),
        overlaps_(weights.n(), 0.0F),
        row_(weights.n(), 0.0F) {}

  // Calls found(other, distance) for each.
  template <class Found>
  void find(int64_t row, const Found& found) {
    const float left_out = leave_out(row);
    if (left_out <= 0 || !compare_met(row, left_out, found)) sum_all(row, found);
  }

 private:
  struct Column {
    float cost;  // visits of rows over weight
    Entry entry;
  };

  // Divides the row's entries into those to visit and others, whose sum it returns.
  float leave_out(int64_t row) {
    by_cost_.clear();
    visits_ = 0;
    for (const Entry& entry : weights_.row(row)) {
      const auto sharers = static_cast<int64_t>(others_.column(entry.column).size());
      const auto visits = static_cast<float>(sharers);
      by_cost_.push_back({entry.value > 0 ? visits / entry.value : visits, entry});  // never NaN
      visits_ += sharers;
    }
    std::sort(by_cost_.begin(), by_cost_.end(), [](const Column& a, const Column& b) { return a.cost > b.cost; });
    visited_.clear();
    float left_out = 0;
    for (const Column& column : by_cost_) {
      if (left_out + column.entry.value < kLeftOut * least_overlap_) {
        left_out += column.entry.value;
      } else {
        visited_.push_back(column.entry);
      }
    }
    return left_out;
  }

  // Adds what `entry` shares to the overlaps, and lists who is met first.
  void add_sharers(const Entry& entry, int64_t row) {
    const std::size_t met = met_.size();
    met_.resize(met + others_.column(entry.column).size() + 1);
    int32_t* next = met_.data() + met;
    each_sharer(entry, others_, row, [&](int32_t other, float smaller) {
      *next = other;
      next += overlaps_[other] == 0;  // no branch: it could not be foreseen
      overlaps_[other] += smaller;
    });
    met_.resize(next - met_.data());
  }

  // False where so many rows may be near that the sums by column take less.
  template <class Found>
  bool compare_met(int64_t row, float left_out, const Found& found) {
    met_.clear();
    for (const Entry& entry : visited_) add_sharers(entry, row);
    open_.clear();
    for (const int32_t other : met_) {
      if (overlaps_[other] + left_out >= least_overlap_) open_.push_back(other);
      overlaps_[other] = 0;  // one that came back to 0 stands twice
    }
    if (static_cast<double>(open_.size()) * mean_entries_ > static_cast<double>(visits_)) return false;

    for (const Entry& entry : weights_.row(row)) row_[entry.column] = entry.value;
    for (const int32_t other : open_) {
      float overlap = 0;
      for (const Entry& entry : weights_.row(other)) overlap += std::min(row_[entry.column], entry.value);
      tell(other, overlap, found);
    }
    for (const Entry& entry : weights_.row(row)) row_[entry.column] = 0;
    return true;
  }

  template <class Found>
  void sum_all(int64_t row, const Found& found) {
    met_.clear();
    for (const Entry& entry : weights_.row(row)) add_sharers(entry, row);
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

  const SparseRows& weights_;
  const ByColumn& others_;
  const float limit_, least_overlap_;
  const double mean_entries_;  // of a row
  int64_t visits_ = 0;         // of all entries of the row
  std::vector<Column> by_cost_;
  std::vector<Entry> visited_;
  std::vector<float> overlaps_;
  std::vector<int32_t> met_, open_;
  std::vector<float> row_;  // the values by column
};

// The symmetric matrix of which `upper` has each pair once, by images: row i of `upper` is that of images[i].
SparseTensors both_triangles(const SparseRows& upper, const std::vector<int32_t>& images, const Tensor& like) {
  const int64_t n = upper.n();
  const ByColumn by_column(upper, 0);
  const auto below = [&](int64_t place) {  // without the entry on the diagonal, which is the last one
    const std::span<const Entry> column = by_column.column(place);
    return column.first(column.size() - (!column.empty() && column.back().column == place));
  };
  std::vector<int32_t> place_of(n);
  for (int64_t place = 0; place < n; ++place) place_of[images[place]] = static_cast<int32_t>(place);
  Tensor indptr = torch::stable::new_empty(like, {n + 1}, ScalarType::Long);
  int64_t* starts = indptr.mutable_data_ptr<int64_t>();
  starts[0] = 0;
  for (int64_t image = 0; image < n; ++image) {
    const int32_t place = place_of[image];
    starts[image + 1] = starts[image] + std::ssize(below(place)) + std::ssize(upper.row(place));
  }
  Tensor indices = torch::stable::new_empty(like, {starts[n]}, ScalarType::Int);
  Tensor values = torch::stable::new_empty(like, {starts[n]}, ScalarType::Float);
  int32_t* columns = indices.mutable_data_ptr<int32_t>();
  float* value = floats(values);
  torch::stable::parallel_for(0, n, grain(256), [&](int64_t begin, int64_t end) {
    std::vector<Entry> row;
    for (int64_t image = begin; image < end; ++image) {
      row.clear();
      for (const Entry& entry : below(place_of[image])) row.push_back({entry.value, images[entry.column]});
      for (const Entry& entry : upper.row(place_of[image])) row.push_back({entry.value, images[entry.column]});
      std::sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) { return a.column < b.column; });
      for (std::size_t e = 0; e < row.size(); ++e) {
        columns[starts[image] + static_cast<int64_t>(e)] = row[e].column;
        value[starts[image] + static_cast<int64_t>(e)] = row[e].value;
      }
    }
  });
  return {indptr, indices, values};
}

}  // namespace

// Either row of a pair adds up the same values in the same order, by rising column, so that one sum serves both.
SparseTensors near_pairs(const SparseRows& weights, float limit, const std::vector<int32_t>& images,
                         const Tensor& like) {
  const ByColumn others(weights, 0);
  const NearRows fresh(weights, others, limit);
  const SparseRows upper(weights.n(), fresh, [](int64_t row, NearRows& near, std::vector<Entry>& entries) {
    near.find(row, [&](int32_t other, float distance) { entries.push_back({distance, other}); });
  });
  return both_triangles(upper, images, like);
}

}  // namespace snnet
