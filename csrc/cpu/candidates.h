// Label prediction in three stages: candidates of a row, the rank of each by counting, the decision.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/walk.h"
#include "vector.h"

namespace snnet {

struct PredictionOptions {
  float threshold;
  int64_t min_rank;
  bool strict;
};

// Sets the labels [label_bytes(n)] (all 0 before) of image `own` from its ordered candidates.
inline void decide_labels(const Entry* candidates, int64_t count, int64_t first_inconsistent, int64_t own,
                          bool strict, uint8_t* labels) {
  const int64_t positives = positive_candidates(count, first_inconsistent, strict);
  for (int64_t j = 0; j < positives; ++j) set_bit(labels, candidates[j].column);
  set_bit(labels, own);
}

// j*: the first position whose candidate ranks the anchor behind more than k images, else the count.
inline int64_t first_inconsistent_candidate(const float* cache, int64_t n, const Entry* candidates, int64_t count,
                                            const PredictionOptions& options) {
  const int64_t rank = largest_consistent_rank(count, options.min_rank, options.strict);
  if (!needs_walk(count, options.strict) || rank >= n - 1) return count;  // the anchor itself never counts
  for (int64_t j = 0; j < count; ++j) {
    const float* row = cache + static_cast<int64_t>(candidates[j].column) * n;
    if (vector_kernels().count_above(row, n, row[candidates[0].column], rank) > rank) return j;
  }
  return count;
}

// The labels of one sample from its similarity row and the cache; entries has room for n.
inline void predict_row(const float* row, const float* cache, int64_t n, int64_t own,
                        const PredictionOptions& options, std::vector<Entry>& entries, uint8_t* labels) {
  const int64_t count = vector_kernels().collect_above(row, n, options.threshold, 0, entries.data());
  std::sort(entries.begin(), entries.begin() + count,
            [](const Entry& a, const Entry& b) { return comes_before(a, b); });
  const int64_t first = first_inconsistent_candidate(cache, n, entries.data(), count, options);
  decide_labels(entries.data(), count, first, own, options.strict, labels);
}

}  // namespace snnet
