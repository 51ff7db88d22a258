// The product of a gradient with few entries a row and the memory.
#pragma once

#include <vector>

#include "checks.h"
#include "vector.h"

namespace snnet {

using Slopes = std::vector<std::vector<Entry>>;  // the entries of each row, each column once

// Up to n / 8 entries a row on average it is faster to read their rows of the memory alone.
constexpr int64_t kSparseUpTo = 8;

// out [B, d] += weights [B, n] memory [n, d]
void add_sparse_product(const Slopes& weights, const Tensor& memory, float* out);

}  // namespace snnet
