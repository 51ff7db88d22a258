// The product of live features and memory, and its gradient.
#include <numeric>
#include <optional>
#include <vector>

#include "products.h"
#include "sparse_product.h"

namespace snnet {
namespace {

// features [B, d], memory [n, d] -> s [B, n]
Tensor memory_similarity(const Tensor& features, const Tensor& memory) {
  SNNET_CHECK(features.dim() == 2 && memory.dim() == 2 && features.size(1) == memory.size(1),
              "features [B, d] and memory [n, d] must have 2 dimensions and the same d");
  return inner_products(features, memory);
}

constexpr int64_t kLeastEntries = 1 << 14;

// The entries of grad [B, n], contiguous, that are not 0, or nothing if they are too many. They are few if a loss looks
// at positives and hard negatives alone.
std::optional<Slopes> few_entries(const Tensor& grad) {
  const int64_t batch_size = grad.size(0), n = grad.size(1);
  const float* values = const_floats(grad);
  std::vector<int64_t> counts(batch_size, 0);
  torch::stable::parallel_for(0, batch_size, grain(n / 4), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const float* row = values + b * n;
      int64_t count = 0;
      for (int64_t j = 0; j < n; ++j) count += row[j] != 0;
      counts[b] = count;
    }
  });
  if (std::accumulate(counts.begin(), counts.end(), int64_t{0}) > batch_size * n / kSparseUpTo) return std::nullopt;
  Slopes rows(batch_size);
  torch::stable::parallel_for(0, batch_size, grain(n / 4), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const float* row = values + b * n;
      rows[b].reserve(counts[b]);
      for (int64_t j = 0; j < n; ++j) {
        if (row[j] != 0) rows[b].push_back({row[j], static_cast<int32_t>(j)});
      }
    }
  });
  return rows;
}

// grad [B, n], memory [n, d] -> grad memory [B, d]
Tensor memory_similarity_backward(const Tensor& grad, const Tensor& memory) {
  SNNET_CHECK(grad.dim() == 2 && memory.dim() == 2 && grad.size(1) == memory.size(0),
              "grad [B, n] and memory [n, d] must have 2 dimensions and the same n");
  check_matrix(grad, "grad", ScalarType::Float, grad.size(0), memory.size(0));
  check_matrix(memory, "memory", ScalarType::Float, grad.size(1), memory.size(1));
  if (!grad.is_contiguous() || !memory.is_contiguous() || grad.numel() < kLeastEntries) {
    return weighted_rows(grad, memory);
  }
  const std::optional<Slopes> rows = few_entries(grad);
  if (!rows) return weighted_rows(grad, memory);
  Tensor result = torch::stable::new_zeros(memory, {grad.size(0), memory.size(1)});
  add_sparse_product(*rows, memory, floats(result));
  return result;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("memory_similarity", TORCH_BOX(&snnet::memory_similarity));
  m.impl("memory_similarity_backward", TORCH_BOX(&snnet::memory_similarity_backward));
}
