// The host's side of every CUDA operation: checks of arguments, device and stream of a call, launches.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../common/bits.h"
#include "../common/checks.h"
#include "list_tables.cuh"

// The tests compile the same sources for CPU tensors: tests/kernels/cuda_on_cpu.
#if !defined(SNNET_DEVICE_KEY)
#define SNNET_DEVICE_KEY CUDA
#endif

#define SNNET_CUDA_CHECK(call)                                                          \
  do {                                                                                  \
    const cudaError_t error_ = (call);                                                  \
    if (error_ != cudaSuccess) snnet::raise_cuda_error(cudaGetErrorString(error_), #call); \
  } while (0)

namespace snnet {

[[noreturn]] inline void raise_cuda_error(const char* error, const char* call) {
  (void)cudaGetLastError();  // else the next call of somebody else finds it
  throw std::runtime_error(std::string("CUDA error: ") + error + " in " + call);
}

inline bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// The storage of label bits as words: `const` words are only read.
template <class Word>
Word* words(const Tensor& bits) {
  if constexpr (std::is_const_v<Word>) {
    return static_cast<Word*>(bits.const_data_ptr());
  } else {
    return static_cast<Word*>(bits.mutable_data_ptr());
  }
}

// One call of an operation: the device of its first tensor, current while this lives, and the stream to launch on.
class Call {
 public:
#if defined(SNNET_CUDA_ON_CPU)
  explicit Call(const Tensor& first) : first_(first) {}
#else
  explicit Call(const Tensor& first) : first_(first), guard_(first.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(first.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif

  const Tensor& first() const { return first_; }
  cudaStream_t stream() const { return stream_; }

  void check_device(const Tensor& tensor, const char* name) const {
    SNNET_CHECK(tensor.is_cuda() == first_.is_cuda() && tensor.get_device_index() == first_.get_device_index(), name,
                " must be on the device of the other tensors");
  }

  void check_matrix(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) const {
    check_device(tensor, name);
    check_shape(tensor, name, type, rows, columns);
  }

  // A matrix whose own storage is read or written.
  void check_storage(const Tensor& tensor, const char* name, ScalarType type, int64_t rows, int64_t columns) const {
    check_matrix(tensor, name, type, rows, columns);
    check_contiguous(tensor, name);
  }

  // Label bits [n, label_bytes(n)] that are read or written as words.
  void check_words(const Tensor& bits, const char* name, int64_t n) const {
    check_storage(bits, name, ScalarType::Byte, n, label_bytes(n));
    SNNET_CHECK(is_aligned(bits.const_data_ptr()), name, " must begin at a multiple of 16 bytes");
  }

  // index [B], contiguous. Its values are not read here: that would wait for the device.
  Tensor checked_index(const Tensor& index) const {
    check_device(index, "index");
    check_index(index);
    return torch::stable::contiguous(index);
  }

 private:
  const Tensor& first_;
#if !defined(SNNET_CUDA_ON_CPU)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// The tables of neighbour lists of n rows.
inline NeighborLists lists_of_call(const Call& call, const Tensor& columns, const Tensor& values, const Tensor& counts,
                                   const Tensor& floors, int64_t n) {
  SNNET_CHECK(columns.dim() == 2, "lists.columns must have 2 dimensions, got ", columns.dim());
  const int64_t capacity = columns.size(1);
  SNNET_CHECK(capacity < std::numeric_limits<int32_t>::max(), "lists.columns has too many places");
  call.check_storage(columns, "lists.columns", ScalarType::Int, n, capacity);
  call.check_storage(values, "lists.values", ScalarType::Float, n, capacity);
  call.check_device(counts, "lists.counts");
  call.check_device(floors, "lists.floors");
  check_vector(counts, "lists.counts", ScalarType::Int, n);
  check_vector(floors, "lists.floors", ScalarType::Float, n);
  return {columns.mutable_data_ptr<int32_t>(), values.mutable_data_ptr<float>(), counts.mutable_data_ptr<int32_t>(),
          floors.mutable_data_ptr<float>(), n, static_cast<int32_t>(capacity)};
}

// A part of scratch memory: the pointer that will be set, and how many items it will point to.
template <class Item>
struct ScratchPart {
  Item*& begin;
  int64_t count;

  ScratchPart(Item*& pointer, int64_t items) : begin(pointer), count(items) {}

  // Parts begin at multiples of 16 bytes.
  int64_t bytes() const { return (count * static_cast<int64_t>(sizeof(Item)) + 15) / 16 * 16; }
};

// Sets the pointers of all parts to memory that lives as long as the tensor.
template <class... Items>
Tensor scratch_parts(const Call& call, const ScratchPart<Items>&... parts) {
  const Tensor scratch = torch::stable::new_empty(call.first(), {(parts.bytes() + ...)}, ScalarType::Byte);
  auto* next = static_cast<uint8_t*>(scratch.mutable_data_ptr());
  SNNET_CHECK(is_aligned(next), "scratch memory must begin at a multiple of 16 bytes");
  ((parts.begin = reinterpret_cast<Items*>(next), next += parts.bytes()), ...);
  return scratch;
}

// Blocks of `threads` for `total` items.
inline unsigned blocks_for(int64_t total, int threads) {
  const int64_t blocks = (total + threads - 1) / threads;
  SNNET_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "too many items for one launch: ", total);
  return static_cast<unsigned>(blocks);
}

// kernel<<<grid, block, dynamic_shared_bytes, stream>>>(arguments...); an empty grid is no launch. Nothing here
// waits for the device, so a CUDA graph can capture it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // Held until the launch: meanwhile another thread must not lower the limit that was just set.
  static std::mutex mutex;
  std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
  if (dynamic_shared_bytes > kAlwaysAllowed) {
    lock.lock();
    SNNET_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(dynamic_shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.stream = stream;
  SNNET_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  SNNET_CUDA_CHECK(cudaGetDevice(&device));
  SNNET_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace snnet
