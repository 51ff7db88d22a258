// Nearest neighbours without a cache.
#include "products.h"
#include "selection.h"
#include "streaming.h"

namespace snnet {

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
      const Tensor products = batch_products(queries, torch::stable::narrow(all, 0, first, columns));
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

}  // namespace snnet
