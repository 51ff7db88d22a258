// What kernels share: dynamic shared memory, loads of whole words.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace snnet {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#if defined(__CUDACC__)
using SharedWord = uint4;
#endif

// The dynamic shared memory of the running block, 16-byte aligned.
extern __shared__ SharedWord shared_words[];

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_words);
}

}  // namespace snnet
