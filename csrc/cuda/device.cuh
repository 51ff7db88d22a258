// What kernels share: dynamic shared memory, sums over a block.
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

// ---- Sums over a block in a fixed order.

template <class Value>
__device__ __forceinline__ Value warp_sum(Value value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ __forceinline__ int32_t warp_sum(int32_t value) { return __reduce_add_sync(kAllLanes, value); }

// The sum of every thread's value, for every thread; parts [threads / 32] is shared memory.
template <class Value>
__device__ Value block_sum(Value value, Value* parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  __syncthreads();  // parts may still be read from a sum before
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? parts[lane] : Value{0});
}

}  // namespace snnet
