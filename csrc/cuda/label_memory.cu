// Labels as bits: checks and launches.
#include "label_memory.cuh"
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
  launch(pack_labels_kernel, blocks_for(total, kThreads), kThreads, 0, call.stream(), flags.const_data_ptr<bool>(),
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

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("pack_labels", TORCH_BOX(&snnet::pack_labels));
  m.impl("unpack_labels", TORCH_BOX(&snnet::unpack_labels));
}
