// Checks of arguments: what Python has checked in eager mode is checked again for traced and direct calls.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>

#include "../common/bits.h"
#include "../common/raise.h"

namespace snnet {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) {
  SNNET_CHECK(tensor.is_cpu(), name, " must be on the cpu");
  SNNET_CHECK(tensor.scalar_type() == type, name, " has the wrong type");
  SNNET_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  SNNET_CHECK(tensor.size(0) == rows && tensor.size(1) == columns, name, " must have shape [", rows, ", ",
                  columns, "], got [", tensor.size(0), ", ", tensor.size(1), "]");
}

// A matrix whose own storage is read or written.
inline void check_storage(const Tensor& tensor, const char* name, ScalarType type, int64_t rows,
                          int64_t columns) {
  check_matrix(tensor, name, type, rows, columns);
  SNNET_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline int64_t rows_of(const Tensor& tensor, const char* name) {
  SNNET_CHECK(tensor.dim() == 2, name, " must have 2 dimensions, got ", tensor.dim());
  // Columns are kept as int32; the matrix they belong to has 2^62 entries then.
  SNNET_CHECK(tensor.size(0) < std::numeric_limits<int32_t>::max(), name, " has too many rows");
  return tensor.size(0);
}

// index [B] of values in [lowest, n), contiguous.
inline Tensor checked_index(const Tensor& index, int64_t n, int64_t lowest = 0) {
  SNNET_CHECK(index.is_cpu(), "index must be on the cpu");
  SNNET_CHECK(index.scalar_type() == ScalarType::Long, "index must be torch.int64");
  SNNET_CHECK(index.dim() == 1, "index must have 1 dimension [B], got ", index.dim());
  Tensor contiguous = torch::stable::contiguous(index);
  const int64_t* values = contiguous.const_data_ptr<int64_t>();
  int64_t low = lowest, high = n - 1;
  for (int64_t b = 0, size = contiguous.size(0); b < size; ++b) {
    low = values[b] < low ? values[b] : low;
    high = values[b] > high ? values[b] : high;
  }
  SNNET_CHECK(low >= lowest && high < n, "index must lie in [", lowest, ", ", n, "), got ",
              low < lowest ? low : high);
  return contiguous;
}

inline float* floats(const Tensor& tensor) { return tensor.mutable_data_ptr<float>(); }
inline const float* const_floats(const Tensor& tensor) { return tensor.const_data_ptr<float>(); }

// How many items of about `cost` elementary steps make a task worth a thread.
inline int64_t grain(int64_t cost) {
  constexpr int64_t kWorthAThread = 1 << 17;
  return cost >= kWorthAThread ? 1 : (kWorthAThread + cost) / (cost + 1);
}

}  // namespace snnet
