// Label prediction (MPLP) and nearest neighbours.
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "candidates.h"
#include "checks.h"
#include "selection.h"
#include "streaming.h"

namespace snnet {
namespace {

struct CheckedInquiry {
  Tensor index;
  Tensor query_rows;
  Inquiry inquiry;
  const float* cache;
};

CheckedInquiry check_inquiry(const Tensor& memory, const Tensor& index, const std::optional<Tensor>& cache,
                             const std::optional<Tensor>& query_rows) {
  const int64_t n = rows_of(memory, "memory");
  check_storage(memory, "memory", ScalarType::Float, n, memory.size(1));
  CheckedInquiry checked;
  checked.index = checked_index(index, n);
  const int64_t batch_size = checked.index.size(0);
  checked.inquiry = {memory, checked.index.const_data_ptr<int64_t>(), batch_size, nullptr};
  checked.cache = nullptr;
  if (cache) {
    check_storage(*cache, "cache", ScalarType::Float, n, n);
    checked.cache = const_floats(*cache);
  }
  if (query_rows) {
    check_matrix(*query_rows, "query_rows", ScalarType::Float, batch_size, n);
    checked.query_rows = torch::stable::contiguous(*query_rows);
    checked.inquiry.query_rows = const_floats(checked.query_rows);
  }
  return checked;
}

const float* row_of(const CheckedInquiry& checked, int64_t n, int64_t b) {
  return checked.inquiry.query_rows != nullptr ? checked.inquiry.query_rows + b * n
                                               : checked.cache + checked.inquiry.index[b] * n;
}

Tensor mplp(const Tensor& memory, const Tensor& index, const std::optional<Tensor>& cache,
            const std::optional<Tensor>& query_rows, double threshold, int64_t min_rank, bool strict,
            const std::optional<Tensor>& block_bits, double block_floor) {
  const CheckedInquiry checked = check_inquiry(memory, index, cache, query_rows);
  SNNET_CHECK(std::isfinite(threshold), "threshold must be finite, got ", threshold);
  SNNET_CHECK(min_rank >= 0, "min_rank must be at least 0, got ", min_rank);
  const int64_t n = memory.size(0), width = label_bytes(n), batch_size = checked.inquiry.batch_size;
  Tensor labels = torch::stable::new_zeros(memory, {batch_size, width}, ScalarType::Byte);
  uint8_t* bits = labels.mutable_data_ptr<uint8_t>();
  const PredictionOptions options{static_cast<float>(threshold), min_rank, strict};
  const Cache cached{checked.cache, n, CacheBlocks(block_bits, block_floor, n)};
  if (checked.cache == nullptr) {
    predict_streaming(checked.inquiry, options, bits);
    return labels;
  }
  torch::stable::parallel_for(0, batch_size, grain(4 * n), [&](int64_t begin, int64_t end) {
    std::vector<Entry> entries(n);
    for (int64_t b = begin; b < end; ++b) {
      predict_row(row_of(checked, n, b), cached, checked.inquiry.index[b], options, entries, bits + b * width);
    }
  });
  return labels;
}

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

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& memory, const Tensor& index,
                                             const std::optional<Tensor>& cache,
                                             const std::optional<Tensor>& query_rows, int64_t k) {
  const CheckedInquiry checked = check_inquiry(memory, index, cache, query_rows);
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  const int64_t n = memory.size(0), batch_size = checked.inquiry.batch_size;
  Tensor neighbors = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Long);
  Tensor similarity = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Float);
  int64_t* at = neighbors.mutable_data_ptr<int64_t>();
  float* value = floats(similarity);
  std::fill_n(at, batch_size * k, int64_t{-1});
  std::fill_n(value, batch_size * k, -std::numeric_limits<float>::infinity());
  if (checked.cache == nullptr && checked.inquiry.query_rows == nullptr) {
    nearest_streaming(checked.inquiry, k, at, value);
    return {neighbors, similarity};
  }
  torch::stable::parallel_for(0, batch_size, grain(n), [&](int64_t begin, int64_t end) {
    SelectionScratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      nearest_of_row(row_of(checked, n, b), n, checked.inquiry.index[b], k, scratch, at + b * k, value + b * k);
    }
  });
  return {neighbors, similarity};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("mplp", TORCH_BOX(&snnet::mplp));
  m.impl("nearest_neighbors", TORCH_BOX(&snnet::nearest_neighbors));
}
