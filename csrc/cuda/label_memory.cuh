// Labels as bits: device code.
#pragma once

#include "../common/bits.h"
#include "device.cuh"

namespace snnet {

// One thread a byte of the result; labels bool [B, n], packed uint8 [B, width].
__global__ void pack_labels_kernel(const bool* labels, uint8_t* packed, int64_t n, int64_t width, int64_t total) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= total) return;
  packed[position] = pack_byte(labels + position / width * n, n, position % width);
}

// One thread a flag of the result; labels uint8 [B, width], flags bool [B, n].
__global__ void unpack_labels_kernel(const uint8_t* labels, bool* flags, int64_t n, int64_t width, int64_t total) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= total) return;
  flags[position] = bit_at(labels + position / n * width, position % n);
}

}  // namespace snnet
