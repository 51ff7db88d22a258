// Nearest neighbours from similarity rows at hand: checks and the launch.
#include "neighbors.cuh"

#include <optional>
#include <tuple>

#include "batch.cuh"
#include "launch.cuh"

namespace snnet {
namespace {

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& index, const std::optional<Tensor>& cache,
                                             const std::optional<Tensor>& query_rows, int64_t k) {
  const Call call(index);
  const CheckedBatch checked(call, index, cache, query_rows);
  const Batch& batch = checked.batch;
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  Tensor neighbors = torch::stable::new_empty(index, {batch.size, k}, ScalarType::Long);
  Tensor similarity = torch::stable::new_empty(index, {batch.size, k}, ScalarType::Float);
  if (batch.n > 0) {
    launch(nearest_neighbors_kernel, blocks_for(batch.size, 1), kNeighborThreads, 0, call.stream(), batch, k,
           neighbors.mutable_data_ptr<int64_t>(), similarity.mutable_data_ptr<float>());
  }
  return {neighbors, similarity};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&snnet::nearest_neighbors));
}
