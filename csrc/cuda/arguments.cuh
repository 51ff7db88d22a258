// Arguments that several operations share, checked.
#pragma once

#include "launch.cuh"
#include "memory_update.cuh"
#include "neighbor_lists.cuh"

namespace snnet {

inline void check_vector(const Call& call, const Tensor& tensor, const char* name, ScalarType type, int64_t size) {
  call.check_device(tensor, name);
  SNNET_CHECK(tensor.scalar_type() == type && tensor.dim() == 1 && tensor.is_contiguous(), name,
              " must be a contiguous vector of its type");
  SNNET_CHECK(tensor.size(0) == size, name, " must have ", size, " entries, got ", tensor.size(0));
}

// The tables of neighbour lists of n rows.
inline ListTables lists_of_call(const Call& call, const Tensor& columns, const Tensor& values, const Tensor& counts,
                                const Tensor& floors, int64_t n) {
  SNNET_CHECK(columns.dim() == 2, "lists.columns must have 2 dimensions, got ", columns.dim());
  const int64_t capacity = columns.size(1);
  SNNET_CHECK(capacity < std::numeric_limits<int32_t>::max(), "lists.columns has too many places");
  call.check_storage(columns, "lists.columns", ScalarType::Int, n, capacity);
  call.check_storage(values, "lists.values", ScalarType::Float, n, capacity);
  check_vector(call, counts, "lists.counts", ScalarType::Int, n);
  check_vector(call, floors, "lists.floors", ScalarType::Float, n);
  return {columns.mutable_data_ptr<int32_t>(), values.mutable_data_ptr<float>(), counts.mutable_data_ptr<int32_t>(),
          floors.mutable_data_ptr<float>(), n, static_cast<int32_t>(capacity)};
}

inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto* begin_a = static_cast<const char*>(a.const_data_ptr());
  const auto* begin_b = static_cast<const char*>(b.const_data_ptr());
  return begin_a < begin_b + b.numel() * b.element_size() && begin_b < begin_a + a.numel() * a.element_size();
}

// The tensor, contiguous and apart from what is written: features may be rows of the memory.
inline Tensor apart_from(const Tensor& tensor, const Tensor& written) {
  const Tensor rows = torch::stable::contiguous(tensor);
  return overlap(rows, written) ? torch::stable::clone(rows) : rows;
}

// The arguments of a momentum update of the memory.
struct RowUpdate {
  Tensor positions, live;  // keep what `update` points to
  MemoryUpdate update{};

  RowUpdate(const Call& call, const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum)
      : positions(call.checked_index(index)) {
    const int64_t n = rows_of(memory, "memory"), d = memory.size(1), batch_size = positions.size(0);
    call.check_storage(memory, "memory", ScalarType::Float, n, d);
    SNNET_CHECK(batch_size < std::numeric_limits<int32_t>::max(), "index has too many entries");
    call.check_matrix(features, "features", ScalarType::Float, batch_size, d);
    call.check_device(momentum, "momentum");
    SNNET_CHECK(momentum.scalar_type() == ScalarType::Float && momentum.dim() == 0,
                "momentum must be a 0-d float32 tensor");
    live = apart_from(features, memory);
    update.memory = memory.mutable_data_ptr<float>();
    update.index = positions.const_data_ptr<int64_t>();
    update.momentum = momentum.const_data_ptr<float>();
    update.features = live.const_data_ptr<float>();
    update.n = n;
    update.d = d;
    update.batch_size = static_cast<int32_t>(batch_size);
  }
};

}  // namespace snnet
