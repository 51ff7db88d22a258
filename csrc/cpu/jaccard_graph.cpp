// Jaccard distances of k-reciprocal neighbours (Zhong et al., CVPR 2017) without a matrix of all pairs. The definition
// stands in snnet_kernels/ops/jaccard_graph.py; here each of its steps is done with sparse rows.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "shared_columns.h"
#include "vector.h"

namespace snnet {
namespace {

// The nearest images of each image: int32 [n, listed].
struct Nearest {
  Tensor table;
  int64_t n, listed;
  const int32_t* indices;

  Nearest(const Tensor& tensor, const char* name, int64_t rows)
      : table(tensor), n(rows), listed(tensor.dim() == 2 ? tensor.size(1) : 0), indices(nullptr) {
    check_matrix(tensor, name, ScalarType::Int, n, listed);
    table = torch::stable::contiguous(tensor);
    indices = table.const_data_ptr<int32_t>();
    const auto outside = [&](int32_t index) { return index < 0 || index >= n; };
    SNNET_CHECK(std::none_of(indices, indices + n * listed, outside), name, " must lie in [0, ", n, ")");
  }

  const int32_t* row(int64_t image) const { return indices + image * listed; }

  // Calls found(j) for those of the first `size` neighbours of `image` that have it among their own first `size`.
  template <class Found>
  void each_reciprocal(int64_t image, int64_t size, const Found& found) const {
    constexpr int64_t kAhead = 8;  // the rows are anywhere in memory
    const int32_t* own = row(image);
    for (int64_t i = 0; i < size; ++i) {
      if (i + kAhead < size) prefetch(row(own[i + kAhead]), size);
      const int32_t* other = row(own[i]);
      if (std::find(other, other + size, static_cast<int32_t>(image)) != other + size) found(own[i]);
    }
  }

  // All images, those of a person mostly one after the other, so that the rows that they share are still in the cache:
  // they rise by the lowest index among their first few neighbours.
  std::vector<int32_t> by_person() const {
    std::vector<int32_t> lowest = consecutive(0, n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < std::min(listed, kFew); ++j) lowest[i] = std::min(lowest[i], row(i)[j]);
    }
    std::vector<int32_t> order = consecutive(0, n);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return lowest[a] < lowest[b]; });
    return order;
  }

 private:
  static constexpr int64_t kFew = 6;
};

// The reciprocal neighbours of all images among their first `size`: each set serves as many rows as have its image.
struct ReciprocalSets {
  int64_t size;
  std::vector<int32_t> members;
  std::vector<int32_t> counts;

  ReciprocalSets(const Nearest& nearest, int64_t size_, const std::vector<int32_t>& order)
      : size(size_), members(nearest.n * size_), counts(size_ > 0 ? nearest.n : 0) {
    if (size == 0) return;
    torch::stable::parallel_for(0, nearest.n, grain(size * size), [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        const int64_t i = order[place];
        int32_t* next = members.data() + i * size;
        nearest.each_reciprocal(i, size, [&](int32_t j) { *next++ = j; });
        counts[i] = static_cast<int32_t>(next - (members.data() + i * size));
      }
    });
  }
};

constexpr int64_t kFewFloats = 32;  // of a row: the processor sees by itself that the rest follows

// The squared Euclidean distance of unit vectors over the largest one of the row; 0 where all are 0.
float relative_distance(float similarity, float largest) { return largest > 0 ? (2 - 2 * similarity) / largest : 0; }

// nearest int32 [n, c], more int32 [n, e], features float32 [n, d], largest float32 [n] -> the weights V [n, n]
SparseTensors reciprocal_weights(const Tensor& nearest_table, const std::optional<Tensor>& more_table, int64_t half,
                                 const Tensor& features, const std::optional<Tensor>& largest) {
  const int64_t n = rows_of(nearest_table, "nearest"), d = features.dim() == 2 ? features.size(1) : 0;
  const Nearest nearest(nearest_table, "nearest", n);
  std::optional<Nearest> more;
  if (more_table.has_value()) more.emplace(*more_table, "more", n);
  SNNET_CHECK(half >= 0 && half <= nearest.listed, "half must lie in [0, ", nearest.listed, "], got ", half);
  check_matrix(features, "features", ScalarType::Float, n, d);
  const Tensor rows = torch::stable::contiguous(features);
  const float* feature = const_floats(rows);
  const float* largest_of = largest ? checked_vector<const float>(*largest, "largest", n) : nullptr;
  const std::vector<int32_t> order = nearest.by_person();
  const ReciprocalSets halves(nearest, half, order);

  struct Scratch {
    std::vector<int32_t> reciprocal, members;
    std::vector<const float*> pointers;
    std::vector<float> similarities;
    std::vector<double> weights;
    std::vector<int32_t> listed_for;  // the last image that has this one as reciprocal
  };
  const Scratch fresh{{}, {}, {}, {}, {}, std::vector<int32_t>(n, -1)};
  return build_rows(features, order, fresh, [&](int64_t image, Scratch& own, SparsePart& part) {
    own.reciprocal.clear();
    nearest.each_reciprocal(image, nearest.listed, [&](int32_t j) { own.reciprocal.push_back(j); });
    for (const int32_t j : own.reciprocal) own.listed_for[j] = static_cast<int32_t>(image);
    own.members = own.reciprocal;
    for (const int32_t j : own.reciprocal) prefetch(halves.members.data() + j * half, half);
    for (std::size_t r = 0; half > 0 && r < own.reciprocal.size(); ++r) {
      const int32_t* begin = halves.members.data() + own.reciprocal[r] * half;
      const int32_t* end = begin + halves.counts[own.reciprocal[r]];
      const int64_t shared = std::count_if(begin, end, [&](int32_t l) { return own.listed_for[l] == image; });
      if (3 * shared > 2 * (end - begin)) own.members.insert(own.members.end(), begin, end);
    }
    if (more) more->each_reciprocal(image, more->listed, [&](int32_t j) { own.members.push_back(j); });
    std::sort(own.members.begin(), own.members.end());
    own.members.erase(std::unique(own.members.begin(), own.members.end()), own.members.end());

    const std::size_t count = own.members.size();
    own.pointers.resize(count);
    own.similarities.resize(count);
    for (std::size_t m = 0; m < count; ++m) {
      own.pointers[m] = feature + own.members[m] * d;
      prefetch(own.pointers[m], std::min<int64_t>(d, kFewFloats));
    }
    vector_kernels().dots(own.pointers.data(), count, feature + image * d, d, own.similarities.data());
    own.weights.clear();
    double sum = 0;
    for (const float similarity : own.similarities) {
      const float distance =
          largest_of == nullptr ? 2 - 2 * similarity : relative_distance(similarity, largest_of[image]);
      own.weights.push_back(std::exp(-static_cast<double>(distance)));
      sum += own.weights.back();
    }
    for (std::size_t m = 0; m < count; ++m) {
      part.append(own.members[m], static_cast<float>(own.weights[m] / sum));
    }
  });
}

// Each row as the mean of the rows of its nearest: int32 [n, k]
SparseTensors expand_query(const Tensor& indptr, const Tensor& indices, const Tensor& values, const Tensor& table) {
  const SparseRows code(indptr, indices, values);
  const Nearest nearest(table, "nearest", code.n);
  SNNET_CHECK(nearest.listed >= 1, "nearest must have a column");
  struct Scratch {
    std::vector<float> sums;
    std::vector<int32_t> columns;
  };
  const Scratch fresh{std::vector<float>(code.n, 0.0F), {}};
  const auto count = static_cast<float>(nearest.listed);
  return build_rows(values, nearest.by_person(), fresh, [&](int64_t image, Scratch& own, SparsePart& part) {
    own.columns.clear();
    for (int64_t i = 0; i < nearest.listed; ++i) {
      const int32_t other = nearest.row(image)[i];
      for (int64_t entry = code.starts[other]; entry < code.starts[other + 1]; ++entry) {
        float& sum = own.sums[code.columns[entry]];
        if (sum == 0) own.columns.push_back(code.columns[entry]);
        sum += code.values[entry];
      }
    }
    std::sort(own.columns.begin(), own.columns.end());
    for (const int32_t column : own.columns) {
      if (own.sums[column] != 0) part.append(column, own.sums[column] / count);
      own.sums[column] = 0;  // a column that came back to 0 stands twice
    }
  });
}

// Overwrites the similarities of the first q images with the others [q, n - q] by the final distances of re-ranking.
void blend_jaccard_(const Tensor& similarity, const Tensor& indptr, const Tensor& indices, const Tensor& values,
                    const Tensor& largest, double original_weight) {
  const SparseRows code(indptr, indices, values);
  const int64_t queries = similarity.dim() == 2 ? similarity.size(0) : 0, gallery = code.n - queries;
  SNNET_CHECK(gallery >= 0, "similarity must have at most ", code.n, " rows, got ", queries);
  check_storage(similarity, "similarity", ScalarType::Float, queries, gallery);
  const float* largest_of = checked_vector<const float>(largest, "largest", code.n);
  const ByColumn others(code, consecutive(queries, code.n));
  float* distances = floats(similarity);
  const auto weight = static_cast<float>(original_weight);
  torch::stable::parallel_for(0, queries, grain(gallery), [&](int64_t begin, int64_t end) {
    std::vector<float> overlaps(gallery);
    for (int64_t query = begin; query < end; ++query) {
      std::fill(overlaps.begin(), overlaps.end(), 0.0F);
      for (int64_t entry = code.starts[query]; entry < code.starts[query + 1]; ++entry) {
        each_sharer(code, entry, others, 0, [&](int32_t place, float smaller) { overlaps[place] += smaller; });
      }
      float* out = distances + query * gallery;
      for (int64_t i = 0; i < gallery; ++i) {
        const float original = relative_distance(out[i], largest_of[query]);
        out[i] = (1 - weight) * jaccard_distance(overlaps[i]) + weight * original;
      }
    }
  });
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("reciprocal_weights", TORCH_BOX(&snnet::reciprocal_weights));
  m.impl("expand_query", TORCH_BOX(&snnet::expand_query));
  m.impl("blend_jaccard_", TORCH_BOX(&snnet::blend_jaccard_));
}
