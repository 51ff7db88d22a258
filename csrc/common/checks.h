// Checks of tensors that the CPU and the CUDA operations share. What Python checks in eager mode is checked again, for
// traced and direct calls; the values of an index mostly here alone. On which device a tensor must be, each side checks
// itself.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>

#include "raise.h"

namespace snnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) {
  SNNET_CHECK(tensor.scalar_type() == type, name, " has the wrong type");
  SNNET_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  SNNET_CHECK(tensor.size(0) == rows && tensor.size(1) == columns, name, " must have shape [", rows, ", ", columns,
              "], got [", tensor.size(0), ", ", tensor.size(1), "]");
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  SNNET_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline int64_t rows_of(const Tensor& tensor, const char* name) {
  SNNET_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  // Columns are kept as int32; the matrix they belong to has 2^62 entries then.
  SNNET_CHECK(tensor.size(0) < std::numeric_limits<int32_t>::max(), name, " has too many rows");
  return tensor.size(0);
}

// index [B]
inline void check_index(const Tensor& index) {
  SNNET_CHECK(index.scalar_type() == ScalarType::Long, "index must be torch.int64");
  SNNET_CHECK(index.dim() == 1, "index must have 1 dimension [B], got ", index.dim());
}

inline void check_vector(const Tensor& tensor, const char* name, ScalarType type, int64_t size) {
  const char* type_name = type == ScalarType::Long    ? "int64"
                          : type == ScalarType::Int   ? "int32"
                          : type == ScalarType::Float ? "float32"
                                                      : "its type";
  SNNET_CHECK(tensor.scalar_type() == type && tensor.dim() == 1 && tensor.is_contiguous(), name,
              " must be a contiguous vector of ", type_name);
  SNNET_CHECK(tensor.size(0) == size, name, " must have ", size, " entries, got ", tensor.size(0));
}

}  // namespace snnet
