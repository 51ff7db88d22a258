// Plain products, left to torch.
#pragma once

#include <algorithm>
#include <array>

#include "checks.h"

namespace snnet {

// An operation of this library and not aten's: its implementation switches autocast and reduced precision off.
inline Tensor call_product(const char* operation, const Tensor& left, const Tensor& right) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(left), torch::stable::detail::from(right)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(operation, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// weights [p, q], rows [q, d] -> weights rows [p, d], contiguous
inline Tensor weighted_rows(const Tensor& weights, const Tensor& rows) {
  return torch::stable::contiguous(call_product("snnet::product", weights, rows));
}

// left [p, d], right [q, d] -> left rightᵀ [p, q], contiguous
inline Tensor plain_products(const Tensor& left, const Tensor& right) {
  return weighted_rows(left, torch::stable::transpose(right, 0, 1));
}

// The same, where the bits of a product depend on its two rows alone: not on which is left, nor on what others are made
// with it. So a process that owns some rows gets the bits of one that has all.
inline Tensor inner_products(const Tensor& left, const Tensor& right) {
  constexpr int64_t kSmallestSide = 16;  // matrices with fewer rows or columns are summed in other orders
  const int64_t rows = left.size(0), columns = right.size(0);
  const bool are_large = rows >= kSmallestSide && columns >= kSmallestSide;
  if (are_large || rows == 0 || columns == 0) return plain_products(left, right);
  const auto padded = [](const Tensor& side) {
    const int64_t missing = kSmallestSide - side.size(0);
    return missing <= 0 ? side : torch::stable::pad(side, {0, 0, 0, missing});
  };
  Tensor products = plain_products(padded(left), padded(right));
  products = torch::stable::narrow(products, 0, 0, rows);
  // A copy, and no view of the padded products: autograd refuses in-place operations on those.
  return torch::stable::contiguous(torch::stable::clone(torch::stable::narrow(products, 1, 0, columns)));
}

// left [p, d] and right [q, d], contiguous -> left rightᵀ, the tiles of `width` columns one after the other.
//
// One product of a batch of tiles: on many processors it is faster than the same as one product of long rows,
// because a tile of the right side stays in the cache.
struct TiledProducts {
  static constexpr int64_t width = 512;
  int64_t rows, columns;
  Tensor tiles;  // [columns / width, p, width]
  Tensor rest;   // [p, columns % width]

  TiledProducts(const Tensor& left, const Tensor& right)
      : rows(left.size(0)), columns(right.size(0)), tiles(left), rest(left) {
    const int64_t whole = columns / width, d = left.size(1);
    if (whole > 0) {
      const auto view = [&](const Tensor& tensor, std::array<int64_t, 3> sizes, std::array<int64_t, 3> strides) {
        return torch::stable::from_blob(const_cast<float*>(const_floats(tensor)), {sizes.data(), 3},
                                        {strides.data(), 3}, tensor.device(), ScalarType::Float);
      };
      tiles = weighted_rows(view(left, {whole, rows, d}, {0, d, 1}),
                            view(right, {whole, d, width}, {width * d, 1, d}));
    }
    if (whole * width < columns) {
      Tensor all = right;
      rest = inner_products(left, torch::stable::narrow(all, 0, whole * width, columns % width));
    }
  }

  // Row r, copied to out [columns].
  void copy_row(int64_t r, float* out) const {
    const int64_t whole = columns / width, left = columns % width;
    for (int64_t tile = 0; tile < whole; ++tile) {
      std::copy_n(const_floats(tiles) + (tile * rows + r) * width, width, out + tile * width);
    }
    if (left > 0) std::copy_n(const_floats(rest) + r * left, left, out + whole * width);
  }
};

inline Tensor empty_floats(const Tensor& like, int64_t rows, int64_t columns) {
  return torch::stable::new_empty(like, {rows, columns}, ScalarType::Float);
}

// The same products as inner_products, for a left side of about a batch's rows: by tiles where these are faster.
inline Tensor batch_products(const Tensor& left, const Tensor& right) {
  constexpr int64_t kFewestRows = 16, kMostRows = 256;  // of fewer or more rows one product is as fast
  constexpr int64_t kScratchFloats = int64_t{4} << 20;
  const int64_t rows = left.size(0), columns = right.size(0);
  if (rows < kFewestRows || rows > kMostRows || columns < 2 * TiledProducts::width || left.size(1) == 0) {
    return inner_products(left, right);
  }
  const Tensor queries = torch::stable::contiguous(left);
  Tensor all = torch::stable::contiguous(right), joined = empty_floats(left, rows, columns);
  const int64_t step = kScratchFloats / rows / TiledProducts::width * TiledProducts::width;
  for (int64_t first = 0; first < columns; first += step) {
    const int64_t size = std::min(step, columns - first);
    const TiledProducts products(queries, torch::stable::narrow(all, 0, first, size));
    torch::stable::parallel_for(0, rows, grain(size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) products.copy_row(r, floats(joined) + r * columns + first);
    });
  }
  return joined;
}

// s of live features [B, d] and memory [n, d]. A single row, as of a search, is multiplied the plain way, in a seventh of
// the time; its bits may differ.
inline Tensor live_products(const Tensor& features, const Tensor& memory) {
  return features.size(0) == 1 ? plain_products(features, memory) : batch_products(features, memory);
}

// Copies of the rows of memory [n, d] at `positions`.
template <class Positions>
Tensor rows_at(const Tensor& memory, const Positions& positions) {
  const int64_t d = memory.size(1), count = static_cast<int64_t>(positions.size());
  Tensor rows = empty_floats(memory, count, d);
  const float* source = const_floats(memory);
  float* target = floats(rows);
  torch::stable::parallel_for(0, count, grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = source + static_cast<int64_t>(positions[r]) * d;
      for (int64_t k = 0; k < d; ++k) target[r * d + k] = row[k];
    }
  });
  return rows;
}

}  // namespace snnet
