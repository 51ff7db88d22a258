// The product of a gradient with few entries a row and the memory, and its entries by column.
#pragma once

#include <vector>

#include "checks.h"
#include "vector.h"

namespace snnet {

using Slopes = std::vector<std::vector<Entry>>;  // the entries of each row, each column once

// A sparse matrix [B, n] by columns: the terms of columns[c] are terms[starts[c]] .. terms[starts[c + 1] - 1].
struct SparseColumns {
  struct Term {
    int32_t row;
    float weight;
  };
  std::vector<int32_t> columns;  // rising
  std::vector<int64_t> starts;
  std::vector<Term> terms;  // rising rows
};

SparseColumns by_columns(const Slopes& rows, int64_t n);

// out [B, d] += weights [B, n] memory [n, d]
void add_sparse_product(const SparseColumns& weights, const Tensor& memory, int64_t batch_size, float* out);

}  // namespace snnet
