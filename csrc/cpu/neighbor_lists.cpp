// Building neighbour lists: products by tiles of the upper triangle, the largest of each row kept; and their symmetric
// form, in which i lists l exactly where l lists i.
#include "neighbor_lists.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>
#include <vector>

#include "products.h"
#include "vector.h"

namespace snnet {
namespace {

constexpr int64_t kTileRows = 1024;
constexpr int64_t kTileFloats = int64_t{2} << 20;  // of the two sides of a product
constexpr int64_t kLine = NeighborLists::kLine;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Keys = std::vector<uint64_t>;

void empty(const NeighborLists& lists, float floor) {
  std::fill_n(lists.columns, lists.n * lists.capacity, -1);
  std::fill_n(lists.values, lists.n * lists.capacity, -kInfinity);
  std::fill_n(lists.counts, lists.n, 0);
  std::fill_n(lists.floors, lists.n, floor);
}

// Places [0, keys) of row i; the places behind are empty already.
void write_row(const NeighborLists& lists, int64_t i, const Keys& keys) {
  for (std::size_t j = 0; j < keys.size(); ++j) {
    lists.columns_of(i)[j] = column_of_key(keys[j]);
    lists.values_of(i)[j] = value_of_key(keys[j]);
  }
  lists.counts[i] = static_cast<int32_t>(keys.size());
}

// Buffers of one thread.
struct Scratch {
  std::vector<Entry> found;
  Keys keys;
  std::vector<float> columns;
};

// Takes similarities of row i to the columns from `first` on into its list, and into its lowest similarity.
void take(const NeighborLists& lists, float* lowest, int64_t i, const float* row, int64_t count, int64_t first,
          Scratch& scratch) {
  const bool is_full = lists.counts[i] == lists.capacity;
  scratch.found.resize(std::max<std::size_t>(scratch.found.size(), count));
  const VectorKernels& kernels = vector_kernels();
  lowest[i] = std::min(lowest[i], kernels.lowest(row, count));
  const auto column = static_cast<int32_t>(first);
  // What equals the floor of a full row may have a lower column than what is listed with the same value.
  const auto collect = is_full ? kernels.collect_from : kernels.collect_above;
  const int64_t found = collect(row, count, lists.floors[i], column, scratch.found.data());
  if (found == 0) return;
  Keys& keys = scratch.keys;
  keys.clear();
  lists.add_keys(i, keys);
  for (int64_t e = 0; e < found; ++e) keys.push_back(selection_key(scratch.found[e].value, scratch.found[e].column));
  const auto room = static_cast<std::size_t>(lists.capacity);
  if (keys.size() > room) {
    std::nth_element(keys.begin(), keys.begin() + lists.capacity, keys.end(), std::greater<>());
    lists.floors[i] = std::max(lists.floors[i], value_of_key(keys[room]));
    keys.resize(room);
  }
  write_row(lists, i, keys);
}

// The products of the rows from `top` with those from `left`, taken by the lists of both.
void take_tile(const NeighborLists& lists, float* lowest, const Tensor& product, int64_t top, int64_t left) {
  const int64_t rows = product.size(0), columns = product.size(1);
  const float* values = const_floats(product);
  const int64_t length = rows + kLine;  // apart by no power of two: their places in a cache differ
  torch::stable::parallel_for(0, columns, grain(rows), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    scratch.columns.resize(kLine * length);
    for (int64_t first = begin; first < end; first += kLine) {  // each line of the cache is read once
      const int64_t count = std::min(kLine, end - first);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < count; ++j) scratch.columns[j * length + r] = values[r * columns + first + j];
      }
      for (int64_t j = 0; j < count; ++j) {
        take(lists, lowest, left + first + j, scratch.columns.data() + j * length, rows, top, scratch);
      }
    }
  });
  if (top == left) return;  // the other half has the same bits
  torch::stable::parallel_for(0, rows, grain(columns), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t r = begin; r < end; ++r) take(lists, lowest, top + r, values + r * columns, columns, left, scratch);
  });
}

// The lists [n, k] of features [n, d] and the lowest similarities [n], a band of rows a call: its products with these
// rows and all behind them, taken by the lists of both. First 0 empties the tables. The lists of the band are then whole,
// and sorted. Returns the first row of the next band.
int64_t take_band_(const Tensor& features, int64_t first, double floor, const Tensor& columns, const Tensor& values,
                   const Tensor& counts, const Tensor& floors, const Tensor& lowest) {
  const int64_t n = rows_of(features, "features"), d = features.size(1);
  check_matrix(features, "features", ScalarType::Float, n, d);
  SNNET_CHECK(first >= 0 && first < n, "first must lie in [0, ", n, "), got ", first);
  SNNET_CHECK(!std::isnan(floor), "floor must be a number");
  const NeighborLists lists(columns, values, counts, floors, n);
  SNNET_CHECK(lists.capacity >= 1, "lists.columns must have at least one place a row");
  float* lows = checked_vector<float>(lowest, "lowest", n);
  if (first == 0) {
    empty(lists, static_cast<float>(floor));
    std::fill_n(lows, n, kInfinity);
  }
  lists.check_counts();
  Tensor all = torch::stable::contiguous(features);
  const int64_t tile = std::clamp<int64_t>(kTileFloats / std::max<int64_t>(d, 1), 64, kTileRows);
  const int64_t size = std::min(tile, n - first);
  const Tensor rows = torch::stable::narrow(all, 0, first, size);
  for (int64_t left = first; left < n; left += tile) {
    const Tensor product = inner_products(rows, torch::stable::narrow(all, 0, left, std::min(tile, n - left)));
    take_tile(lists, lows, product, first, left);
  }
  torch::stable::parallel_for(first, first + size, grain(8 * lists.capacity), [&](int64_t begin, int64_t end) {
    Keys keys;
    for (int64_t i = begin; i < end; ++i) {
      keys.clear();
      lists.add_keys(i, keys);
      std::sort(keys.begin(), keys.end(), std::greater<>());
      write_row(lists, i, keys);
    }
  });
  return first + size;
}

// Who lists each row: rows[starts[i], starts[i + 1]) list i, with these values.
struct Listers {
  std::vector<int64_t> starts;
  std::vector<Entry> entries;

  explicit Listers(const NeighborLists& lists) : starts(lists.n + 1) {
    for (int64_t i = 0; i < lists.n; ++i) {
      lists.check_columns_of(i);
      for (int32_t j = 0; j < lists.counts[i]; ++j) ++starts[lists.columns_of(i)[j] + 1];
    }
    for (int64_t i = 0; i < lists.n; ++i) starts[i + 1] += starts[i];
    entries.resize(starts[lists.n]);
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < lists.n; ++i) {
      for (int32_t j = 0; j < lists.counts[i]; ++j) {
        entries[next[lists.columns_of(i)[j]]++] = {lists.values_of(i)[j], static_cast<int32_t>(i)};
      }
    }
  }
};

// The pairs of row i, listed from either side, by falling key.
void pairs_of_row(const NeighborLists& lists, const Listers& listers, int64_t i, Keys& keys) {
  keys.clear();
  lists.add_keys(i, keys);
  for (int64_t e = listers.starts[i]; e < listers.starts[i + 1]; ++e) {
    keys.push_back(selection_key(listers.entries[e].value, listers.entries[e].column));
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
}

// Lists that hold each pair twice, if either row lists it and both have room; mirrors[i, j] is the place of the other
// one. A pair without room raises the floors of both rows.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> symmetric_lists(const Tensor& columns, const Tensor& values,
                                                                   const Tensor& counts, const Tensor& floors,
                                                                   int64_t capacity) {
  SNNET_CHECK(capacity >= 1 && capacity < std::numeric_limits<int32_t>::max(), "capacity must be at least 1, got ",
              capacity);
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  const int64_t n = lists.n;
  const Listers listers(lists);
  Tensor own_columns = torch::stable::new_empty(values, {n, capacity}, ScalarType::Int);
  Tensor own_values = torch::stable::new_empty(values, {n, capacity}, ScalarType::Float);
  Tensor own_counts = torch::stable::new_empty(values, {n}, ScalarType::Int);
  Tensor own_floors = torch::stable::new_empty(values, {n}, ScalarType::Float);
  Tensor mirrors = torch::stable::new_empty(values, {n, capacity}, ScalarType::Int);
  const NeighborLists made(own_columns, own_values, own_counts, own_floors, n);
  empty(made, -kInfinity);
  int32_t* places = mirrors.mutable_data_ptr<int32_t>();
  std::fill_n(places, n * capacity, -1);
  std::vector<uint64_t> last(n, 0);  // the smallest key that a row has room for
  torch::stable::parallel_for(0, n, grain(32 * capacity), [&](int64_t begin, int64_t end) {
    Keys keys;
    for (int64_t i = begin; i < end; ++i) {
      pairs_of_row(lists, listers, i, keys);
      if (static_cast<int64_t>(keys.size()) > capacity) last[i] = keys[capacity - 1];
    }
  });
  torch::stable::parallel_for(0, n, grain(32 * capacity), [&](int64_t begin, int64_t end) {
    Keys keys, kept;
    for (int64_t i = begin; i < end; ++i) {
      pairs_of_row(lists, listers, i, keys);
      kept.clear();
      float floor = lists.floors[i];
      for (const uint64_t key : keys) {
        const bool has_room = key >= last[i] && selection_key(value_of_key(key), static_cast<int32_t>(i)) >=
                                                    last[column_of_key(key)];
        if (has_room) {
          kept.push_back(key);
        } else {
          floor = std::max(floor, value_of_key(key));
        }
      }
      write_row(made, i, kept);
      made.floors[i] = floor;
    }
  });
  torch::stable::parallel_for(0, n, grain(16 * capacity), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int32_t j = 0; j < made.counts[i]; ++j) {
        const int64_t l = made.columns_of(i)[j];
        const uint64_t own = selection_key(made.values_of(i)[j], static_cast<int32_t>(i));
        int64_t low = 0, high = made.counts[l] - 1;  // its row is by falling key
        while (low < high) {
          const int64_t middle = (low + high) / 2;
          const uint64_t key = selection_key(made.values_of(l)[middle], made.columns_of(l)[middle]);
          if (key > own) {
            low = middle + 1;
          } else {
            high = middle;
          }
        }
        places[i * capacity + j] = static_cast<int32_t>(low);
      }
    }
  });
  return {own_columns, own_values, own_counts, own_floors, mirrors};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("take_band_", TORCH_BOX(&snnet::take_band_));
  m.impl("symmetric_lists", TORCH_BOX(&snnet::symmetric_lists));
}
