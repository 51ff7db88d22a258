// Writing the pseudo label memory and its transpose by words.
#pragma once

#include "device.cuh"

namespace snnet {

// P [n, words] and its transpose, as 32-bit words; words is a multiple of 4.
struct LabelMemory {
  unsigned* rows;
  unsigned* columns;
  int64_t n, words;

  // P[row] <- bits in one word, less the columns past n. In the transpose the bits that change are flipped: the
  // rows of a batch are distinct, so every flip is of a bit of its own and their order does not matter.
  __device__ __forceinline__ void write_word(int64_t row, int64_t word, unsigned bits) const {
    const int64_t left = n - 32 * word;
    const unsigned exists = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
    unsigned* own = rows + row * words + word;
    const unsigned before = *own;
    unsigned changed = (before ^ bits) & exists;
    if (changed == 0) return;
    *own = before ^ changed;
    for (; changed != 0; changed &= changed - 1) {
      const int64_t column = 32 * word + __ffs(static_cast<int>(changed)) - 1;
      atomicXor(columns + column * words + row / 32, 1u << row % 32);
    }
  }
};

// Whether entry b of the batch is the last of its index and that lies in [0, n): the one to be written. A barrier.
__device__ __forceinline__ bool is_newest(const int64_t* index, int64_t b, int64_t batch_size, int64_t n) {
  const int64_t row = index[b];
  bool again = false;
  for (int64_t other = b + 1 + threadIdx.x; other < batch_size; other += blockDim.x) again |= index[other] == row;
  return !__syncthreads_or(again) && row >= 0 && row < n;
}

}  // namespace snnet
