// Plain products, left to torch.
#pragma once

#include <array>

#include "checks.h"

namespace snnet {

// The operations of this library and not aten's: their implementation switches autocast and reduced precision off.
inline Tensor call_product(const char* operation, const Tensor& left, const Tensor& right) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left), torch::stable::detail::from(right)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(operation, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// left [p, d], right [q, d] -> left rightᵀ [p, q], contiguous
inline Tensor inner_products(const Tensor& left, const Tensor& right) {
  return torch::stable::contiguous(call_product("snnet::memory_similarity", left, right));
}

// weights [p, q], rows [q, d] -> weights rows [p, d], contiguous
inline Tensor weighted_rows(const Tensor& weights, const Tensor& rows) {
  return torch::stable::contiguous(call_product("snnet::memory_similarity_backward", weights, rows));
}

inline Tensor empty_floats(const Tensor& like, int64_t rows, int64_t columns) {
  return torch::stable::new_empty(like, {rows, columns}, ScalarType::Float);
}

// Copies of the rows of memory [n, d] at `positions`.
template <class Positions>
Tensor rows_at(const Tensor& memory, const Positions& positions) {
  const int64_t d = memory.size(1), count = static_cast<int64_t>(positions.size());
  Tensor rows = empty_floats(memory, count, d);
  const float* source = const_floats(memory);
  float* target = floats(rows);
  torch::stable::parallel_for(0, count, grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = source + static_cast<int64_t>(positions[r]) * d;
      for (int64_t k = 0; k < d; ++k) target[r * d + k] = row[k];
    }
  });
  return rows;
}

}  // namespace snnet
