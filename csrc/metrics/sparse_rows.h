// Sparse matrices by rows, as numpy arrays and as they are made.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "parallel.h"

namespace snnet {

using Floats = pybind11::array_t<float, pybind11::array::c_style>;
using Columns = pybind11::array_t<std::int32_t, pybind11::array::c_style>;
using Starts = pybind11::array_t<std::int64_t, pybind11::array::c_style>;
using SparseArrays = std::tuple<Starts, Columns, Floats>;

// Row i has the columns [starts[i], starts[i + 1]), rising, and a value at each.
struct SparseView {
  const std::int64_t* starts;
  const std::int32_t* columns;
  const float* values;
  std::int64_t rows;
};

// Throws where the arrays are not `rows` rows of columns below `images`.
inline SparseView view_sparse(const SparseArrays& arrays, std::int64_t rows, std::int64_t images) {
  const auto& [starts, columns, values] = arrays;
  if (starts.ndim() != 1 || starts.size() != rows + 1) throw std::invalid_argument("needs rows + 1 starts");
  if (columns.ndim() != 1 || values.ndim() != 1 || columns.size() != values.size() ||
      starts.data()[0] != 0 || starts.data()[rows] != columns.size() ||
      !std::is_sorted(starts.data(), starts.data() + rows + 1)) {
    throw std::invalid_argument("starts must span the columns and values");
  }
  const auto outside = [&](std::int32_t column) { return column < 0 || column >= images; };
  if (std::any_of(columns.data(), columns.data() + columns.size(), outside)) {
    throw std::invalid_argument("a column is outside the matrix");
  }
  return {starts.data(), columns.data(), values.data(), rows};
}

// Consecutive rows, appended one after the other.
struct SparsePart {
  std::vector<std::int64_t> sizes;
  std::vector<std::int32_t> columns;
  std::vector<float> values;
};

// The matrix whose row i is what append(i, scratch of the thread, part) puts at the part's end.
template <class Scratch, class Append>
SparseArrays build_rows(std::int64_t rows, std::int64_t threads, const Scratch& scratch,
                        const Append& append) {
  constexpr std::int64_t kRows = 128;  // of a part: enough that handing one out costs nothing
  std::vector<SparsePart> parts(static_cast<std::size_t>((rows + kRows - 1) / kRows));
  threads = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, parts.size()));
  std::vector<Scratch> scratches(static_cast<std::size_t>(threads), scratch);
  {
    pybind11::gil_scoped_release release;
    for_each_item(parts.size(), threads, [&](std::int64_t p, std::int64_t thread) {
      SparsePart& part = parts[p];
      for (std::int64_t row = p * kRows; row < std::min(rows, (p + 1) * kRows); ++row) {
        const std::size_t before = part.columns.size();
        append(row, scratches[thread], part);
        part.sizes.push_back(part.columns.size() - before);
      }
    });
  }
  Starts starts(rows + 1);
  std::int64_t* start = starts.mutable_data();
  *start = 0;
  for (const SparsePart& part : parts) {
    for (const std::int64_t size : part.sizes) {
      start[1] = start[0] + size;
      ++start;
    }
  }
  Columns columns(*start);
  Floats values(*start);
  std::int32_t* column = columns.mutable_data();
  float* value = values.mutable_data();
  for (const SparsePart& part : parts) {
    column = std::copy(part.columns.begin(), part.columns.end(), column);
    value = std::copy(part.values.begin(), part.values.end(), value);
  }
  return {std::move(starts), std::move(columns), std::move(values)};
}

}  // namespace snnet
