// Label prediction (MPLP) over the similarity cache, alone and with the pseudo label memory: checks and launches.
#include "label_prediction.cuh"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "batch.cuh"
#include "checked_blocks.cuh"
#include "launch.cuh"

namespace snnet {
namespace {

PredictionOptions checked_options(double threshold, int64_t min_rank, bool strict) {
  SNNET_CHECK(std::isfinite(threshold), "threshold must be finite, got ", threshold);
  SNNET_CHECK(min_rank >= 0, "min_rank must be at least 0, got ", min_rank);
  return {static_cast<float>(threshold), min_rank, strict};
}

// y of the batch [B, words] in three launches. An inquiry reads P in the first and a memory is written in the last,
// so what is read is P as it was before.
void predict(const Call& call, const Batch& batch, const CacheBlocks& blocks, const PredictionOptions& options,
             const LabelRows& labels, const Inquiry& inquiry, const LabelMemory& memory) {
  if (batch.size == 0 || batch.n == 0) return;
  const Tensor words = torch::stable::new_empty(call.first(), {batch.size * (kListed + 2)}, ScalarType::Long);
  static_assert(sizeof(Key) == sizeof(int64_t) && sizeof(Plan) == sizeof(int64_t));
  Key* keys = static_cast<Key*>(words.mutable_data_ptr());
  const Scratch scratch{keys, keys + batch.size * kListed,
                        reinterpret_cast<Plan*>(keys + batch.size * (kListed + 1))};
  const unsigned samples = blocks_for(batch.size, 1);
  const int64_t most_items = batch.size * std::max<int64_t>(kListed, labels.words);
  const bool by_blocks = blocks.bits != nullptr;
  const int64_t resident = static_cast<int64_t>(by_blocks ? kCountBlocks<kWarp> : kCountBlocks<kCountThreads>) *
                           device_attribute(cudaDevAttrMultiProcessorCount);
  launch(mplp_select_kernel, samples, kSelectThreads, 0, call.stream(), batch, options, scratch, labels, inquiry);
  launch(by_blocks ? mplp_count_kernel<kWarp> : mplp_count_kernel<kCountThreads>,
         static_cast<unsigned>(std::min(most_items, resident)), kCountThreads, 0, call.stream(), batch, blocks, options,
         scratch, labels);
  launch(mplp_decide_kernel, samples, kDecideThreads, 0, call.stream(), batch, options, scratch, labels, memory);
}

Tensor new_labels(const Tensor& like, int64_t batch_size, int64_t n) {
  return torch::stable::new_empty(like, {batch_size, label_bytes(n)}, ScalarType::Byte);
}

Tensor mplp(const Tensor& index, const Tensor& cache, const std::optional<Tensor>& query_rows, double threshold,
            int64_t min_rank, bool strict, const std::optional<Tensor>& block_bits, double block_floor) {
  const Call call(index);
  const CheckedBatch checked(call, index, cache, query_rows);
  const Batch& batch = checked.batch;
  const CacheBlocks blocks = checked_blocks(call, block_bits, block_floor, batch.n);
  const Tensor labels = new_labels(index, batch.size, batch.n);
  predict(call, batch, blocks, checked_options(threshold, min_rank, strict),
          {words<unsigned>(labels), label_bytes(batch.n) / 4}, {}, {});
  return labels;
}

std::tuple<Tensor, Tensor, Tensor> mine_labels_(const Tensor& index, const Tensor& cache,
                                                const std::optional<Tensor>& query_rows, const Tensor& row_bits,
                                                const Tensor& column_bits, double threshold, int64_t min_rank,
                                                bool strict, const std::optional<Tensor>& block_bits,
                                                double block_floor) {
  const Call call(index);
  const CheckedBatch checked(call, index, cache, query_rows);
  const Batch& batch = checked.batch;
  const CacheBlocks blocks = checked_blocks(call, block_bits, block_floor, batch.n);
  call.check_words(row_bits, "row_bits", batch.n);
  call.check_words(column_bits, "column_bits", batch.n);
  const Tensor labels = new_labels(index, batch.size, batch.n);
  const Tensor symmetric = new_labels(index, batch.size, batch.n);
  const Tensor neighbor = new_labels(index, batch.size, batch.n);
  const int64_t width = label_bytes(batch.n);
  const Inquiry inquiry{words<const uint4>(row_bits), words<const uint4>(column_bits), words<uint4>(symmetric),
                        words<uint4>(neighbor), width / 16};
  const LabelMemory memory{words<unsigned>(row_bits), words<unsigned>(column_bits), batch.n, width / 4};
  predict(call, batch, blocks, checked_options(threshold, min_rank, strict), {words<unsigned>(labels), width / 4},
          inquiry, memory);
  return {labels, symmetric, neighbor};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("mplp", TORCH_BOX(&snnet::mplp));
  m.impl("mine_labels_", TORCH_BOX(&snnet::mine_labels_));
}
