// What labels and neighbours without lists are sought in: products in tiles, nothing of size [B, n] kept.
//
// Scratch memory, whatever n and the number of candidates: a tile of products and its rows (16 MB), the candidates
// of the samples that are at work together (4 MB; samples that have more are taken in smaller groups), pairs that
// wait for a count (12 MB). For each row of the memory 12 bytes, and 16 where a single sample has so many candidates.
#pragma once

#include <algorithm>
#include <optional>

#include "checks.h"

namespace snnet {

// What an inquiry is about, checked.
struct Inquiry {
  Tensor memory;                      // float32 [n, d], contiguous
  Tensor index_tensor;                // keeps what `index` points to
  std::optional<Tensor> given_rows;   // keeps what `query_rows` points to
  const int64_t* index;               // [B]
  int64_t batch_size;
  const float* query_rows = nullptr;  // [B, n] in place of S[index], or null

  Inquiry(const Tensor& rows_of_memory, const Tensor& positions, const std::optional<Tensor>& rows)
      : memory(rows_of_memory), index_tensor(checked_index(positions, rows_of(memory, "memory"))),
        index(index_tensor.const_data_ptr<int64_t>()), batch_size(index_tensor.size(0)) {
    const int64_t n = memory.size(0);
    check_storage(memory, "memory", ScalarType::Float, n, memory.size(1));
    if (!rows) return;
    check_matrix(*rows, "query_rows", ScalarType::Float, batch_size, n);
    given_rows = torch::stable::contiguous(*rows);
    query_rows = const_floats(*given_rows);
  }
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

}  // namespace snnet
