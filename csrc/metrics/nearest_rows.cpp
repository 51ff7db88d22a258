// The neighbours that re-ranking compares, gathered from blocks of the product that it needs for other things too.

#include "nearest_rows.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "parallel.h"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Columns = py::array_t<std::int32_t, py::array::c_style>;

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

}  // namespace

void add_nearest_rows(py::module_& module) {
  py::class_<NearestRows>(module, "NearestRows")
      .def(py::init<std::int64_t, std::int64_t>(), py::arg("images"), py::arg("count"))
      .def("merge", &NearestRows::merge, py::arg("similarity").noconvert(), py::arg("first"),
           py::arg("threads"))
      .def("result", &NearestRows::result);
}
