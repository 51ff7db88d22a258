// The product of live features and memory.
#include "products.h"

namespace snnet {
namespace {

// features [B, d], memory [n, d] -> s [B, n]
Tensor memory_similarity(const Tensor& features, const Tensor& memory) {
  SNNET_CHECK(features.dim() == 2 && memory.dim() == 2 && features.size(1) == memory.size(1),
              "features [B, d] and memory [n, d] must have 2 dimensions and the same d");
  if (features.scalar_type() != ScalarType::Float || memory.scalar_type() != ScalarType::Float) {
    return inner_products(features, memory);
  }
  return batch_products(features, memory);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) { m.impl("memory_similarity", TORCH_BOX(&snnet::memory_similarity)); }
