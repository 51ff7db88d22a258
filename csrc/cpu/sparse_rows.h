// Sparse matrices by rows, as tensors and as they are made.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"

namespace snnet {

// indptr int64 [n + 1], indices int32 [entries], values float32 [entries]
using SparseTensors = std::tuple<Tensor, Tensor, Tensor>;

// Numbers of 4 bytes are wanted soon.
inline void prefetch(const void* numbers, int64_t count) {
  constexpr int64_t kLine = 64;
  for (int64_t byte = 0; byte < 4 * count; byte += kLine) __builtin_prefetch(static_cast<const char*>(numbers) + byte);
}

// A square matrix: row i has the columns [starts[i], starts[i + 1]), and a value at each.
struct SparseRows {
  Tensor indptr, indices, entries;
  int64_t n;
  const int64_t* starts;
  const int32_t* columns;
  const float* values;

  SparseRows(const Tensor& indptr_, const Tensor& indices_, const Tensor& values_)
      : indptr(torch::stable::contiguous(indptr_)),
        indices(torch::stable::contiguous(indices_)),
        entries(torch::stable::contiguous(values_)),
        n(indptr.numel() - 1),
        starts(checked_vector<const int64_t>(indptr, "indptr", n + 1)),
        columns(checked_vector<const int32_t>(indices, "indices", indices.numel())),
        values(checked_vector<const float>(entries, "values", entries.numel())) {
    const int64_t size = indices.size(0);
    SNNET_CHECK(n >= 0 && entries.size(0) == size && starts[0] == 0 && starts[n] == size &&
                    std::is_sorted(starts, starts + n + 1),
                "indptr must rise from 0 to the number of indices, which values must have too");
    const auto outside = [&](int32_t column) { return column < 0 || column >= n; };
    SNNET_CHECK(std::none_of(columns, columns + size, outside), "indices must lie in [0, ", n, ")");
  }
};

// Consecutive rows, appended one after the other.
struct SparsePart {
  std::vector<int64_t> sizes;
  std::vector<int32_t> columns;
  std::vector<float> values;

  void append(int32_t column, float value) {
    columns.push_back(column);
    values.push_back(value);
  }
};

constexpr int64_t kRowsOfPart = 128;  // enough that handing one out costs nothing

// The matrix whose row order[p] is what append(order[p], scratch of the thread, part) puts at the part's end. Rows are
// made in that order, each of `order` once.
template <class Scratch, class Append>
SparseTensors build_rows(const Tensor& like, const std::vector<int32_t>& order, const Scratch& fresh,
                         const Append& append) {
  const auto rows = static_cast<int64_t>(order.size());
  std::vector<SparsePart> parts(static_cast<std::size_t>((rows + kRowsOfPart - 1) / kRowsOfPart));
  torch::stable::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch = fresh;
    for (int64_t p = begin; p < end; ++p) {
      SparsePart& part = parts[p];
      for (int64_t place = p * kRowsOfPart; place < std::min(rows, (p + 1) * kRowsOfPart); ++place) {
        const std::size_t before = part.columns.size();
        append(static_cast<int64_t>(order[place]), scratch, part);
        part.sizes.push_back(static_cast<int64_t>(part.columns.size() - before));
      }
    }
  });
  Tensor indptr = torch::stable::new_empty(like, {rows + 1}, ScalarType::Long);
  int64_t* starts = indptr.mutable_data_ptr<int64_t>();
  starts[0] = 0;
  for (int64_t place = 0; place < rows; ++place) {
    starts[order[place] + 1] = parts[place / kRowsOfPart].sizes[place % kRowsOfPart];
  }
  for (int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
  Tensor indices = torch::stable::new_empty(like, {starts[rows]}, ScalarType::Int);
  Tensor values = torch::stable::new_empty(like, {starts[rows]}, ScalarType::Float);
  int32_t* column = indices.mutable_data_ptr<int32_t>();
  float* value = floats(values);
  int64_t place = 0;
  for (SparsePart& part : parts) {
    int64_t from = 0;
    for (const int64_t size : part.sizes) {
      const int64_t to = starts[order[place++]];
      std::copy_n(part.columns.begin() + from, size, column + to);
      std::copy_n(part.values.begin() + from, size, value + to);
      from += size;
    }
    part = SparsePart();  // no two copies of all
  }
  return {indptr, indices, values};
}

}  // namespace snnet
