// The last step of the Jaccard graph.
#pragma once

#include <tuple>
#include <vector>

#include "sparse_rows.h"

namespace snnet {

// indptr int64 [n + 1], indices int32 [entries], values float32 [entries]
using SparseTensors = std::tuple<Tensor, Tensor, Tensor>;

// The pairs of rows of V that share something and whose Jaccard distance is at most `limit`. Row i is that of
// images[i]; the result goes by images. `like` has the type and device of the values.
SparseTensors near_pairs(const SparseRows& weights, float limit, const std::vector<int32_t>& images,
                         const Tensor& like);

}  // namespace snnet
