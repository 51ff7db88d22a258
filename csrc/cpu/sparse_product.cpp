// Rows of the memory, weighted and added: each row is read once for the whole batch.
#include "sparse_product.h"

#include <algorithm>

#include "products.h"

namespace snnet {
namespace {

constexpr int64_t kResultFloats = 1 << 16;  // of the result that are added to at once: they stay in the L2 cache
constexpr int64_t kWidthOfTask = 16;
constexpr int64_t kTileFloats = 1 << 20;
constexpr int64_t kSparseUpTo = 8;  // from n / 8 entries a row on a dense product is faster

// Columns [begin, end) of out.
void add_rows(const SparseColumns& weights, const float* memory, int64_t d, int64_t begin, int64_t end,
              float* out) {
  const VectorKernels& kernels = vector_kernels();
  const int64_t columns = static_cast<int64_t>(weights.columns.size());
  for (int64_t c = 0; c < columns; ++c) {
    const float* row = memory + weights.columns[c] * d + begin;
    if (c + 1 < columns) {  // the next row lies somewhere else: no hardware prefetcher knows where
      const float* next = memory + weights.columns[c + 1] * d + begin;
      for (int64_t k = 0; k < end - begin; k += 16) __builtin_prefetch(next + k);
    }
    for (int64_t t = weights.starts[c]; t < weights.starts[c + 1]; ++t) {
      const SparseColumns::Term& term = weights.terms[t];
      kernels.add_scaled(out + term.row * d + begin, row, term.weight, end - begin);
    }
  }
}

void add_dense_tiles(const SparseColumns& weights, const Tensor& memory, int64_t batch_size, float* out) {
  const int64_t n = memory.size(0), d = memory.size(1);
  const int64_t step = std::clamp<int64_t>(kTileFloats / batch_size, 1, n);
  std::size_t c = 0;
  for (int64_t first = 0; first < n; first += step) {
    const int64_t columns = std::min(step, n - first);
    const Tensor tile = torch::stable::new_zeros(memory, {batch_size, columns});
    for (; c < weights.columns.size() && weights.columns[c] < first + columns; ++c) {
      for (int64_t t = weights.starts[c]; t < weights.starts[c + 1]; ++t) {
        floats(tile)[weights.terms[t].row * columns + weights.columns[c] - first] = weights.terms[t].weight;
      }
    }
    Tensor all = memory;
    const Tensor part = weighted_rows(tile, torch::stable::narrow(all, 0, first, columns));
    vector_kernels().add_scaled(out, const_floats(part), 1.0f, batch_size * d);
  }
}

}  // namespace

SparseColumns by_columns(const std::vector<std::vector<Entry>>& rows, int64_t n) {
  std::vector<int64_t> place(n + 1, 0);
  for (const auto& row : rows) {
    for (const Entry& entry : row) ++place[entry.column + 1];
  }
  for (int64_t l = 0; l < n; ++l) place[l + 1] += place[l];
  std::vector<SparseColumns::Term> ordered(place[n]);
  for (std::size_t b = 0; b < rows.size(); ++b) {
    for (const Entry& entry : rows[b]) ordered[place[entry.column]++] = {static_cast<int32_t>(b), entry.value};
  }
  SparseColumns sparse;  // place[l] is now the end of column l
  for (int64_t l = 0, t = 0; l < n; ++l) {
    if (t == place[l]) continue;
    sparse.columns.push_back(l);
    sparse.starts.push_back(static_cast<int64_t>(sparse.terms.size()));
    for (int32_t last = -1; t < place[l]; ++t) {
      if (ordered[t].row == last) {
        sparse.terms.back().weight += ordered[t].weight;
      } else {
        sparse.terms.push_back(ordered[t]);
      }
      last = ordered[t].row;
    }
  }
  sparse.starts.push_back(static_cast<int64_t>(sparse.terms.size()));
  return sparse;
}

void add_sparse_product(const SparseColumns& weights, const Tensor& memory, int64_t batch_size, float* out) {
  const int64_t n = memory.size(0), d = memory.size(1);
  const int64_t terms = static_cast<int64_t>(weights.terms.size());
  if (terms == 0 || d == 0) return;
  if (terms > batch_size * n / kSparseUpTo && terms > 1024) {
    add_dense_tiles(weights, memory, batch_size, out);
    return;
  }
  const int64_t width = std::max(kWidthOfTask, kResultFloats / batch_size / kWidthOfTask * kWidthOfTask);
  const int64_t tasks = (d + kWidthOfTask - 1) / kWidthOfTask;
  torch::stable::parallel_for(0, tasks, grain(terms * kWidthOfTask), [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kWidthOfTask, d);
    for (int64_t first = begin * kWidthOfTask; first < last; first += width) {
      add_rows(weights, const_floats(memory), d, first, std::min(first + width, last), out);
    }
  });
}

}  // namespace snnet
