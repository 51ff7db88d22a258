// Sums over the columns that rows of a sparse matrix share.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "large_pages.h"
#include "sparse_rows.h"

namespace snnet {

// The rows of a sparse matrix from `first` on, by columns.
class ByColumn {
 public:
  ByColumn(const SparseRows& matrix, int64_t first) : starts_(matrix.n() + 1, 0) {
    const int64_t n = matrix.n(), rows = n - first;
    // Each part of the rows has its own places within a column, behind those of the parts before it.
    std::vector<int64_t> next(kParts * n, 0);
    const auto each_entry = [&](const auto& found) {
      torch::stable::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          for (int64_t row = part * rows / kParts; row < (part + 1) * rows / kParts; ++row) {
            for (const Entry& entry : matrix.row(first + row)) {
              found(next[part * n + entry.column], Entry{entry.value, static_cast<int32_t>(row)});
            }
          }
        }
      });
    };
    each_entry([](int64_t& count, Entry) { ++count; });
    int64_t before = 0;
    for (int64_t column = 0; column < n; ++column) {
      for (int64_t part = 0; part < kParts; ++part) before += std::exchange(next[part * n + column], before);
      starts_[column + 1] = before;
    }
    entries_.reset(new Entry[before]);
    ask_for_large_pages(entries_.get(), before * static_cast<int64_t>(sizeof(Entry)));
    each_entry([&](int64_t& place, Entry entry) { entries_[place++] = entry; });
  }

  // The entries of a column: each has the number of its row, counted from `first`; they rise.
  std::span<const Entry> column(int64_t i) const {
    return {entries_.get() + starts_[i], entries_.get() + starts_[i + 1]};
  }

 private:
  static constexpr int64_t kParts = 2;

  std::vector<int64_t> starts_;
  std::unique_ptr<Entry[]> entries_;
};

// Calls visit(number, the smaller of both values) for the rows of `others` numbered `first` or higher that share the
// column of `entry`.
template <class Visit>
void each_sharer(const Entry& entry, const ByColumn& others, int64_t first, const Visit& visit) {
  const std::span<const Entry> column = others.column(entry.column);
  for (std::size_t e = column.size(); e > 0 && column[e - 1].column >= first; --e) {
    visit(column[e - 1].column, std::min(column[e - 1].value, entry.value));
  }
}

// Rows sum to 1: the sum of the smaller values is the overlap, that of the larger ones 2 less it.
inline float jaccard_distance(float overlap) { return std::max(0.0F, 1 - overlap / (2 - overlap)); }

}  // namespace snnet
