// Neighbour lists: the upper part of every row of S = X Xᵀ, in tables of fixed width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../common/cycle_check.h"
#include "checks.h"
#include "vector.h"

namespace snnet {

// Whether all numbers lie in [0, most]: else one of them is negative, or `most` less it. No branch, so it is vectorised.
inline bool all_within(const int32_t* numbers, int64_t count, int64_t most) {
  const auto limit = static_cast<uint32_t>(most);
  uint32_t signs = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto number = static_cast<uint32_t>(numbers[i]);
    signs |= number | (limit - number);
  }
  return signs >> 31 == 0;
}

// A row i has counts[i] entries in its first places, in any order; every column above floors[i] is among them. Behind
// them the columns are -1 and the values -inf. If a process owns only some rows, rows are counted from its first one,
// and columns from the first image of all.
struct NeighborLists {
  static constexpr int32_t kLine = 16;  // entries of a cache line

  int32_t* columns;  // [n, capacity]
  float* values;     // [n, capacity]
  int32_t* counts;   // [n]
  float* floors;     // [n]
  int64_t n, capacity;

  NeighborLists(const Tensor& columns_tensor, const Tensor& values_tensor, const Tensor& counts_tensor,
                const Tensor& floors_tensor, int64_t rows)
      : n(rows), capacity(columns_tensor.dim() == 2 ? columns_tensor.size(1) : 0) {
    check_storage(columns_tensor, "lists.columns", ScalarType::Int, n, capacity);
    check_storage(values_tensor, "lists.values", ScalarType::Float, n, capacity);
    columns = columns_tensor.mutable_data_ptr<int32_t>();
    values = floats(values_tensor);
    counts = checked_vector<int32_t>(counts_tensor, "lists.counts", n);
    floors = checked_vector<float>(floors_tensor, "lists.floors", n);
  }

  // Rows that cannot have been made by this library never lead outside of a table.
  void check_counts() const {
    if (all_within(counts, n, capacity)) return;
    for (int64_t i = 0; i < n; ++i) {
      SNNET_CHECK(counts[i] >= 0 && counts[i] <= capacity, "lists.counts[", i, "] must lie in [0, ", capacity,
                  "], got ", counts[i]);
    }
  }

  void check_columns_of(int64_t i) const {
    if (all_within(columns_of(i), counts[i], n - 1)) return;
    for (int32_t j = 0; j < counts[i]; ++j) {
      const int32_t column = columns_of(i)[j];
      SNNET_CHECK(column >= 0 && column < n, "lists.columns must lie in [0, ", n, "), got ", column);
    }
  }

  int32_t* columns_of(int64_t i) const { return columns + i * capacity; }
  float* values_of(int64_t i) const { return values + i * capacity; }

  // The place of a column in row i, or its count.
  int32_t place_of(int64_t i, int64_t column) const {
    const int32_t *own = columns_of(i), wanted = static_cast<int32_t>(column), count = counts[i];
    int32_t place = 0;
    while (place + kLine <= count && !stands_in_line(own + place, wanted)) place += kLine;
    return static_cast<int32_t>(std::find(own + place, own + count, wanted) - own);
  }

  // Adds the keys of what row i lists.
  void add_keys(int64_t i, std::vector<uint64_t>& keys) const {
    const int32_t* own = columns_of(i);
    const float* value = values_of(i);
    for (int32_t j = 0; j < counts[i]; ++j) keys.push_back(selection_key(value[j], own[j]));
  }

  // Whether more than `rank` images are more similar to p than the anchor is.
  Verdict verdict_of(int64_t p, int64_t anchor, int64_t rank) const {
    const int32_t *own = columns_of(p), *end = own + counts[p];
    const int32_t* found = std::find(own, end, static_cast<int32_t>(anchor));  // mostly one of the first: not by lines
    const bool lists_anchor = found != end;
    const float floor = floors[p], bar = lists_anchor ? values_of(p)[found - own] : floor;
    const int64_t above = vector_kernels().count_above(values_of(p), counts[p], bar, rank);
    return list_verdict(above, rank, lists_anchor, bar, floor);
  }

  // Puts an entry behind those of row i, which has room; its place.
  int32_t append(int64_t i, int64_t column, float value) const {
    const int32_t place = counts[i]++;
    columns_of(i)[place] = static_cast<int32_t>(column);
    values_of(i)[place] = value;
    return place;
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

  void prefetch_columns(int64_t i) const {
    for (int32_t j = 0; j < counts[i]; j += kLine) __builtin_prefetch(columns_of(i) + j);
  }

  void prefetch_row(int64_t i) const {
    __builtin_prefetch(columns_of(i));
    for (int32_t j = 0; j < counts[i]; j += kLine) __builtin_prefetch(values_of(i) + j);
  }

 private:
  static bool stands_in_line(const int32_t* line, int32_t wanted) {  // compilers do not see that this is vectors
    typedef int32_t Four __attribute__((vector_size(16)));
    typedef int64_t Two __attribute__((vector_size(16)));
    Four parts[kLine / 4];
    std::memcpy(parts, line, sizeof parts);
    const Two found = reinterpret_cast<Two>((parts[0] == wanted) | (parts[1] == wanted) | (parts[2] == wanted) |
                                            (parts[3] == wanted));
    return (found[0] | found[1]) != 0;
  }
};

// Lists of as many rows as the tables have.
inline NeighborLists checked_lists(const Tensor& columns, const Tensor& values, const Tensor& counts,
                                   const Tensor& floors) {
  const NeighborLists lists(columns, values, counts, floors, rows_of(columns, "lists.columns"));
  lists.check_counts();
  return lists;
}

}  // namespace snnet
