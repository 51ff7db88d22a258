// What is read may lie in what is written: features may be rows of the memory, labels rows of P. It is copied then.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace snnet {

// Whether two contiguous tensors share memory.
inline bool overlap(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  const auto* begin_a = static_cast<const char*>(a.const_data_ptr());
  const auto* begin_b = static_cast<const char*>(b.const_data_ptr());
  return begin_a < begin_b + b.numel() * b.element_size() && begin_b < begin_a + a.numel() * a.element_size();
}

// The tensor, contiguous and apart from all that is written.
template <class... Written>
torch::stable::Tensor apart_from(const torch::stable::Tensor& tensor, const Written&... written) {
  const torch::stable::Tensor rows = torch::stable::contiguous(tensor);
  return (overlap(rows, written) || ...) ? torch::stable::clone(rows) : rows;
}

}  // namespace snnet
