// Labels as bits on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/bits.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsPerTask = 4;

// labels: contiguous bool [B, n] -> uint8 [B, label_bytes(n)]
Tensor pack_labels(const Tensor& labels) {
  STD_TORCH_CHECK(labels.dim() == 2 && labels.scalar_type() == ScalarType::Bool, "labels must be bool [B, n]");
  const Tensor flags = torch::stable::contiguous(labels);
  const int64_t batch_size = flags.size(0), n = flags.size(1), width = snnet::label_bytes(n);
  Tensor packed = torch::stable::new_empty(flags, {batch_size, width}, ScalarType::Byte);
  const bool* source = flags.const_data_ptr<bool>();
  uint8_t* target = packed.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, batch_size, kRowsPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t byte = 0; byte < width; ++byte)
        target[row * width + byte] = snnet::pack_byte(source + row * n, n, byte);
  });
  return packed;
}

// labels: uint8 [B, label_bytes(n)] -> bool [B, n]
Tensor unpack_labels(const Tensor& labels, int64_t n) {
  STD_TORCH_CHECK(n >= 0 && labels.dim() == 2 && labels.scalar_type() == ScalarType::Byte &&
                      labels.size(1) == snnet::label_bytes(n),
                  "labels must be uint8 [B, label_bytes(n)]");
  const Tensor packed = torch::stable::contiguous(labels);
  const int64_t batch_size = packed.size(0), width = packed.size(1);
  Tensor flags = torch::stable::new_empty(packed, {batch_size, n}, ScalarType::Bool);
  const uint8_t* source = packed.const_data_ptr<uint8_t>();
  bool* target = flags.mutable_data_ptr<bool>();
  torch::stable::parallel_for(0, batch_size, kRowsPerTask, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t column = 0; column < n; ++column)
        target[row * n + column] = snnet::bit_at(source + row * width, column);
  });
  return flags;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("pack_labels", TORCH_BOX(&pack_labels));
  m.impl("unpack_labels", TORCH_BOX(&unpack_labels));
}
