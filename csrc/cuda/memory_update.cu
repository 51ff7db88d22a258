// The momentum update of the memory and the cache: checks and launches.
#include "memory_update.cuh"

#include <optional>

#include "checked_blocks.cuh"
#include "launch.cuh"

namespace snnet {
namespace {

bool overlap(const Tensor& a, const Tensor& b) {
  const auto* begin_a = static_cast<const char*>(a.const_data_ptr());
  const auto* begin_b = static_cast<const char*>(b.const_data_ptr());
  return begin_a < begin_b + b.numel() * b.element_size() && begin_b < begin_a + a.numel() * a.element_size();
}

// The tensor, contiguous and apart from what is written: features may be rows of the memory.
Tensor apart_from(const Tensor& tensor, const Tensor& memory, const std::optional<Tensor>& cache) {
  const Tensor rows = torch::stable::contiguous(tensor);
  return overlap(rows, memory) || (cache && overlap(rows, *cache)) ? torch::stable::clone(rows) : rows;
}

// M[index] <- normalize(alpha M[index] + (1 - alpha) f), and the cache from similarity [B, n].
void update_memory_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum,
                    const std::optional<Tensor>& cache, const std::optional<Tensor>& similarity,
                    const std::optional<Tensor>& block_bits, double block_floor) {
  const Call call(memory);
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1);
  call.check_storage(memory, "memory", ScalarType::Float, n, d);
  const Tensor positions = call.checked_index(index);
  const int64_t batch_size = positions.size(0);
  SNNET_CHECK(batch_size < std::numeric_limits<int32_t>::max(), "index has too many entries");
  call.check_matrix(features, "features", ScalarType::Float, batch_size, d);
  call.check_device(momentum, "momentum");
  SNNET_CHECK(momentum.scalar_type() == ScalarType::Float && momentum.dim() == 0,
              "momentum must be a 0-d float32 tensor");
  SNNET_CHECK(cache.has_value() == similarity.has_value(), "similarity is given where a cache is, and only there");
  if (cache) {
    call.check_storage(*cache, "cache", ScalarType::Float, n, n);
    call.check_matrix(*similarity, "similarity", ScalarType::Float, batch_size, n);
  }
  SNNET_CHECK(cache || !block_bits, "block_bits are given without a cache");
  const CacheBlocks blocks = checked_blocks(call, block_bits, block_floor, n);
  if (batch_size == 0 || n == 0) return;

  const Tensor live = apart_from(features, memory, cache);
  MemoryUpdate update{};
  update.memory = memory.mutable_data_ptr<float>();
  update.index = positions.const_data_ptr<int64_t>();
  update.momentum = momentum.const_data_ptr<float>();
  update.features = live.const_data_ptr<float>();
  update.n = n;
  update.d = d;
  update.batch_size = static_cast<int32_t>(batch_size);
  if (!cache) {
    launch(update_rows_kernel, static_cast<unsigned>(batch_size), kUpdateThreads, 0, call.stream(), update);
    return;
  }
  const Tensor products = apart_from(*similarity, memory, cache);
  // The words of progress, which begin at zero, then what the entries write for the tiles.
  constexpr int64_t kHead = 4, kWordsOfEntry = (sizeof(RowFactors) + sizeof(PlacedEntry)) / sizeof(int32_t);
  Tensor scratch = torch::stable::new_empty(positions, {kHead + kWordsOfEntry * batch_size}, ScalarType::Int);
  update.blocks = blocks;
  update.cache = cache->mutable_data_ptr<float>();
  update.similarity = products.const_data_ptr<float>();
  update.progress = scratch.mutable_data_ptr<int32_t>();
  SNNET_CUDA_CHECK(cudaMemsetAsync(update.progress, 0, kProgressWords * sizeof(int32_t), call.stream()));
  update.factors = reinterpret_cast<RowFactors*>(update.progress + kHead);
  update.order = reinterpret_cast<PlacedEntry*>(update.factors + batch_size);
  const int64_t tiles = ((batch_size + kTileRows - 1) / kTileRows) * ((n + kTileColumns - 1) / kTileColumns);
  const int64_t tickets = batch_size + pair_blocks(update.batch_size) + tiles;
  launch(update_memory_kernel, blocks_for(tickets, 1), kUpdateThreads, 0, call.stream(), update);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("update_memory_", TORCH_BOX(&snnet::update_memory_));
}
