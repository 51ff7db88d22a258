// Nearest neighbours from similarity rows at hand: checks and the launch.
#include "neighbors.cuh"

#include <tuple>

#include "launch.cuh"

namespace snnet {
namespace {

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& index, const Tensor& query_rows, int64_t k) {
  const Call call(index);
  const Tensor positions = call.checked_index(index);
  SNNET_CHECK(query_rows.dim() == 2, "query_rows must have 2 dimensions, got ", query_rows.dim());
  const int64_t batch_size = positions.size(0), n = query_rows.size(1);
  SNNET_CHECK(n < std::numeric_limits<int32_t>::max(), "query_rows has too many columns");
  call.check_matrix(query_rows, "query_rows", ScalarType::Float, batch_size, n);
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  const Tensor rows = torch::stable::contiguous(query_rows);
  Tensor neighbors = torch::stable::new_empty(index, {batch_size, k}, ScalarType::Long);
  Tensor similarity = torch::stable::new_empty(index, {batch_size, k}, ScalarType::Float);
  if (n > 0) {
    launch(nearest_neighbors_kernel, blocks_for(batch_size, 1), kNeighborThreads, 0, call.stream(),
           positions.const_data_ptr<int64_t>(), rows.const_data_ptr<float>(), static_cast<int>(n), k,
           neighbors.mutable_data_ptr<int64_t>(), similarity.mutable_data_ptr<float>());
  }
  return {neighbors, similarity};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&snnet::nearest_neighbors));
}
