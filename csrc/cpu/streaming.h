// Label prediction and nearest neighbours without a cache: products in tiles, nothing of size [B, n] kept.
//
// Scratch memory, whatever n and the number of candidates: a tile of products and its rows (16 MB), the candidates
// of the samples that are at work together (4 MB; samples that have more are taken in smaller groups), pairs that
// wait for a count (12 MB). For each row of the memory 12 bytes, and 16 where a single sample has so many candidates.
#pragma once

#include <algorithm>

#include "candidates.h"
#include "checks.h"

namespace snnet {

// What an inquiry is about; memory float32 [n, d] and index int64 [B] are checked and contiguous.
struct Inquiry {
  Tensor memory;
  const int64_t* index;
  int64_t batch_size;
  const float* query_rows;  // [B, n] in place of S[index], or null
};

constexpr int64_t kSamplesAtOnce = 64;

// How many rows of the memory [n, d] are multiplied with `rows` others at once.
inline int64_t tile_columns(int64_t n, int64_t d, int64_t rows) {
  constexpr int64_t kTileFloats = int64_t{4} << 20;  // of the memory: the tile stays in the last cache
  constexpr int64_t kProductFloats = int64_t{2} << 20;
  const int64_t most =
      std::min(kTileFloats / std::max<int64_t>(d, 1), kProductFloats / std::max<int64_t>(rows, 1));
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(n, 1));
}

// labels: uint8 [B, label_bytes(n)], all 0
void predict_streaming(const Inquiry& inquiry, const PredictionOptions& options, uint8_t* labels);

// neighbors [B, k], similarity [B, k]
void nearest_streaming(const Inquiry& inquiry, int64_t k, int64_t* neighbors, float* similarity);

}  // namespace snnet
