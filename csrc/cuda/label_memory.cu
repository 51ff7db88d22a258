// Labels as bits and the pseudo label memory: checks and launches.
#include "label_memory.cuh"

#include "../common/apart.h"
#include "launch.cuh"

namespace snnet {
namespace {

constexpr int kThreads = 256;

// labels: bool [B, n] -> uint8 [B, label_bytes(n)]
Tensor pack_labels(const Tensor& labels) {
  SNNET_CHECK(labels.dim() == 2 && labels.scalar_type() == ScalarType::Bool, "labels must be bool [B, n]");
  const Call call(labels);
  const Tensor flags = torch::stable::contiguous(labels);
  const int64_t n = flags.size(1), width = label_bytes(n), total = flags.size(0) * width;
  Tensor packed = torch::stable::new_empty(flags, {flags.size(0), width}, ScalarType::Byte);
  launch(pack_labels_kernel, blocks_for(total, kThreads), kThreads, 0, call.stream(),
         reinterpret_cast<const uint8_t*>(flags.const_data_ptr<bool>()),
         packed.mutable_data_ptr<uint8_t>(), n, width, total);
  return packed;
}

// labels: uint8 [B, label_bytes(n)] -> bool [B, n]
Tensor unpack_labels(const Tensor& labels, int64_t n) {
  SNNET_CHECK(n >= 0 && labels.dim() == 2 && labels.scalar_type() == ScalarType::Byte &&
                  labels.size(1) == label_bytes(n),
              "labels must be uint8 [B, label_bytes(n)]");
  const Call call(labels);
  const Tensor packed = torch::stable::contiguous(labels);
  const int64_t total = packed.size(0) * n;
  Tensor flags = torch::stable::new_empty(packed, {packed.size(0), n}, ScalarType::Bool);
  launch(unpack_labels_kernel, blocks_for(total, kThreads), kThreads, 0, call.stream(),
         packed.const_data_ptr<uint8_t>(), flags.mutable_data_ptr<bool>(), n, packed.size(1), total);
  return flags;
}

// bits[index]; an index of -1 gives an empty label.
Tensor gather_labels(const Tensor& bits, const Tensor& index) {
  const Call call(bits);
  const int64_t n = rows_of(bits, "bits"), width = label_bytes(n);
  call.check_words(bits, "bits", n);
  const Tensor positions = call.checked_index(index);
  const int64_t batch_size = positions.size(0), vectors = width / 16, total = batch_size * vectors;
  Tensor gathered = torch::stable::new_empty(bits, {batch_size, width}, ScalarType::Byte);
  launch(gather_labels_kernel, blocks_for(total, kThreads), kThreads, 0, call.stream(), words<const uint4>(bits),
         positions.const_data_ptr<int64_t>(), words<uint4>(gathered), n, vectors, total);
  return gathered;
}

// P[index] <- labels; of a repeated index the last counts.
void write_labels_(const Tensor& row_bits, const Tensor& column_bits, const Tensor& index, const Tensor& labels) {
  const Call call(row_bits);
  const int64_t n = rows_of(row_bits, "row_bits"), width = label_bytes(n);
  call.check_words(row_bits, "row_bits", n);
  call.check_words(column_bits, "column_bits", n);
  const Tensor positions = apart_from(call.checked_index(index), row_bits, column_bits);
  const int64_t batch_size = positions.size(0);
  call.check_matrix(labels, "labels", ScalarType::Byte, batch_size, width);
  Tensor given = apart_from(labels, row_bits, column_bits);
  if (!is_aligned(given.const_data_ptr())) given = torch::stable::clone(given);
  const LabelMemory memory{words<unsigned>(row_bits), words<unsigned>(column_bits), n, width / 4};
  launch(write_labels_kernel, blocks_for(batch_size, 1), kThreads, 0, call.stream(), memory,
         positions.const_data_ptr<int64_t>(), words<const unsigned>(given), batch_size);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("pack_labels", TORCH_BOX(&snnet::pack_labels));
  m.impl("unpack_labels", TORCH_BOX(&snnet::unpack_labels));
  m.impl("gather_labels", TORCH_BOX(&snnet::gather_labels));
  m.impl("write_labels_", TORCH_BOX(&snnet::write_labels_));
}
