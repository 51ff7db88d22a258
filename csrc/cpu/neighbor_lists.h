// Neighbour lists: the upper part of every row of S = X Xᵀ, in tables of fixed width.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "checks.h"

namespace snnet {

// A row i has counts[i] entries in its first places, in any order; every column above floors[i] is among them. Behind
// them the columns are -1 and the values -inf.
struct NeighborLists {
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

  int32_t* columns_of(int64_t i) const { return columns + i * capacity; }
  float* values_of(int64_t i) const { return values + i * capacity; }

  // Rows that cannot have been made by this library never lead outside of a table.
  void check_counts() const {
    for (int64_t i = 0; i < n; ++i) {
      SNNET_CHECK(counts[i] >= 0 && counts[i] <= capacity, "lists.counts[", i, "] must lie in [0, ", capacity,
                  "], got ", counts[i]);
    }
  }

  void check_columns_of(int64_t i) const {
    for (int32_t j = 0; j < counts[i]; ++j) {
      const int32_t column = columns_of(i)[j];
      SNNET_CHECK(column >= 0 && column < n, "lists.columns must lie in [0, ", n, "), got ", column);
    }
  }
};

}  // namespace snnet
