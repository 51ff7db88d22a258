// The nearest neighbours of images, without lists: by rows of similarities that are given, or by tiles of products.
#include <limits>
#include <optional>
#include <tuple>

#include "checks.h"
#include "inquiry.h"
#include "products.h"
#include "selection.h"

namespace snnet {
namespace {

// The first largest entry of a row but its own.
Entry largest_other(const float* row, int64_t n, int64_t own) {
  const VectorKernels& kernels = vector_kernels();
  const Entry before = kernels.largest(row, own);
  Entry after = kernels.largest(row + own + 1, n - own - 1);
  if (after.column >= 0) after.column += static_cast<int32_t>(own + 1);
  if (after.column < 0 || before.column < 0) return after.column < 0 ? before : after;
  return ordered_bits(after.value) > ordered_bits(before.value) ? after : before;
}

// The k nearest others of one row; what is missing stays as it is.
void nearest_of_row(const float* row, int64_t n, int64_t own, int64_t k, SelectionScratch& scratch,
                    int64_t* neighbors, float* similarity) {
  if (k == 1) {
    const Entry entry = largest_other(row, n, own);
    if (entry.column >= 0) {
      neighbors[0] = entry.column;
      similarity[0] = entry.value;
      return;
    }
  }
  int64_t found = 0;
  for (uint64_t key : select_largest(row, n, k + 1, scratch)) {
    const int64_t column = column_of_key(key);
    if (column == own || found == k) continue;
    neighbors[found] = column;
    similarity[found++] = row[column];
  }
}

void nearest_streaming(const Inquiry& inquiry, int64_t k, int64_t* neighbors, float* similarity) {
  const int64_t n = inquiry.memory.size(0), d = inquiry.memory.size(1);
  for (int64_t from = 0; from < inquiry.batch_size; from += kSamplesAtOnce) {
    const int64_t size = std::min(kSamplesAtOnce, inquiry.batch_size - from);
    const int64_t* index = inquiry.index + from;
    const Tensor queries = rows_at(inquiry.memory, std::vector<int64_t>(index, index + size));
    std::vector<std::vector<uint64_t>> nearest(size);
    const int64_t step = tile_columns(n, d, size);
    for (int64_t first = 0; first < n; first += step) {
      const int64_t columns = std::min(step, n - first);
      Tensor all = inquiry.memory;
      const Tensor products = inner_products(queries, torch::stable::narrow(all, 0, first, columns));
      torch::stable::parallel_for(0, size, grain(columns), [&](int64_t begin, int64_t end) {
        SelectionScratch scratch;
        for (int64_t b = begin; b < end; ++b) {
          for (uint64_t key : select_largest(const_floats(products) + b * columns, columns, k + 1, scratch)) {
            const int32_t column = static_cast<int32_t>(first + column_of_key(key));
            if (column != index[b]) nearest[b].push_back(selection_key(value_of_key(key), column));
          }
          keep_largest(nearest[b], k);
        }
      });
    }
    for (int64_t b = 0; b < size; ++b) {
      for (std::size_t j = 0; j < nearest[b].size(); ++j) {
        neighbors[(from + b) * k + static_cast<int64_t>(j)] = column_of_key(nearest[b][j]);
        similarity[(from + b) * k + static_cast<int64_t>(j)] = value_of_key(nearest[b][j]);
      }
    }
  }
}

// -> index int64 [B, k], similarity [B, k]
std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& memory, const Tensor& index,
                                             const std::optional<Tensor>& query_rows, int64_t k) {
  const Inquiry inquiry(memory, index, query_rows);
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  const int64_t n = memory.size(0), batch_size = inquiry.batch_size;
  Tensor neighbors = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Long);
  Tensor similarity = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Float);
  int64_t* at = neighbors.mutable_data_ptr<int64_t>();
  float* value = floats(similarity);
  std::fill_n(at, batch_size * k, int64_t{-1});
  std::fill_n(value, batch_size * k, -std::numeric_limits<float>::infinity());
  if (inquiry.query_rows == nullptr) {
    nearest_streaming(inquiry, k, at, value);
    return {neighbors, similarity};
  }
  torch::stable::parallel_for(0, batch_size, grain(n), [&](int64_t begin, int64_t end) {
    SelectionScratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      nearest_of_row(inquiry.query_rows + b * n, n, inquiry.index[b], k, scratch, at + b * k, value + b * k);
    }
  });
  return {neighbors, similarity};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) { m.impl("nearest_neighbors", TORCH_BOX(&snnet::nearest_neighbors)); }
