// Jaccard distances of k-reciprocal neighbours (Zhong et al., CVPR 2017) without a matrix of all pairs. The definition
// stands in snnet_kernels/ops/jaccard_graph.py; here each of its steps is done with sparse rows.
//
// Images are first brought into another order, in which those of a person mostly stand together: what they share is
// then still in the cache. From there on, "row" is a place in that order, and images[row] the image.
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

#include "jaccard_pairs.h"
#include "shared_columns.h"
#include "vector.h"

namespace snnet {
namespace {

// Numbers of 4 bytes are wanted soon.
void prefetch(const void* numbers, int64_t count) {
  constexpr int64_t kLine = 64;
  for (int64_t byte = 0; byte < 4 * count; byte += kLine) __builtin_prefetch(static_cast<const char*>(numbers) + byte);
}

// The nearest images of each image as the caller has them: int32 [n, listed].
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
};

// The label that most of the first few neighbours of each image have; of equally many, the lowest.
std::vector<int32_t> most_frequent(const Nearest& nearest, const std::vector<int32_t>& labels) {
  constexpr int64_t kFew = 12;
  const int64_t few = std::min(nearest.listed, kFew);
  std::vector<int32_t> found = labels;
  std::vector<int32_t> seen(few);
  for (int64_t i = 0; i < nearest.n; ++i) {
    for (int64_t j = 0; j < few; ++j) seen[j] = labels[nearest.row(i)[j]];
    std::sort(seen.begin(), seen.end());
    int64_t most = 0, equal = 0;
    for (int64_t j = 0; j < few; ++j) {
      equal = j > 0 && seen[j] == seen[j - 1] ? equal + 1 : 1;
      if (equal > most) {
        most = equal;
        found[i] = seen[j];
      }
    }
  }
  return found;
}

// All images, the first `queries` before the others; those of a person mostly stand together. Each image is labelled
// with the lowest index among its first few neighbours. Neighbours then agree on a label.
std::vector<int32_t> by_person(const Nearest& nearest, int64_t queries) {
  constexpr int64_t kFew = 6;
  std::vector<int32_t> images(nearest.n);
  std::iota(images.begin(), images.end(), 0);
  std::vector<int32_t> label = images;
  for (int64_t i = 0; i < nearest.n; ++i) {
    for (int64_t j = 0; j < std::min(nearest.listed, kFew); ++j) label[i] = std::min(label[i], nearest.row(i)[j]);
  }
  for (int rounds = 0; rounds < 2; ++rounds) label = most_frequent(nearest, label);
  const auto before = [&](int32_t a, int32_t b) { return label[a] < label[b]; };
  std::stable_sort(images.begin(), images.begin() + queries, before);
  std::stable_sort(images.begin() + queries, images.end(), before);
  return images;
}

// The nearest rows of each row.
class NearestRows {
 public:
  const int64_t n, listed;

  NearestRows(const Nearest& nearest, const std::vector<int32_t>& images)
      : n(nearest.n), listed(nearest.listed), table_(n * listed) {
    std::vector<int32_t> row_of(n);
    for (int64_t row = 0; row < n; ++row) row_of[images[row]] = static_cast<int32_t>(row);
    torch::stable::parallel_for(0, n, grain(listed), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int32_t* from = nearest.row(images[row]);
        std::transform(from, from + listed, table_.data() + row * listed, [&](int32_t image) { return row_of[image]; });
      }
    });
  }

  const int32_t* row(int64_t i) const { return table_.data() + i * listed; }

  // Calls found(j) for those of the first `size` neighbours of row i that have it among their own first `size`.
  template <class Found>
  void each_reciprocal(int64_t i, int64_t size, const Found& found) const {
    constexpr int64_t kAhead = 8;  // the rows are anywhere in memory
    const int32_t* own = row(i);
    for (int64_t k = 0; k < size; ++k) {
      if (k + kAhead < size) prefetch(row(own[k + kAhead]), size);
      const int32_t* other = row(own[k]);
      if (std::find(other, other + size, static_cast<int32_t>(i)) != other + size) found(own[k]);
    }
  }

 private:
  std::vector<int32_t> table_;
};

// The reciprocal neighbours of all rows among their first `size`: each set serves as many rows as have its own.
class ReciprocalSets {
 public:
  ReciprocalSets(const NearestRows& nearest, int64_t size)
      : size_(size), members_(nearest.n * size), counts_(size > 0 ? nearest.n : 0) {
    if (size == 0) return;
    torch::stable::parallel_for(0, nearest.n, grain(size * size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int32_t* next = members_.data() + i * size_;
        nearest.each_reciprocal(i, size_, [&](int32_t j) { *next++ = j; });
        counts_[i] = static_cast<int32_t>(next - (members_.data() + i * size_));
      }
    });
  }

  bool empty() const { return size_ == 0; }
  void prefetch_row(int64_t i) const { prefetch(members_.data() + i * size_, size_); }
  std::span<const int32_t> row(int64_t i) const { return {members_.data() + i * size_, size_t(counts_[i])}; }

 private:
  int64_t size_;
  std::vector<int32_t> members_;
  std::vector<int32_t> counts_;
};

// What the weights are computed from, by rows.
struct Distances {
  const std::vector<int32_t>& images;
  int64_t d;
  Tensor table;
  const float* features;  // of each image
  const float* largest;  // of each image, or null

  Distances(const std::vector<int32_t>& images_, const Tensor& features_, const std::optional<Tensor>& largest_)
      : images(images_), d(features_.dim() == 2 ? features_.size(1) : 0), features(nullptr), largest(nullptr) {
    const auto n = static_cast<int64_t>(images.size());
    check_matrix(features_, "features", ScalarType::Float, n, d);
    table = torch::stable::contiguous(features_);
    features = const_floats(table);
    largest = largest_ ? checked_vector<const float>(*largest_, "largest", n) : nullptr;
  }

  const float* feature(int64_t row) const { return features + images[row] * d; }
};

// The squared Euclidean distance of unit vectors over the largest one of the row; 0 where all are 0.
float relative_distance(float similarity, float largest) { return largest > 0 ? (2 - 2 * similarity) / largest : 0; }

// The weights V of the reciprocal neighbours of each row, expanded by the sets of the first `half` columns.
SparseRows reciprocal_weights(const NearestRows& nearest, const std::optional<NearestRows>& more, int64_t half,
                              const Distances& distances) {
  constexpr int64_t kFewFloats = 32;  // of a row: the processor sees by itself that the rest follows
  const int64_t d = distances.d;
  const ReciprocalSets halves(nearest, half);
  struct Scratch {
    std::vector<int32_t> reciprocal, members;
    std::vector<const float*> pointers;
    std::vector<float> similarities;
    std::vector<double> weights;
    std::vector<int32_t> listed_for;  // the last row that has this one as reciprocal
  };
  const Scratch fresh{{}, {}, {}, {}, {}, std::vector<int32_t>(nearest.n, -1)};
  return SparseRows(nearest.n, fresh, [&](int64_t i, Scratch& own, std::vector<Entry>& row) {
    own.reciprocal.clear();
    nearest.each_reciprocal(i, nearest.listed, [&](int32_t j) { own.reciprocal.push_back(j); });
    own.members = own.reciprocal;
    if (!halves.empty()) {
      for (const int32_t j : own.reciprocal) {
        own.listed_for[j] = static_cast<int32_t>(i);
        halves.prefetch_row(j);
      }
      for (const int32_t j : own.reciprocal) {
        const std::span<const int32_t> set = halves.row(j);
        const auto shared = std::count_if(set.begin(), set.end(), [&](int32_t l) { return own.listed_for[l] == i; });
        if (3 * shared > 2 * std::ssize(set)) own.members.insert(own.members.end(), set.begin(), set.end());
      }
    }
    if (more) more->each_reciprocal(i, more->listed, [&](int32_t j) { own.members.push_back(j); });
    std::sort(own.members.begin(), own.members.end());
    own.members.erase(std::unique(own.members.begin(), own.members.end()), own.members.end());

    own.pointers.clear();
    for (const int32_t member : own.members) {
      own.pointers.push_back(distances.feature(member));
      prefetch(own.pointers.back(), std::min(d, kFewFloats));
    }
    own.similarities.resize(own.members.size());
    vector_kernels().dots(own.pointers.data(), std::ssize(own.pointers), distances.feature(i), d,
                          own.similarities.data());
    own.weights.clear();
    double sum = 0;
    for (const float similarity : own.similarities) {
      const float distance = distances.largest == nullptr
                                 ? 2 - 2 * similarity
                                 : relative_distance(similarity, distances.largest[distances.images[i]]);
      own.weights.push_back(std::exp(-static_cast<double>(distance)));
      sum += own.weights.back();
    }
    for (std::size_t m = 0; m < own.members.size(); ++m) {
      row.push_back({static_cast<float>(own.weights[m] / sum), own.members[m]});
    }
  });
}

// Each row of `weights` as the mean of the rows of its nearest.
SparseRows expand_query(const SparseRows& weights, const NearestRows& nearest) {
  struct Scratch {
    std::vector<float> sums;
    std::vector<int32_t> columns;
  };
  const Scratch fresh{std::vector<float>(nearest.n, 0.0F), {}};
  const auto count = static_cast<float>(nearest.listed);
  return SparseRows(nearest.n, fresh, [&](int64_t i, Scratch& own, std::vector<Entry>& row) {
    own.columns.clear();
    for (int64_t k = 0; k < nearest.listed; ++k) {
      for (const Entry& entry : weights.row(nearest.row(i)[k])) {
        float& sum = own.sums[entry.column];
        if (sum == 0) own.columns.push_back(entry.column);
        sum += entry.value;
      }
    }
    std::sort(own.columns.begin(), own.columns.end());
    for (const int32_t column : own.columns) {
      if (own.sums[column] != 0) row.push_back({own.sums[column] / count, column});
      own.sums[column] = 0;  // a column that came back to 0 stands twice
    }
  });
}

// Steps 1 to 4: V, and the images of its rows; the first `queries` images stay the first.
struct Weights {
  std::vector<int32_t> images;
  SparseRows rows;

  static Weights of(const Tensor& features, const Tensor& nearest_table, const std::optional<Tensor>& more_table,
                    int64_t half, const std::optional<Tensor>& largest, const std::optional<Tensor>& averaged_table,
                    int64_t queries) {
    const int64_t n = rows_of(nearest_table, "nearest");
    const Nearest nearest(nearest_table, "nearest", n);
    SNNET_CHECK(half >= 0 && half <= nearest.listed, "half must lie in [0, ", nearest.listed, "], got ", half);
    std::optional<Nearest> more, averaged;
    if (more_table) more.emplace(*more_table, "more", n);
    if (averaged_table) averaged.emplace(*averaged_table, "averaged", n);
    SNNET_CHECK(!averaged || averaged->listed >= 1, "averaged must have a column");

    std::vector<int32_t> images = by_person(nearest, queries);
    std::optional<NearestRows> more_rows;
    if (more) more_rows.emplace(*more, images);
    SparseRows rows = reciprocal_weights(NearestRows(nearest, images), more_rows, half,
                                         Distances(images, features, largest));
    if (averaged) rows = expand_query(rows, NearestRows(*averaged, images));
    return {std::move(images), std::move(rows)};
  }
};

SparseTensors jaccard_pairs(const Tensor& features, const Tensor& nearest, const std::optional<Tensor>& more,
                            int64_t half, const std::optional<Tensor>& largest,
                            const std::optional<Tensor>& averaged, double max_distance) {
  const Weights weights = Weights::of(features, nearest, more, half, largest, averaged, 0);
  return near_pairs(weights.rows, static_cast<float>(max_distance), weights.images, features);
}

// Overwrites the similarities of the first q images with the others [q, n - q] by the final distances of re-ranking.
void blend_jaccard_(const Tensor& similarity, const Tensor& features, const Tensor& nearest, int64_t half,
                    const Tensor& largest, const std::optional<Tensor>& averaged, double original_weight) {
  const int64_t n = rows_of(nearest, "nearest"), queries = similarity.dim() == 2 ? similarity.size(0) : 0;
  SNNET_CHECK(queries <= n, "similarity must have at most ", n, " rows, got ", queries);
  const int64_t gallery = n - queries;
  check_storage(similarity, "similarity", ScalarType::Float, queries, gallery);
  const Weights weights = Weights::of(features, nearest, std::nullopt, half, largest, averaged, queries);
  const float* largest_of = largest.const_data_ptr<float>();
  const ByColumn others(weights.rows, queries);
  float* distances = floats(similarity);
  const auto weight = static_cast<float>(original_weight);
  torch::stable::parallel_for(0, queries, grain(gallery), [&](int64_t begin, int64_t end) {
    std::vector<float> overlaps(gallery);
    for (int64_t query = begin; query < end; ++query) {
      std::fill(overlaps.begin(), overlaps.end(), 0.0F);
      for (const Entry& entry : weights.rows.row(query)) {
        each_sharer(entry, others, 0, [&](int32_t other, float smaller) { overlaps[other] += smaller; });
      }
      const int32_t image = weights.images[query];
      float* out = distances + image * gallery;
      for (int64_t i = 0; i < gallery; ++i) {
        float& distance = out[weights.images[queries + i] - queries];
        const float original = relative_distance(distance, largest_of[image]);
        distance = (1 - weight) * jaccard_distance(overlaps[i]) + weight * original;
      }
    }
  });
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("jaccard_pairs", TORCH_BOX(&snnet::jaccard_pairs));
  m.impl("blend_jaccard_", TORCH_BOX(&snnet::blend_jaccard_));
}
