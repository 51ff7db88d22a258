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
  std::vector<uint32_t> ordered;
  std::vector<uint64_t> keys;
};

// Leaves the k largest of keys in it; those from position `first_sorted` on are falling, those before are larger.
inline void keep_largest(std::vector<uint64_t>& keys, int64_t k, int64_t first_sorted = 0) {
  if (k < static_cast<int64_t>(keys.size())) {
    std::nth_element(keys.begin(), keys.begin() + k, keys.end(), std::greater<>());
    keys.resize(k);
  }
  if (first_sorted >= static_cast<int64_t>(keys.size())) return;
  if (first_sorted > 0) std::nth_element(keys.begin(), keys.begin() + first_sorted, keys.end(), std::greater<>());
  std::sort(keys.begin() + first_sorted, keys.end(), std::greater<>());
}

// The k largest entries of row[0, n) as keys in scratch.keys, ordered as by keep_largest; NaN is above everything.
//
// The row is split into groups: the k-th largest of their maxima is a lower bound of the k-th largest entry
// that few other entries reach, so two passes over the row leave little to sort.
inline const std::vector<uint64_t>& select_largest(const float* row, int64_t n, int64_t k,
                                                   SelectionScratch& scratch, int64_t first_sorted = 0) {
  constexpr int64_t kFewestGroups = 64;
  k = std::min(k, n);
  scratch.keys.clear();
  if (k == 0) return scratch.keys;
  int64_t groups = kFewestGroups;
  while (groups < 3 * k) groups *= 2;
  if (2 * groups <= n) {
    const VectorKernels& kernels = vector_kernels();
    scratch.maxima.resize(groups);
    scratch.ordered.resize(groups);
    if (!kernels.group_maxima(row, n, groups, scratch.maxima.data())) {
      const float bar = kernels.bar_of_largest(scratch.maxima.data(), groups, k, scratch.ordered.data());
      scratch.entries.resize(n);
      const int64_t found = kernels.collect_from(row, n, bar, 0, scratch.entries.data());
      for (int64_t e = 0; e < found; ++e) {
        scratch.keys.push_back(selection_key(scratch.entries[e].value, scratch.entries[e].column));
      }
      keep_largest(scratch.keys, k, first_sorted);
      return scratch.keys;
    }
  }
  for (int64_t l = 0; l < n; ++l) scratch.keys.push_back(selection_key(row[l], static_cast<int32_t>(l)));
  keep_largest(scratch.keys, k, first_sorted);
  return scratch.keys;
}

}  // namespace snnet
