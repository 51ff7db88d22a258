// The product of a gradient with few entries a row and the memory, and its entries by column.
#pragma once

#include <vector>

#include "checks.h"
#include "vector.h"

namespace snnet {

// A sparse matrix [B, n] by columns: the terms of columns[c] are terms[starts[c]] .. terms[starts[c + 1] - 1].
struct SparseColumns {
  struct Term {
    int32_t row;
    float weight;
  };
  std::vector<int64_t> columns;  // rising
  std::vector<int64_t> starts;
  std::vector<Term> terms;  // rising rows; of one entry's parts only the sum
};

// From the entries of each row; a column may come twice in a row.
SparseColumns by_columns(const std::vector<std::vector<Entry>>& rows, int64_t n);

// out [B, d] += weights [B, n] memory [n, d]
void add_sparse_product(const SparseColumns& weights, const Tensor& memory, int64_t batch_size, float* out);

}  // namespace snnet
