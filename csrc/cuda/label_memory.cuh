// Labels as bits and the pseudo label memory: device code.
#pragma once

#include "../common/bits.h"
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

// One thread a byte of the result; labels bool [B, n], packed uint8 [B, width].
static __global__ void pack_labels_kernel(const uint8_t* labels, uint8_t* packed, int64_t n, int64_t width,
                                          int64_t total) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= total) return;
  packed[position] = pack_byte(labels + position / width * n, n, position % width);
}

// One thread a flag of the result; labels uint8 [B, width], flags bool [B, n].
static __global__ void unpack_labels_kernel(const uint8_t* labels, bool* flags, int64_t n, int64_t width,
                                            int64_t total) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= total) return;
  flags[position] = bit_at(labels + position / n * width, position % n);
}

// Rows [B, vectors] of bits [n, vectors], 16 bytes a thread; an index outside [0, n) gives an empty row.
// Latency bound: one load of the index, one of the row.
static __global__ void gather_labels_kernel(const uint4* bits, const int64_t* index, uint4* gathered, int64_t n,
                                            int64_t vectors, int64_t total) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (position >= total) return;
  const int64_t row = index[position / vectors];
  gathered[position] = row >= 0 && row < n ? bits[row * vectors + position % vectors] : make_uint4(0, 0, 0, 0);
}

// P[index] <- labels [B, words], a block an entry of the batch.
// Latency bound: index, then the old and the given row; the flips are not waited for.
static __global__ void write_labels_kernel(LabelMemory memory, const int64_t* index, const unsigned* labels,
                                           int64_t batch_size) {
  const int64_t b = blockIdx.x;
  if (!is_newest(index, b, batch_size, memory.n)) return;
  for (int64_t word = threadIdx.x; word < memory.words; word += blockDim.x) {
    memory.write_word(index[b], word, labels[b * memory.words + word]);
  }
}

}  // namespace snnet
