// Label prediction in three stages: candidates of a row, the rank of each by counting, the decision.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/cycle_check.h"
#include "vector.h"

namespace snnet {

struct PredictionOptions {
  float threshold;
  int64_t min_rank;
};

// Sets the labels [label_bytes(n)] (all 0 before) of image `own` from its ordered candidates.
inline void decide_labels(const Entry* candidates, int64_t count, int64_t first_inconsistent, int64_t own,
                          uint8_t* labels) {
  const int64_t positives = positive_candidates(count, first_inconsistent);
  for (int64_t j = 0; j < positives; ++j) set_bit(labels, candidates[j].column);
  set_bit(labels, own);
}

// Whether the candidates of a sample are checked: up to two are positive whatever the check says, and no anchor has more
// than n - 1 images before it.
inline bool needs_check(int64_t count, const PredictionOptions& options, int64_t n) {
  return needs_check(count) && largest_consistent_rank(count, options.min_rank) < n - 1;
}

}  // namespace snnet
