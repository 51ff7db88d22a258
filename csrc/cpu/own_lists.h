// The neighbour lists of the rows that one process owns, and pairs on their way into them.
//
// Rows are counted from the first own one, columns from the first image of all.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "checks.h"
#include "neighbor_lists.h"

namespace snnet {

struct Pair {
  int64_t row, column;
  float value;
};

class OwnLists : public NeighborLists {
 public:
  using NeighborLists::NeighborLists;

  static constexpr int32_t kLine = 16;  // entries of a cache line

  static bool stands_in_line(const int32_t* line, int32_t wanted) {  // compilers do not see that this is vectors
    typedef int32_t Four __attribute__((vector_size(16)));
    typedef int64_t Two __attribute__((vector_size(16)));
    Four parts[kLine / 4];
    std::memcpy(parts, line, sizeof parts);
    const Two found = reinterpret_cast<Two>((parts[0] == wanted) | (parts[1] == wanted) | (parts[2] == wanted) |
                                            (parts[3] == wanted));
    return (found[0] | found[1]) != 0;
  }

  // The place of a column in row i, or its count.
  int32_t place_of(int64_t i, int64_t column) const {
    const int32_t *own = columns_of(i), wanted = static_cast<int32_t>(column), count = counts[i];
    int32_t place = 0;
    while (place + kLine <= count && !stands_in_line(own + place, wanted)) place += kLine;
    return static_cast<int32_t>(std::find(own + place, own + count, wanted) - own);
  }

  void prefetch_columns(int64_t i) const {
    for (int32_t j = 0; j < counts[i]; j += kLine) __builtin_prefetch(columns_of(i) + j);
  }

  void prefetch_row(int64_t i) const {
    prefetch_columns(i);
    for (int32_t j = 0; j < counts[i]; j += kLine) __builtin_prefetch(values_of(i) + j);
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

inline OwnLists checked_lists(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors) {
  const OwnLists lists(columns, values, counts, floors, rows_of(columns, "lists.columns"));
  lists.check_counts();
  return lists;
}

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

}  // namespace snnet
