// Sums over the columns that rows of a sparse matrix share.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "../common/select.h"
#include "large_pages.h"
#include "sparse_rows.h"

namespace snnet {

inline std::vector<int32_t> consecutive(int64_t begin, int64_t end) {
  std::vector<int32_t> rows(end - begin);
  std::iota(rows.begin(), rows.end(), static_cast<int32_t>(begin));
  return rows;
}

// The rows `order` of a sparse matrix, by columns.
struct ByColumn {
  std::vector<int64_t> starts;
  std::unique_ptr<Entry[]> entries;  // places in `order`, rising within a column

  ByColumn(const SparseRows& matrix, const std::vector<int32_t>& order) : starts(matrix.n + 1, 0) {
    for (const int32_t row : order) {
      for (int64_t e = matrix.starts[row]; e < matrix.starts[row + 1]; ++e) ++starts[matrix.columns[e] + 1];
    }
    for (int64_t i = 0; i < matrix.n; ++i) starts[i + 1] += starts[i];
    entries.reset(new Entry[starts[matrix.n]]);
    ask_for_large_pages(entries.get(), starts[matrix.n] * static_cast<int64_t>(sizeof(Entry)));
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (std::size_t place = 0; place < order.size(); ++place) {
      const int32_t row = order[place];
      for (int64_t e = matrix.starts[row]; e < matrix.starts[row + 1]; ++e) {
        entries[next[matrix.columns[e]]++] = {matrix.values[e], static_cast<int32_t>(place)};
      }
    }
  }
};

// Calls visit(place, the smaller of both values) for the rows of `others` at `first` or behind it that have the column
// of an entry of `code`.
template <class Visit>
void each_sharer(const SparseRows& code, int64_t entry, const ByColumn& others, int64_t first, const Visit& visit) {
  const int32_t column = code.columns[entry];
  const float value = code.values[entry];
  const int64_t begin = others.starts[column];
  for (int64_t e = others.starts[column + 1]; e > begin && others.entries[e - 1].column >= first; --e) {
    visit(others.entries[e - 1].column, std::min(others.entries[e - 1].value, value));
  }
}

// Rows sum to 1: the sum of the smaller values is the overlap, that of the larger ones 2 less it.
inline float jaccard_distance(float overlap) { return std::max(0.0F, 1 - overlap / (2 - overlap)); }

}  // namespace snnet
