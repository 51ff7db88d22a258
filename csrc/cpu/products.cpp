// Products: one side is packed into panels, the rows of the other are multiplied with each panel where they lie.
#include "products.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "vector.h"

namespace snnet {
namespace {

constexpr int64_t kRows = 96;  // rows whose products with a panel are made at once

// Rows of floats.
struct Rows {
  Tensor tensor;
  const float* values;
  int64_t count, d, stride;

  explicit Rows(const Tensor& given)
      : tensor(given.size(1) <= 1 || given.stride(1) == 1 ? given : torch::stable::contiguous(given)),
        values(const_floats(tensor)), count(tensor.size(0)), d(tensor.size(1)), stride(tensor.stride(0)) {}
};

// target[k, r] = source[r, k] for r < rows and k < columns.
void transpose(const float* source, int64_t source_stride, int64_t rows, int64_t columns, float* target,
               int64_t target_stride) {
  typedef float Four __attribute__((vector_size(4 * sizeof(float))));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float *a = source + r * source_stride, *b = a + source_stride, *c = b + source_stride, *d = c + source_stride;
    for (int64_t k = 0; k < columns; ++k) {
      const Four four = {a[k], b[k], c[k], d[k]};
      std::memcpy(target + k * target_stride + r, &four, sizeof four);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) target[k * target_stride + r] = source[r * source_stride + k];
  }
}

// The rows of a matrix as panels [d, lanes], one after the other; lanes behind the last row are 0. Their size is that of
// `kernels`, which multiply them: another thread may select other ones meanwhile.
struct Panels {
  const VectorKernels& kernels;
  int64_t vector, lanes;  // floats of a vector, and of a whole panel
  int64_t count, d, rows;
  std::unique_ptr<float[]> values;

  explicit Panels(const Rows& given)
      : kernels(vector_kernels()), vector(kernels.lanes_of_vector), lanes(vector * kernels.most_vectors),
        count((given.count + lanes - 1) / lanes), d(given.d), rows(given.count) {
    values.reset(new float[((rows + vector - 1) / vector) * vector * d]);
    const int64_t parts = (d + kPart - 1) / kPart;
    torch::stable::parallel_for(0, count * parts, grain(2 * lanes * kPart), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) pack(given, part / parts, part % parts * kPart);
    });
  }

  int64_t vectors_of(int64_t p) const { return (rows_of_panel(p) + vector - 1) / vector; }
  int64_t rows_of_panel(int64_t p) const { return std::min(lanes, rows - p * lanes); }
  const float* panel(int64_t p) const { return values.get() + p * lanes * d; }

 private:
  static constexpr int64_t kPart = 64;  // dimensions that are packed at once: they stay in the first cache

  void pack(const Rows& given, int64_t p, int64_t first) {
    const int64_t width = vectors_of(p) * vector, used = rows_of_panel(p), depth = std::min(kPart, d - first);
    float* target = values.get() + p * lanes * d + first * width;
    transpose(given.values + p * lanes * given.stride + first, given.stride, used, depth, target, width);
    for (int64_t k = 0; k < depth; ++k) std::fill_n(target + k * width + used, width - used, 0.0f);
  }
};

// products [rows, panel] to out: as they are, or where the panel's rows are those of out, transposed.
void store(const float* products, int64_t rows, int64_t lanes, int64_t used, bool transposed, float* out,
           int64_t stride) {
  if (!transposed) {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(products + r * lanes, used, out + r * stride);
    return;
  }
  constexpr int64_t kTogether = 8;  // rows of the result: many more may share a set of the first cache, and evict another
  for (int64_t k = 0; k < used; k += kTogether) {
    transpose(products + k, lanes, rows, std::min(kTogether, used - k), out + k * stride, stride);
  }
}

}  // namespace

Tensor inner_products(const Tensor& left, const Tensor& right) {
  check_matrix(left, "left", ScalarType::Float, left.size(0), right.size(1));
  check_matrix(right, "right", ScalarType::Float, right.size(0), left.size(1));
  const int64_t d = left.size(1), columns = right.size(0);
  Tensor result = empty_floats(left, left.size(0), columns);
  if (result.numel() == 0) return result;
  if (d == 0) {
    std::fill_n(floats(result), result.numel(), 0.0f);
    return result;
  }
  const bool left_is_packed = left.size(0) <= columns;
  const Panels panels{Rows(left_is_packed ? left : right)};
  const Rows rows(left_is_packed ? right : left);
  float* out = floats(result);
  // Few rows are split for the threads, by a multiple of those that a kernel takes.
  const int64_t at_once = rows.count * panels.count < 4 * kRows ? kRows / 8 : kRows;
  const int64_t blocks = (rows.count + at_once - 1) / at_once;
  const auto multiply = [&](int64_t begin, int64_t end) {
    std::vector<float> products(at_once * panels.lanes);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t p = part % panels.count, first = part / panels.count * at_once, row = p * panels.lanes;
      const int64_t count = std::min(at_once, rows.count - first), vectors = panels.vectors_of(p);
      panels.kernels.panel_products(panels.panel(p), vectors, rows.values + first * rows.stride, rows.stride, count, d,
                                    true, products.data());
      store(products.data(), count, vectors * panels.vector, panels.rows_of_panel(p), left_is_packed,
            left_is_packed ? out + row * columns + first : out + first * columns + row, columns);
    }
  };
  torch::stable::parallel_for(0, blocks * panels.count, grain(at_once * d * panels.lanes / 8), multiply);
  return result;
}

Tensor weighted_rows(const Tensor& weights, const Tensor& rows) {
  check_matrix(weights, "weights", ScalarType::Float, weights.size(0), rows.size(0));
  check_matrix(rows, "rows", ScalarType::Float, weights.size(1), rows.size(1));
  constexpr int64_t kAtOnce = 512;  // rows that are packed at once
  const Rows left(weights), right(rows);
  const int64_t count = right.count, d = right.d;
  Tensor result = empty_floats(weights, left.count, d);
  if (result.numel() == 0) return result;
  float* out = floats(result);
  if (count == 0) {
    std::fill_n(out, result.numel(), 0.0f);
    return result;
  }
  const VectorKernels& kernels = vector_kernels();
  const int64_t vector = kernels.lanes_of_vector, lanes = vector * kernels.most_vectors;
  const int64_t panels = (d + lanes - 1) / lanes, blocks = (left.count + kRows - 1) / kRows;
  torch::stable::parallel_for(0, blocks * panels, grain(kRows * count), [&](int64_t begin, int64_t end) {
    std::vector<float> panel(kAtOnce * lanes), products(kRows * lanes);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t column = part % panels * lanes, first = part / panels * kRows;
      const int64_t used = std::min(lanes, d - column), vectors = (used + vector - 1) / vector;
      const int64_t width = vectors * vector, size = std::min(kRows, left.count - first);
      std::fill(panel.begin(), panel.end(), 0.0f);
      for (int64_t q = 0; q < count; q += kAtOnce) {
        const int64_t depth = std::min(kAtOnce, count - q);
        for (int64_t k = 0; k < depth; ++k) {
          std::copy_n(right.values + (q + k) * right.stride + column, used, panel.data() + k * width);
        }
        kernels.panel_products(panel.data(), vectors, left.values + first * left.stride + q, left.stride, size, depth,
                               q == 0, products.data());
      }
      store(products.data(), size, width, used, false, out + first * d + column, d);
    }
  });
  return result;
}

}  // namespace snnet
