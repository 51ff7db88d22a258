// The arguments index, cache and query_rows of an operation, checked.
#pragma once

#include <optional>

#include "launch.cuh"
#include "rows.cuh"

namespace snnet {

struct CheckedBatch {
  Tensor index, rows;  // keep what `batch` points to
  Batch batch;

  // One of cache [n, n] and query_rows [B, n] is given, or both: query_rows take the place of cache[index].
  CheckedBatch(const Call& call, const Tensor& given_index, const std::optional<Tensor>& cache,
               const std::optional<Tensor>& query_rows)
      : index(call.checked_index(given_index)) {
    SNNET_CHECK(cache || query_rows, "one of cache and query_rows must be given");
    const int64_t batch_size = index.size(0);
    SNNET_CHECK(cache || query_rows->dim() == 2, "query_rows must have 2 dimensions, got ", query_rows->dim());
    const int64_t n = cache ? rows_of(*cache, "cache") : query_rows->size(1);
    SNNET_CHECK(n < std::numeric_limits<int32_t>::max(), "query_rows has too many columns");
    batch = {index.const_data_ptr<int64_t>(), nullptr, nullptr, batch_size, static_cast<int>(n)};
    if (cache) {
      call.check_storage(*cache, "cache", ScalarType::Float, n, n);
      batch.cache = cache->const_data_ptr<float>();
    }
    if (query_rows) {
      call.check_matrix(*query_rows, "query_rows", ScalarType::Float, batch_size, n);
      rows = torch::stable::contiguous(*query_rows);
      batch.query_rows = rows.const_data_ptr<float>();
    }
  }
};

}  // namespace snnet
