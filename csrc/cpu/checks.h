// Checks of arguments on the CPU.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/bits.h"
#include "../common/checks.h"

namespace snnet {

inline void check_device(const Tensor& tensor, const char* name) {
  SNNET_CHECK(tensor.is_cpu(), name, " must be on the cpu");
}

inline void check_matrix(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) {
  check_device(tensor, name);
  check_shape(tensor, name, type, rows, columns);
}

// A matrix whose own storage is read or written.
inline void check_storage(const Tensor& tensor, const char* name, ScalarType type, int64_t rows,
                          int64_t columns) {
  check_matrix(tensor, name, type, rows, columns);
  check_contiguous(tensor, name);
}

// The entries of a contiguous vector [size]; those of a const type are only read.
template <class Value>
Value* checked_vector(const Tensor& tensor, const char* name, int64_t size) {
  using Plain = std::remove_const_t<Value>;
  static_assert(std::is_same_v<Plain, int64_t> || std::is_same_v<Plain, int32_t> || std::is_same_v<Plain, float>);
  check_device(tensor, name);
  check_vector(tensor, name,
               std::is_same_v<Plain, int64_t>   ? ScalarType::Long
               : std::is_same_v<Plain, int32_t> ? ScalarType::Int
                                                : ScalarType::Float,
               size);
  if constexpr (std::is_const_v<Value>) {
    return tensor.const_data_ptr<Plain>();
  } else {
    return tensor.mutable_data_ptr<Plain>();
  }
}

// index [B] of values in [lowest, n), contiguous.
inline Tensor checked_index(const Tensor& index, int64_t n, int64_t lowest = 0) {
  check_device(index, "index");
  check_index(index);
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
