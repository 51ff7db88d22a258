// Products of matrices.
#pragma once

#include "checks.h"

namespace snnet {

// left [p, d], right [q, d], float32 -> left rightᵀ [p, q], contiguous.
//
// The bits of a product depend on its two rows alone (see panels.inl): not on which of the two is `left`, on what else
// is multiplied, on the number of threads, nor on which processor with fused multiply-adds. So a process that owns some
// rows gets the bits of one that has all.
Tensor inner_products(const Tensor& left, const Tensor& right);

// weights [p, q], rows [q, d], float32 -> weights rows [p, d], contiguous; q is summed in the same way.
Tensor weighted_rows(const Tensor& weights, const Tensor& rows);

inline Tensor empty_floats(const Tensor& like, int64_t rows, int64_t columns) {
  return torch::stable::new_empty(like, {rows, columns}, ScalarType::Float);
}

// Copies of the rows of memory [n, d] at `positions`.
template <class Positions>
Tensor rows_at(const Tensor& memory, const Positions& positions) {
  const int64_t d = memory.size(1), count = static_cast<int64_t>(positions.size());
  Tensor rows = empty_floats(memory, count, d);
  const float* source = const_floats(memory);
  float* target = floats(rows);
  torch::stable::parallel_for(0, count, grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = source + static_cast<int64_t>(positions[r]) * d;
      for (int64_t k = 0; k < d; ++k) target[r * d + k] = row[k];
    }
  });
  return rows;
}

}  // namespace snnet
