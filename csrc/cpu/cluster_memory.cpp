// The momentum update of cluster centres by the hardest entry of each cluster in a batch.
#include <cmath>
#include <limits>
#include <unordered_map>

#include "memory_rows.h"

namespace snnet {
namespace {

// memory [n, d] written, index int64 [B], features [B, d], momentum []
void update_memory_by_hardest_(const Tensor& memory, const Tensor& index, const Tensor& features,
                               const Tensor& momentum) {
  const CheckedUpdate update = checked_update(memory, index, features, momentum);
  const MemoryRows& rows = update.rows;
  const int64_t batch_size = update.batch_size, d = rows.d;
  std::vector<double> similarity(batch_size);
  torch::stable::parallel_for(0, batch_size, grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const double value = vector_kernels().dot(rows.memory + rows.index[b] * d, rows.features + b * d, d);
      similarity[b] = std::isnan(value) ? -std::numeric_limits<double>::infinity() : value;
    }
  });
  std::unordered_map<int64_t, int64_t> hardest;  // entry by index; of equals the first
  for (int64_t b = 0; b < batch_size; ++b) {
    const auto [found, is_new] = hardest.try_emplace(rows.index[b], b);
    if (!is_new && similarity[b] < similarity[found->second]) found->second = b;
  }
  Round round;
  for (const auto& [_, b] : hardest) round.push_back(b);
  blend_rows(rows, round);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("update_memory_by_hardest_", TORCH_BOX(&snnet::update_memory_by_hardest_));
}
