// Label prediction and nearest neighbours without a cache: products in tiles, nothing of size [B, n] kept.
#pragma once

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

// labels: uint8 [B, label_bytes(n)], all 0
void predict_streaming(const Inquiry& inquiry, const PredictionOptions& options, uint8_t* labels);

// neighbors [B, k], similarity [B, k]
void nearest_streaming(const Inquiry& inquiry, int64_t k, int64_t* neighbors, float* similarity);

}  // namespace snnet
