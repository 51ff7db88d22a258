// Rows of the memory, weighted and added: each row is read once for the whole batch.
#include "sparse_product.h"

#include <algorithm>

#include "products.h"

namespace snnet {
namespace {

constexpr int64_t kResultFloats = 1 << 17;  // of the result that are added to at once: they stay in the L2 cache
constexpr int64_t kWidthOfTask = 16;
constexpr int64_t kParts = 2;
constexpr int64_t kRowsAhead = 4;
constexpr int64_t kTileFloats = 1 << 20;

// A sparse matrix [B, n] by columns: the terms of columns[c] are terms[starts[c]] .. terms[starts[c + 1] - 1].
struct SparseColumns {
  struct Term {
    int32_t row;
    float weight;
  };
  std::vector<int32_t> columns;  // rising
  std::vector<int64_t> starts;
  std::vector<Term> terms;  // rising rows
};

SparseColumns by_columns(const Slopes& rows, int64_t n) {
  std::vector<uint64_t> present((n + 63) / 64, 0);
  std::vector<int32_t> counts(n, 0);
  for (const auto& row : rows) {
    for (const Entry& entry : row) {
      ++counts[entry.column];
      present[entry.column / 64] |= uint64_t{1} << (entry.column % 64);
    }
  }
  SparseColumns sparse;
  int64_t terms = 0;
  std::vector<int64_t> place(n);  // where the next term of a column goes
  for (int64_t w = 0; w < static_cast<int64_t>(present.size()); ++w) {
    for (uint64_t left = present[w]; left != 0; left &= left - 1) {
      const int64_t column = 64 * w + lowest_bit(left);
      sparse.columns.push_back(static_cast<int32_t>(column));
      sparse.starts.push_back(terms);
      place[column] = terms;
      terms += counts[column];
    }
  }
  sparse.starts.push_back(terms);
  sparse.terms.resize(terms);
  for (std::size_t b = 0; b < rows.size(); ++b) {
    for (const Entry& entry : rows[b]) sparse.terms[place[entry.column]++] = {static_cast<int32_t>(b), entry.value};
  }
  return sparse;
}

// The terms of columns first .. last - 1 of `weights`, dimensions [begin, end) of out.
void add_rows(const SparseColumns& weights, int64_t first, int64_t last, const float* memory, int64_t d,
              int64_t begin, int64_t end, float* out) {
  const VectorKernels& kernels = vector_kernels();
  for (int64_t c = first; c < last; ++c) {
    const float* row = memory + static_cast<int64_t>(weights.columns[c]) * d + begin;
    if (c + kRowsAhead < last) {  // it lies somewhere else: no hardware prefetcher knows where
      const float* later = memory + static_cast<int64_t>(weights.columns[c + kRowsAhead]) * d + begin;
      for (int64_t k = 0; k < end - begin; k += 16) __builtin_prefetch(later + k, 0, 2);
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

void add_sparse_product(const Slopes& rows, const Tensor& memory, float* out) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1), batch_size = static_cast<int64_t>(rows.size());
  const SparseColumns weights = by_columns(rows, n);
  const int64_t terms = static_cast<int64_t>(weights.terms.size());
  if (terms == 0 || d == 0) return;
  if (terms > batch_size * n / kSparseUpTo && terms > 1024) {
    add_dense_tiles(weights, memory, batch_size, out);
    return;
  }
  // Parts of the memory with a result each: two threads read whole rows, which is what the processor fetches
  // fastest. More threads share the dimensions. The parts are the same whatever the number of threads.
  const int64_t columns = static_cast<int64_t>(weights.columns.size());
  std::vector<float> partial((kParts - 1) * batch_size * d, 0.0f);
  const int64_t width = std::max(kWidthOfTask, kResultFloats / batch_size / kWidthOfTask * kWidthOfTask);
  const int64_t tasks = (d + kWidthOfTask - 1) / kWidthOfTask;
  torch::stable::parallel_for(0, kParts * tasks, grain(terms * kWidthOfTask / kParts), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin / tasks; part * tasks < end; ++part) {
      const int64_t last = std::min((std::min(end, (part + 1) * tasks) - part * tasks) * kWidthOfTask, d);
      float* own = part == 0 ? out : partial.data() + (part - 1) * batch_size * d;
      for (int64_t first = std::max<int64_t>(begin - part * tasks, 0) * kWidthOfTask; first < last; first += width) {
        add_rows(weights, part * columns / kParts, (part + 1) * columns / kParts, const_floats(memory), d, first,
                 std::min(first + width, last), own);
      }
    }
  });
  for (int64_t part = 1; part < kParts; ++part) {
    vector_kernels().add_scaled(out, partial.data() + (part - 1) * batch_size * d, 1.0f, batch_size * d);
  }
}

}  // namespace snnet
