// Sparse matrices by rows, as threads make them.
#pragma once

#include <algorithm>
#include <atomic>
#include <optional>
#include <span>
#include <vector>

#include "../common/select.h"
#include "checks.h"

namespace snnet {

// A matrix of n rows. They stay in the parts in which threads have made them.
class SparseRows {
 public:
  // append(row, scratch of the thread, entries) puts the entries of a row at the end of `entries`.
  template <class Scratch, class Append>
  SparseRows(int64_t n, const Scratch& fresh, const Append& append) : n_(n), parts_((n + kRows - 1) / kRows) {
    std::atomic<std::size_t> next = 0;
    torch::stable::parallel_for(0, kMostThreads, 1, [&](int64_t, int64_t) {
      std::optional<Scratch> scratch;
      for (std::size_t p = next++; p < parts_.size(); p = next++) {  // some parts take longer than others
        if (!scratch) scratch.emplace(fresh);
        const int64_t first = static_cast<int64_t>(p) * kRows, last = std::min(n, first + kRows);
        Part& part = parts_[p];
        for (int64_t row = first; row < last; ++row) {
          append(row, *scratch, part.entries);
          part.ends[row - first + 1] = static_cast<int64_t>(part.entries.size());
        }
        part.entries.shrink_to_fit();
      }
    });
  }

  int64_t n() const { return n_; }

  int64_t size() const {
    int64_t entries = 0;
    for (const Part& part : parts_) entries += static_cast<int64_t>(part.entries.size());
    return entries;
  }

  std::span<const Entry> row(int64_t i) const {
    const Part& part = parts_[i / kRows];
    const int64_t* end = part.ends + i % kRows;
    return {part.entries.data() + end[0], part.entries.data() + end[1]};
  }

 private:
  static constexpr int64_t kRows = 128;  // of a part: enough that handing one out costs nothing
  static constexpr int64_t kMostThreads = 1024;

  struct Part {
    std::vector<Entry> entries;
    int64_t ends[kRows + 1] = {};  // of the rows, behind a 0
  };

  int64_t n_;
  std::vector<Part> parts_;
};

}  // namespace snnet
