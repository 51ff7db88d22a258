// k-reciprocal re-ranking (Zhong et al., CVPR 2017) without a matrix of all pairs. The definition stands in
// snnet/retrieval/reranking.py, in words and in numpy; here each of its steps is done with sparse rows.

#include "reranking.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "sparse_rows.h"

namespace py = pybind11;

namespace {

using snnet::Columns;
using snnet::Floats;
using snnet::SparseArrays;
using snnet::SparsePart;
using snnet::SparseView;

// Similarities looked at together: only where one of them is above the threshold, each by itself.
constexpr std::int64_t kChunk = 64;
// Columns that one thread takes at a time, and rows.
constexpr std::int64_t kColumns = 1024;

// The `count` most similar images of each image, equal ones by rising index, and its lowest similarity.
class NearestRows {
 public:
  NearestRows(std::int64_t images, std::int64_t count)
      : images_(images),
        count_(count),
        indices_(images * count, -1),
        values_(images * count, -std::numeric_limits<float>::infinity()),
        thresholds_(images, -std::numeric_limits<float>::infinity()),
        lowest_(images, std::numeric_limits<float>::infinity()) {
    if (count < 1 || count > images || images > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("needs 1 <= count <= images < 2^31");
    }
  }

  // similarity: of the images first, first + 1, ... with all from `first` on; symmetric, so each entry serves
  // two rows. Blocks come in order, hence every image meets the others by rising index.
  void merge(const Floats& similarity, std::int64_t first, std::int64_t threads) {
    if (similarity.ndim() != 2 || first != next_ || similarity.shape(1) != images_ - first ||
        similarity.shape(0) > similarity.shape(1)) {
      throw std::invalid_argument("blocks must come in order and reach from the diagonal to the last image");
    }
    const float* block = similarity.data();
    const std::int64_t rows = similarity.shape(0);
    const std::int64_t width = images_ - first;
    next_ += rows;
    py::gil_scoped_release release;
    snnet::for_each_item(rows, threads, [&](std::int64_t row, std::int64_t) {
      merge_row(block + row * width, first, width, first + row);
    });
    const std::int64_t chunks = (width - rows + kColumns - 1) / kColumns;
    snnet::for_each_item(chunks, threads, [&](std::int64_t chunk, std::int64_t) {
      const std::int64_t begin = rows + chunk * kColumns;
      const std::int64_t end = std::min(begin + kColumns, width);
      for (std::int64_t row = 0; row < rows; ++row) {
        merge_columns(block + row * width, begin, end, first, static_cast<std::int32_t>(first + row));
      }
    });
  }

  // Indices int32 [images, count] and lowest float32 [images].
  std::pair<Columns, Floats> result() const {
    if (next_ != images_) throw std::invalid_argument("not all images have been merged");
    return {Columns({images_, count_}, indices_.data()), Floats(images_, lowest_.data())};
  }

 private:
  // An image that comes later is behind those of equal similarity.
  void insert(std::int64_t image, float value, std::int32_t index) {
    float* values = values_.data() + image * count_;
    std::int32_t* indices = indices_.data() + image * count_;
    std::int64_t place = count_ - 1;
    for (; place > 0 && values[place - 1] < value; --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = value;
    indices[place] = index;
    thresholds_[image] = values[count_ - 1];
  }

  void merge_row(const float* row, std::int64_t first, std::int64_t width, std::int64_t image) {
    float lowest[kChunk];
    std::fill_n(lowest, kChunk, lowest_[image]);
    std::int64_t begin = 0;
    for (; begin + kChunk <= width; begin += kChunk) {
      const float threshold = thresholds_[image];
      std::int32_t above = 0;
      for (std::int64_t i = 0; i < kChunk; ++i) {
        const float value = row[begin + i];
        above += value > threshold;
        lowest[i] = value < lowest[i] ? value : lowest[i];
      }
      if (above > 0) insert_above(row, begin, begin + kChunk, first, image);
    }
    insert_above(row, begin, width, first, image);
    lowest_[image] = std::min(*std::min_element(lowest, lowest + kChunk),
                              begin < width ? *std::min_element(row + begin, row + width) : lowest[0]);
  }

  void insert_above(const float* row, std::int64_t begin, std::int64_t end, std::int64_t first,
                    std::int64_t image) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (row[i] > thresholds_[image]) insert(image, row[i], static_cast<std::int32_t>(first + i));
    }
  }

  // The row of image `index`, seen from the images of its columns.
  void merge_columns(const float* row, std::int64_t begin, std::int64_t end, std::int64_t first,
                     std::int32_t index) {
    for (; begin < end; begin += kChunk) {
      const std::int64_t size = std::min(kChunk, end - begin);
      const float* values = row + begin;
      const float* thresholds = thresholds_.data() + first + begin;
      float* lowest = lowest_.data() + first + begin;
      std::int32_t above = 0;
      for (std::int64_t i = 0; i < size; ++i) {
        above += values[i] > thresholds[i];
        lowest[i] = values[i] < lowest[i] ? values[i] : lowest[i];
      }
      if (above == 0) continue;
      for (std::int64_t i = 0; i < size; ++i) {
        if (values[i] > thresholds[i]) insert(first + begin + i, values[i], index);
      }
    }
  }

  std::int64_t images_;
  std::int64_t count_;
  std::int64_t next_ = 0;  // the first image whose block is still to come
  std::vector<std::int32_t> indices_;
  std::vector<float> values_;
  std::vector<float> thresholds_;  // the last of each image's values_, side by side
  std::vector<float> lowest_;
};

// The nearest images of each image, a prefix of each row of an int32 [images, listed] array.
struct NearestView {
  const std::int32_t* indices;
  std::int64_t images;
  std::int64_t listed;

  const std::int32_t* row(std::int64_t image) const { return indices + image * listed; }

  bool has(std::int64_t image, std::int64_t size, std::int32_t other) const {
    return std::find(row(image), row(image) + size, other) != row(image) + size;
  }

  // Appends those of the first `size` neighbours of `image` that have it among their own first `size`.
  void append_reciprocal(std::int64_t image, std::int64_t size, std::vector<std::int32_t>& found) const {
    for (std::int64_t i = 0; i < size; ++i) {
      if (has(row(image)[i], size, static_cast<std::int32_t>(image))) found.push_back(row(image)[i]);
    }
  }
};

NearestView view_nearest(const Columns& nearest, std::int64_t prefix) {
  if (nearest.ndim() != 2 || prefix < 1 || prefix > nearest.shape(1)) {
    throw std::invalid_argument("nearest must be [images, listed], with a prefix of 1 to listed in use");
  }
  const NearestView view{nearest.data(), nearest.shape(0), nearest.shape(1)};
  for (std::int64_t i = 0; i < nearest.size(); ++i) {
    if (view.indices[i] < 0 || view.indices[i] >= view.images) {
      throw std::invalid_argument("nearest: an index is outside the images");
    }
  }
  return view;
}

float dot(const float* a, const float* b, std::int64_t size) {
  constexpr std::int64_t kLanes = 16;  // independent sums, which a vectoriser may keep side by side
  float sums[kLanes] = {};
  std::int64_t begin = 0;
  for (; begin + kLanes <= size; begin += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) sums[i] += a[begin + i] * b[begin + i];
  }
  float sum = 0;
  for (const float lane : sums) sum += lane;
  for (; begin < size; ++begin) sum += a[begin] * b[begin];
  return sum;
}

// The squared Euclidean distance of unit vectors over the largest one of the row; 0 where all are 0.
float relative_distance(float similarity, float lowest) {
  const float largest = 2 - 2 * lowest;
  return largest > 0 ? (2 - 2 * similarity) / largest : 0;
}

SparseArrays reciprocal_weights(const Columns& nearest, std::int64_t neighbors, std::int64_t half,
                                const Floats& features, const Floats& lowest, std::int64_t threads) {
  const NearestView view = view_nearest(nearest, std::max(neighbors, half));
  if (neighbors < 1 || half < 1) throw std::invalid_argument("neighbors and half must be at least 1");
  if (features.ndim() != 2 || features.shape(0) != view.images || lowest.ndim() != 1 ||
      lowest.shape(0) != view.images) {
    throw std::invalid_argument("features must be [images, d] and lowest [images]");
  }
  const std::int64_t dimensions = features.shape(1);

  // The half sets of all images: each serves as many rows as count it as reciprocal.
  std::vector<std::int64_t> half_starts(view.images + 1, 0);
  std::vector<std::int32_t> half_sets;
  for (std::int64_t image = 0; image < view.images; ++image) {
    view.append_reciprocal(image, half, half_sets);
    half_starts[image + 1] = half_sets.size();
  }

  struct Scratch {
    std::vector<std::int32_t> reciprocal;
    std::vector<std::int32_t> expanded;
    std::vector<double> weights;
    std::vector<std::int64_t> listed_for;  // the last image that listed this one as reciprocal
  };
  const Scratch fresh{{}, {}, {}, std::vector<std::int64_t>(view.images, -1)};
  const float* feature = features.data();
  const auto append = [&](std::int64_t image, Scratch& own, SparsePart& part) {
    own.reciprocal.clear();
    view.append_reciprocal(image, neighbors, own.reciprocal);
    for (const std::int32_t other : own.reciprocal) own.listed_for[other] = image;
    own.expanded = own.reciprocal;
    for (const std::int32_t other : own.reciprocal) {
      const auto begin = half_sets.begin() + half_starts[other];
      const auto end = half_sets.begin() + half_starts[other + 1];
      const auto listed = [&](std::int32_t i) { return own.listed_for[i] == image; };
      const std::int64_t shared = std::count_if(begin, end, listed);
      if (3 * shared > 2 * (end - begin)) own.expanded.insert(own.expanded.end(), begin, end);
    }
    std::sort(own.expanded.begin(), own.expanded.end());
    own.expanded.erase(std::unique(own.expanded.begin(), own.expanded.end()), own.expanded.end());
    own.weights.clear();
    double sum = 0;
    for (const std::int32_t other : own.expanded) {
      const float similarity = dot(feature + image * dimensions, feature + other * dimensions, dimensions);
      const double distance = relative_distance(similarity, lowest.data()[image]);
      own.weights.push_back(std::exp(-distance));
      sum += own.weights.back();
    }
    part.columns.insert(part.columns.end(), own.expanded.begin(), own.expanded.end());
    for (const double weight : own.weights) part.values.push_back(static_cast<float>(weight / sum));
  };
  return snnet::build_rows(view.images, threads, fresh, append);
}

SparseArrays expand_query(const Columns& nearest, std::int64_t neighbors, const SparseArrays& code,
                          std::int64_t threads) {
  const NearestView view = view_nearest(nearest, neighbors);
  const SparseView rows = snnet::view_sparse(code, view.images, view.images);
  struct Scratch {
    std::vector<float> sums;
    std::vector<std::int32_t> columns;
  };
  const Scratch fresh{std::vector<float>(view.images, 0.0F), {}};
  const auto append = [&](std::int64_t image, Scratch& own, SparsePart& part) {
    own.columns.clear();
    for (std::int64_t i = 0; i < neighbors; ++i) {
      const std::int64_t other = view.row(image)[i];
      for (std::int64_t entry = rows.starts[other]; entry < rows.starts[other + 1]; ++entry) {
        float& sum = own.sums[rows.columns[entry]];
        if (sum == 0) own.columns.push_back(rows.columns[entry]);
        sum += rows.values[entry];
      }
    }
    std::sort(own.columns.begin(), own.columns.end());
    for (const std::int32_t column : own.columns) {
      part.columns.push_back(column);
      part.values.push_back(own.sums[column] / static_cast<float>(neighbors));
      own.sums[column] = 0;
    }
  };
  return snnet::build_rows(view.images, threads, fresh, append);
}

// The codes of the queries by row, and those of the gallery by column.
class JaccardIndex {
 public:
  // code: a row an image, those of the queries first.
  JaccardIndex(const SparseArrays& code, std::int64_t queries) {
    const std::int64_t images = std::get<0>(code).size() - 1;
    const SparseView all = snnet::view_sparse(code, images, images);
    if (queries < 0 || queries > images) throw std::invalid_argument("queries must be 0 to images");
    gallery_ = images - queries;
    const std::int64_t split = all.starts[queries];
    starts_.assign(all.starts, all.starts + queries + 1);
    columns_.assign(all.columns, all.columns + split);
    values_.assign(all.values, all.values + split);

    const std::int64_t entries = all.starts[images] - split;
    column_starts_.assign(images + 1, 0);
    for (std::int64_t i = 0; i < entries; ++i) ++column_starts_[all.columns[split + i] + 1];
    for (std::int64_t i = 0; i < images; ++i) column_starts_[i + 1] += column_starts_[i];
    rows_.resize(entries);
    row_values_.resize(entries);
    std::vector<std::int64_t> next(column_starts_.begin(), column_starts_.end() - 1);
    for (std::int64_t row = 0; row < gallery_; ++row) {
      for (std::int64_t entry = all.starts[queries + row]; entry < all.starts[queries + row + 1]; ++entry) {
        const std::int64_t place = next[all.columns[entry]]++;
        rows_[place] = static_cast<std::int32_t>(row);
        row_values_[place] = all.values[entry];
      }
    }
  }

  // Overwrites the similarities [queries, gallery] with the final distances.
  void blend(Floats similarity, const Floats& lowest, float original_weight, std::int64_t threads) const {
    const std::int64_t queries = starts_.size() - 1;
    if (similarity.ndim() != 2 || similarity.shape(0) != queries || similarity.shape(1) != gallery_ ||
        lowest.ndim() != 1 || lowest.size() < queries) {
      throw std::invalid_argument("similarity must be [queries, gallery], lowest [images]");
    }
    threads = std::max<std::int64_t>(1, std::min(threads, queries));
    std::vector<std::vector<float>> overlaps(threads, std::vector<float>(gallery_));
    float* distances = similarity.mutable_data();
    py::gil_scoped_release release;
    snnet::for_each_item(queries, threads, [&](std::int64_t query, std::int64_t thread) {
      blend_query(query, lowest.data()[query], original_weight, overlaps[thread], distances + query * gallery_);
    });
  }

 private:
  void blend_query(std::int64_t query, float lowest, float original_weight, std::vector<float>& overlap,
                   float* distances) const {
    std::fill(overlap.begin(), overlap.end(), 0.0F);
    for (std::int64_t entry = starts_[query]; entry < starts_[query + 1]; ++entry) {
      const std::int64_t column = columns_[entry];
      const float value = values_[entry];
      for (std::int64_t i = column_starts_[column]; i < column_starts_[column + 1]; ++i) {
        overlap[rows_[i]] += row_values_[i] < value ? row_values_[i] : value;
      }
    }
    for (std::int64_t i = 0; i < gallery_; ++i) {
      const float jaccard = 1 - overlap[i] / (2 - overlap[i]);
      const float original = relative_distance(distances[i], lowest);
      distances[i] = (1 - original_weight) * jaccard + original_weight * original;
    }
  }

  std::int64_t gallery_;
  std::vector<std::int64_t> starts_;  // of the queries' rows
  std::vector<std::int32_t> columns_;
  std::vector<float> values_;
  std::vector<std::int64_t> column_starts_;  // of the gallery's columns
  std::vector<std::int32_t> rows_;           // gallery positions, rising within a column
  std::vector<float> row_values_;
};

}  // namespace

void add_reranking(py::module_& module) {
  py::class_<NearestRows>(module, "NearestRows")
      .def(py::init<std::int64_t, std::int64_t>(), py::arg("images"), py::arg("count"))
      .def("merge", &NearestRows::merge, py::arg("similarity").noconvert(), py::arg("first"),
           py::arg("threads"))
      .def("result", &NearestRows::result);
  module.def("reciprocal_weights", &reciprocal_weights, py::arg("nearest").noconvert(),
             py::arg("neighbors"), py::arg("half"), py::arg("features").noconvert(),
             py::arg("lowest").noconvert(), py::arg("threads"));
  module.def("expand_query", &expand_query, py::arg("nearest").noconvert(), py::arg("neighbors"),
             py::arg("code"), py::arg("threads"));
  py::class_<JaccardIndex>(module, "JaccardIndex")
      .def(py::init<const SparseArrays&, std::int64_t>(), py::arg("code"), py::arg("queries"))
      .def("blend", &JaccardIndex::blend, py::arg("similarity").noconvert(), py::arg("lowest").noconvert(),
           py::arg("original_weight"), py::arg("threads"));
}
