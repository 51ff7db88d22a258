// Labels as bits: launches.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "label_memory.cuh"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

unsigned blocks_for(int64_t total) { return static_cast<unsigned>((total + kThreads - 1) / kThreads); }

Tensor pack_labels(const Tensor& labels) {
  STD_TORCH_CHECK(labels.dim() == 2 && labels.scalar_type() == ScalarType::Bool, "labels must be bool [B, n]");
  const torch::stable::accelerator::DeviceGuard guard(labels.get_device_index());
  const Tensor flags = torch::stable::contiguous(labels);
  const int64_t n = flags.size(1), width = snnet::label_bytes(n), total = flags.size(0) * width;
  Tensor packed = torch::stable::new_empty(flags, {flags.size(0), width}, ScalarType::Byte);
  if (total > 0) {
    snnet::pack_labels_kernel<<<blocks_for(total), kThreads, 0, current_stream(flags)>>>(
        flags.const_data_ptr<bool>(), packed.mutable_data_ptr<uint8_t>(), n, width, total);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return packed;
}

Tensor unpack_labels(const Tensor& labels, int64_t n) {
  STD_TORCH_CHECK(n >= 0 && labels.dim() == 2 && labels.scalar_type() == ScalarType::Byte &&
                      labels.size(1) == snnet::label_bytes(n),
                  "labels must be uint8 [B, label_bytes(n)]");
  const torch::stable::accelerator::DeviceGuard guard(labels.get_device_index());
  const Tensor packed = torch::stable::contiguous(labels);
  const int64_t total = packed.size(0) * n;
  Tensor flags = torch::stable::new_empty(packed, {packed.size(0), n}, ScalarType::Bool);
  if (total > 0) {
    snnet::unpack_labels_kernel<<<blocks_for(total), kThreads, 0, current_stream(packed)>>>(
        packed.const_data_ptr<uint8_t>(), flags.mutable_data_ptr<bool>(), n, packed.size(1), total);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return flags;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snnet, CUDA, m) {
  m.impl("pack_labels", TORCH_BOX(&pack_labels));
  m.impl("unpack_labels", TORCH_BOX(&unpack_labels));
}
