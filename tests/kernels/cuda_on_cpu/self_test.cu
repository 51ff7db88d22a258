// Kernels that try the emulation itself; each fills out[0, count).
#include <string>

#include "../../../csrc/cuda/device.cuh"

namespace snnet {
namespace {

// ---- What must work.

// out[block] = the sum of the block's threads, over a tree in shared memory; one barrier can be left out.
template <bool barriers>
__global__ void tree_kernel(int64_t* out) {
  __shared__ int part[256];
  part[threadIdx.x] = static_cast<int>(threadIdx.x + blockIdx.x);
  __syncthreads();
  for (unsigned half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    if (barriers) __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

// A word for each lane and operation.
__global__ void warp_kernel(int64_t* out) {
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y), lane = thread % 32;
  const int value = thread * 3 - 20;
  int64_t* own = out + thread * 12;
  own[0] = __shfl_sync(kAllLanes, value, 5);
  own[1] = __shfl_up_sync(kAllLanes, value, 2);
  own[2] = __shfl_down_sync(kAllLanes, value, 2, 8);
  own[3] = __shfl_xor_sync(kAllLanes, static_cast<double>(value), 16) == (thread ^ 16) * 3.0 - 20;
  own[4] = __ballot_sync(kAllLanes, lane % 3 == 0);
  own[5] = __any_sync(kAllLanes, lane == 7) + 2 * __all_sync(kAllLanes, lane < 31);
  own[6] = __match_any_sync(kAllLanes, lane / 8);
  own[7] = __reduce_add_sync(kAllLanes, value);
  own[8] = __reduce_min_sync(kAllLanes, value);
  own[9] = __reduce_max_sync(kAllLanes, static_cast<unsigned>(value));
  if (lane < 8) {  // part of a warp
    own[10] = __reduce_or_sync(0xffu, 1u << lane);
  } else {
    own[10] = __reduce_xor_sync(~0xffu, 1u << lane);
  }
  __syncwarp();
  own[11] = __shfl_sync(kAllLanes, lane, lane + 1, 16);
}

__global__ void block_kernel(int64_t* out) {
  const int count = __syncthreads_count(threadIdx.x % 3 == 0);
  const int any = __syncthreads_or(threadIdx.x == 99), every = __syncthreads_and(threadIdx.x < 99);
  if (threadIdx.x == 0) out[0] = count + 1000 * any + 10000 * every;
}

// Dynamic shared memory, each thread a word, read by another.
__global__ void dynamic_kernel(int64_t* out, int64_t count, int64_t beyond) {
  auto* words = dynamic_shared<int64_t>();
  for (int64_t i = threadIdx.x; i < count + beyond; i += blockDim.x) words[i] = i * i;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) out[i] = words[count - 1 - i];
}

// Blocks take tickets; a block waits for the one before it. The last writes the order.
__global__ void ticket_kernel(int64_t* out, unsigned* state, unsigned* done) {
  __shared__ unsigned ticket;
  if (threadIdx.x == 0) ticket = atomicAdd(state, 1u);
  __syncthreads();
  if (threadIdx.x == 0) {
    while (atomicAdd(done, 0u) != ticket) __nanosleep(20);
    out[ticket] = blockIdx.x;
    __threadfence();
    atomicAdd(done, 1u);
  }
}

// Each block waits until all have come, which takes as many at once; its shared memory stays its own meanwhile.
__global__ void together_kernel(int64_t* out, unsigned* come) {
  __shared__ unsigned own[64];
  own[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(come, 1u);
    while (atomicAdd(come, 0u) != gridDim.x) __nanosleep(20);
  }
  __syncthreads();
  const auto sum = static_cast<int64_t>(__reduce_add_sync(kAllLanes, own[63 - threadIdx.x]));
  if (threadIdx.x % 32 == 0) out[2 * blockIdx.x + threadIdx.x / 32] = sum;
}

// The order in which threads come by.
__global__ void order_kernel(int64_t* out, unsigned* next) { out[atomicAdd(next, 1u)] = threadIdx.x; }

// What the atomics leave of 0 (or of all bits), and the sum of what they returned in the first case.
__global__ void atomics_kernel(int64_t* out, unsigned* words) {
  __shared__ unsigned long long wide;
  if (threadIdx.x == 0) wide = 0;
  __syncthreads();
  atomicAdd(&wide, static_cast<unsigned long long>(atomicAdd(words, 2u)));
  atomicMax(words + 1, threadIdx.x);
  atomicOr(words + 2, 1u << threadIdx.x % 32);
  atomicXor(words + 3, 1u << threadIdx.x % 32);
  atomicMin(reinterpret_cast<int*>(words) + 4, -static_cast<int>(threadIdx.x));
  unsigned before = words[5];
  for (unsigned seen = ~before; seen != before;) {
    seen = before;
    before = atomicCAS(words + 5, seen, seen + threadIdx.x);
  }
  __syncthreads();
  if (threadIdx.x < 6) out[threadIdx.x] = static_cast<int>(words[threadIdx.x]);
  if (threadIdx.x == 6) out[6] = static_cast<int64_t>(wide);
}

// Shared memory is garbage at first.
__global__ void garbage_kernel(int64_t* out) {
  __shared__ int before[64];
  out[threadIdx.x] = before[threadIdx.x];
  out[64 + threadIdx.x] = dynamic_shared<int>()[threadIdx.x];
  before[threadIdx.x] = 0;
  dynamic_shared<int>()[threadIdx.x] = 0;
}

// ---- What must be reported.

__global__ void skipped_barrier_kernel() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void left_lane_kernel() {
  if (threadIdx.x == 9) return;
  __shfl_sync(kAllLanes, 1, 0);
}
__global__ void apart_kernel() {
  if (threadIdx.x % 32 < 16) {
    __shfl_sync(kAllLanes, 1, 0);
  } else {
    __ballot_sync(kAllLanes, 1);
  }
}
__global__ void foreign_mask_kernel() { __shfl_sync(0xffu, 1, 0); }
__global__ void unread_lane_kernel() {
  if (threadIdx.x % 32 < 8) __shfl_sync(0xffu, 1, 20);
}
__global__ void out_of_bounds_kernel(int64_t* out, unsigned past) {
  __shared__ int words[8];
  words[threadIdx.x % 8 + past] = 1;
  out[0] = words[past];
}
__global__ void misaligned_kernel(int64_t* out) {
  out[0] = static_cast<int64_t>(reinterpret_cast<const float4*>(reinterpret_cast<char*>(out) + 8)->x);
}
__global__ void endless_kernel(unsigned* word) {
  while (atomicAdd(word, 0u) == 0) __nanosleep(20);
}
__global__ void trap_kernel() { __trap(); }

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t bytes, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  if (const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...); error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

void run(const std::string& name, int64_t* out, int64_t count) {
  unsigned words[8] = {};
  if (name == "tree") run(tree_kernel<true>, static_cast<unsigned>(count), 256, 0, out);
  if (name == "tree without a barrier") run(tree_kernel<false>, static_cast<unsigned>(count), 256, 0, out);
  if (name == "warp") run(warp_kernel, 1, dim3(16, 4), 0, out);
  if (name == "block") run(block_kernel, 1, 100, 0, out);
  if (name == "dynamic") {
    const auto bytes = static_cast<int>(count * 8);
    if (cudaFuncSetAttribute(dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
      throw std::runtime_error("refused");
    }
    run(dynamic_kernel, 1, 96, static_cast<size_t>(bytes), out, count, 0);
  }
  if (name == "past the dynamic shared memory") run(dynamic_kernel, 1, 96, 100 * 8, out, 100, 1);
  if (name == "too much shared memory") run(dynamic_kernel, 1, 96, 200000, out, 1, 0);
  if (name == "ticket") run(ticket_kernel, static_cast<unsigned>(count), 64, 0, out, words, words + 1);
  if (name == "together") run(together_kernel, static_cast<unsigned>(count) / 2, 64, 0, out, words);
  if (name == "order") run(order_kernel, 1, static_cast<unsigned>(count), 0, out, words);
  if (name == "atomics") run(atomics_kernel, 1, 100, 0, out, words);
  if (name == "garbage") run(garbage_kernel, 2, 64, 256, out);
  if (name == "skipped barrier") run(skipped_barrier_kernel, 1, 64, 0);
  if (name == "two barriers") run(two_barriers_kernel, 1, 64, 0);
  if (name == "left lane") run(left_lane_kernel, 1, 32, 0);
  if (name == "apart") run(apart_kernel, 1, 32, 0);
  if (name == "foreign mask") run(foreign_mask_kernel, 1, 32, 0);
  if (name == "unread lane") run(unread_lane_kernel, 1, 32, 0);
  if (name == "out of bounds") run(out_of_bounds_kernel, 1, 32, 0, out, 1u);
  if (name == "misaligned") run(misaligned_kernel, 1, 1, 0, out);
  if (name == "endless") run(endless_kernel, 1, 32, 0, words);
  if (name == "trap") run(trap_kernel, 1, 32, 0);
  if (name == "too many threads") run(trap_kernel, 1, 1025, 0);
}

}  // namespace
}  // namespace snnet

// Runs a test by name; returns the error of the launch, empty where there is none.
extern "C" __attribute__((visibility("default"))) const char* self_test(const char* name, int64_t* out,
                                                                        int64_t count) {
  static std::string error;
  error.clear();
  try {
    snnet::run(std::string(name), out, count);
  } catch (const std::exception& raised) {
    error = raised.what();
  }
  return error.c_str();
}
