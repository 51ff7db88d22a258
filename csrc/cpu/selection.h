// The largest entries of a row, in the order of common/select.h.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "vector.h"

namespace snnet {

// Buffers of one thread.
struct SelectionScratch {
  std::vector<Entry> entries;
  std::vector<float> maxima;
  std::vector<uint64_t> keys;
};

// Leaves the k largest of scratch.keys in it, falling.
inline void keep_largest(std::vector<uint64_t>& keys, int64_t k) {
  if (k < static_cast<int64_t>(keys.size())) {
    std::nth_element(keys.begin(), keys.begin() + k, keys.end(), std::greater<>());
    keys.resize(k);
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
}

// The k largest entries of row[0, n) as falling keys in scratch.keys; NaN is above everything.
//
// The row is split into groups: the k-th largest of their maxima is a lower bound of the k-th largest entry
// that few other entries reach, so two passes over the row leave little to sort.
inline const std::vector<uint64_t>& select_largest(const float* row, int64_t n, int64_t k,
                                                   SelectionScratch& scratch) {
  constexpr int64_t kFewestGroups = 64;
  k = std::min(k, n);
  scratch.keys.clear();
  if (k == 0) return scratch.keys;
  int64_t groups = kFewestGroups;
  while (groups < 3 * k) groups *= 2;
  if (2 * groups <= n) {
    scratch.maxima.resize(groups);
    if (!vector_kernels().group_maxima(row, n, groups, scratch.maxima.data())) {
      std::nth_element(scratch.maxima.begin(), scratch.maxima.begin() + (k - 1), scratch.maxima.end(),
                       std::greater<>());
      scratch.entries.resize(n);
      const int64_t found =
          vector_kernels().collect_from(row, n, scratch.maxima[k - 1], 0, scratch.entries.data());
      for (int64_t e = 0; e < found; ++e) {
        scratch.keys.push_back(selection_key(scratch.entries[e].value, scratch.entries[e].column));
      }
      keep_largest(scratch.keys, k);
      return scratch.keys;
    }
  }
  for (int64_t l = 0; l < n; ++l) scratch.keys.push_back(selection_key(row[l], static_cast<int32_t>(l)));
  keep_largest(scratch.keys, k);
  return scratch.keys;
}

}  // namespace snnet
