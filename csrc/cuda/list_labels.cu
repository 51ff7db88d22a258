// Label prediction (MPLP) and nearest neighbours from neighbour lists: checks and launches.
#include "list_labels.cuh"

#include <algorithm>
#include <optional>
#include <tuple>

#include "launch.cuh"
#include "list_neighbors.cuh"

namespace snnet {
namespace {

constexpr int kProductFloats = 64 << 20;  // of rows that the whole GPU multiplies for neighbours, at most B n

// What an inquiry of lists is about, checked.
struct ListInquiry {
  Tensor index;  // keeps what `batch` points to
  ListBatch batch;

  ListInquiry(const Call& call, const Tensor& memory, const Tensor& positions, const Tensor& columns,
                 const Tensor& values, const Tensor& counts, const Tensor& floors)
      : index(call.checked_index(positions)) {
    const int64_t n = rows_of(memory, "memory");
    call.check_storage(memory, "memory", ScalarType::Float, n, memory.size(1));
    batch = {index.const_data_ptr<int64_t>(), nullptr, memory.const_data_ptr<float>(), memory.size(1), index.size(0),
             lists_of_call(call, columns, values, counts, floors, n)};
  }
};

// Blocks for up to `items`: as many as the GPU holds.
unsigned resident_blocks(int64_t items, int threads) {
  const int64_t most = device_attribute(cudaDevAttrMultiProcessorCount) * (2048 / threads);
  return static_cast<unsigned>(std::clamp<int64_t>(items, 1, most));
}

Tensor zero(const Call& call) { return torch::stable::new_zeros(call.first(), {}, ScalarType::Long); }

// -> labels uint8 [B, label_bytes(n)], rows that were multiplied int64 []
std::tuple<Tensor, Tensor> mplp_from_lists(const Tensor& memory, const Tensor& index, const Tensor& columns,
                                           const Tensor& values, const Tensor& counts, const Tensor& floors,
                                           const std::optional<Tensor>& query_rows, double threshold,
                                           int64_t min_rank) {
  const Call call(memory);
  ListInquiry checked(call, memory, index, columns, values, counts, floors);
  ListBatch& batch = checked.batch;
  const PredictionOptions options = checked_prediction(threshold, min_rank);
  const int64_t n = batch.lists.n, size = batch.size;
  Tensor queries;
  if (query_rows) {
    call.check_matrix(*query_rows, "query_rows", ScalarType::Float, size, n);
    queries = torch::stable::contiguous(*query_rows);
    batch.query_rows = queries.const_data_ptr<float>();
  }
  const Tensor labels = torch::stable::new_empty(memory, {size, label_bytes(n)}, ScalarType::Byte);
  if (size == 0 || n == 0) return {labels, zero(call)};

  const int64_t places = std::max<int64_t>(kFewestKeys, batch.lists.capacity);
  const Tensor products = torch::stable::new_empty(memory, {}, ScalarType::Long);
  LabelScratch scratch{};
  const Tensor held = scratch_parts(
      call, ScratchPart(scratch.keys, size * places), ScratchPart(scratch.first, size),
      ScratchPart(scratch.second, size), ScratchPart(scratch.inconsistent, size),
      ScratchPart(scratch.inconsistent_by_products, size), ScratchPart(scratch.slices, size),
      ScratchPart(scratch.finished, size), ScratchPart(scratch.plans, size), ScratchPart(scratch.untold, kMostUntold),
      ScratchPart(scratch.untold_count, 1));
  scratch.products = static_cast<unsigned long long*>(products.mutable_data_ptr());
  scratch.places = static_cast<int32_t>(places);

  const LabelWords rows{words<unsigned>(labels), label_bytes(n) / 4};
  const unsigned samples = blocks_for(size, 1);
  const int64_t slices = rows.slices();
  const int64_t candidates = size * std::max(places, rows.words);
  launch(mplp_lists_select_kernel, samples, kLabelThreads, 0, call.stream(), batch, options, scratch, rows);
  if (batch.query_rows == nullptr) {
    launch(mplp_lists_complete_kernel, resident_blocks(size * slices, kLabelThreads), kLabelThreads, 0, call.stream(),
           batch, options, scratch, rows);
  }
  launch(mplp_lists_look_kernel, resident_blocks(candidates / kLabelWarps + 1, kLabelThreads), kLabelThreads, 0,
         call.stream(), batch, options, scratch, rows);
  launch(mplp_lists_multiply_kernel, resident_blocks(std::max(size, kMostUntold * slices), kLabelThreads),
         kLabelThreads, 0, call.stream(), batch, options, scratch, rows);
  return {labels, products};
}

// -> index int64 [B, k], similarity [B, k], rows that were multiplied int64 []
std::tuple<Tensor, Tensor, Tensor> nearest_from_lists(const Tensor& memory, const Tensor& index, const Tensor& columns,
                                                      const Tensor& values, const Tensor& counts,
                                                      const Tensor& floors, int64_t k) {
  const Call call(memory);
  const ListInquiry checked(call, memory, index, columns, values, counts, floors);
  const ListBatch& batch = checked.batch;
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  const int64_t n = batch.lists.n, size = batch.size;
  const Tensor neighbors = torch::stable::new_empty(memory, {size, k}, ScalarType::Long);
  const Tensor similarity = torch::stable::new_empty(memory, {size, k}, ScalarType::Float);
  if (size == 0 || n == 0) return {neighbors, similarity, zero(call)};

  const int64_t rows = std::clamp<int64_t>(kProductFloats / n, 1, size);
  const Tensor made = torch::stable::new_empty(memory, {}, ScalarType::Long);
  NeighborScratch scratch{nullptr, nullptr, nullptr, rows, made.mutable_data_ptr<int64_t>()};
  const Tensor held = scratch_parts(call, ScratchPart(scratch.untold, size), ScratchPart(scratch.finished, size),
                                    ScratchPart(scratch.products, rows * n));
  const Neighbors found{k, neighbors.mutable_data_ptr<int64_t>(), similarity.mutable_data_ptr<float>()};
  const int64_t slices = (n + kNeighborThreads - 1) / kNeighborThreads;
  launch(nearest_lists_kernel, blocks_for(size, 1), kNeighborThreads, 0, call.stream(), batch, scratch, found);
  launch(nearest_multiply_kernel, resident_blocks(size * slices, kNeighborThreads), kNeighborThreads, 0, call.stream(),
         batch, scratch, found);
  return {neighbors, similarity, made};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("mplp_from_lists", TORCH_BOX(&snnet::mplp_from_lists));
  m.impl("nearest_from_lists", TORCH_BOX(&snnet::nearest_from_lists));
}
