// What the CUDA sources of this project use of CUDA, for g++ or clang on a CPU: kernels run as in fibres.h.
//
// Found before the toolkit's header of the same name. No CUB, no cooperative groups, no float atomics,
// no __activemask: the kernels do not use them.
#pragma once

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "blocks.h"
#include "device.h"

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

namespace cuda_on_cpu {

// The dynamic shared memory that kernels may use beyond 48 KB.
inline std::map<const void*, int>& opted_in() {
  static std::map<const void*, int> bytes;
  return bytes;
}

}  // namespace cuda_on_cpu

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : static_cast<int>(cuda_on_cpu::settings.most_shared);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > cuda_on_cpu::settings.most_shared) return cudaErrorInvalidValue;
  cuda_on_cpu::opted_in()[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  ++cuda_on_cpu::settings.launches;
  std::memset(address, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, threads = config->blockDim;
  const auto size = static_cast<uint64_t>(threads.x) * threads.y * threads.z;
  if (size == 0 || size > cuda_on_cpu::kMostThreads || threads.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const auto opted_in = cuda_on_cpu::opted_in().find(reinterpret_cast<const void*>(kernel));
  const std::size_t limit = opted_in == cuda_on_cpu::opted_in().end() ? 48 * 1024 : opted_in->second;
  if (config->dynamicSmemBytes > limit) return cudaErrorInvalidValue;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  cuda_on_cpu::run_grid(
      grid, threads, config->dynamicSmemBytes,
      [](const void* given) {
        const Call& call = *static_cast<const Call*>(given);
        std::apply(call.kernel, call.arguments);
      },
      &call);
  return cudaSuccess;
}

// ---- Reports of -fsanitize=bounds,alignment, which the tests compile with: an error of the launch.

namespace cuda_on_cpu {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] inline void report(const SourceLocation& location, const char* what) {
  const std::string message = std::string(what) + " at " + describe(Place{location.file, static_cast<int>(location.line)});
  if (block.threads == 0) throw std::runtime_error(message);
  fail(describe(block.current) + ": " + message);
}

}  // namespace cuda_on_cpu

extern "C" {
__attribute__((weak, visibility("hidden"))) void __ubsan_handle_out_of_bounds(void* data, uintptr_t) {
  cuda_on_cpu::report(*static_cast<cuda_on_cpu::SourceLocation*>(data), "an index out of bounds");
}
__attribute__((weak, visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t) {
  cuda_on_cpu::report(*static_cast<cuda_on_cpu::SourceLocation*>(data), "a misaligned address");
}

// What the tests set and read.
__attribute__((weak, visibility("default"))) void cuda_on_cpu_seed(uint64_t seed) {
  cuda_on_cpu::settings.random = seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
  if (cuda_on_cpu::settings.random == 0) cuda_on_cpu::settings.random = 1;
}
__attribute__((weak, visibility("default"))) void cuda_on_cpu_blocks_at_once(int64_t blocks) {
  cuda_on_cpu::settings.blocks_at_once = blocks < 1 ? 1 : blocks;
}
__attribute__((weak, visibility("default"))) void cuda_on_cpu_most_shared(int64_t bytes) {
  cuda_on_cpu::settings.most_shared = static_cast<std::size_t>(bytes);
}
__attribute__((weak, visibility("default"))) void cuda_on_cpu_leave_out(int64_t barrier) {
  cuda_on_cpu::settings.left_out = barrier;
}
__attribute__((weak, visibility("default"))) int64_t cuda_on_cpu_launches() {
  const int64_t launches = cuda_on_cpu::settings.launches;
  cuda_on_cpu::settings.launches = 0;
  return launches;
}
}
