// Label prediction in three stages: candidates of a row, the rank of each by counting, the decision.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/walk.h"
#include "cache_blocks.h"
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

// The similarity cache [n, n].
struct Cache {
  const float* values;
  int64_t n;
  CacheBlocks blocks;
};

// #{l : S[p, l] > S[p, anchor]}, or some number above limit as soon as it is known to be.
inline int64_t rank_of_anchor(const Cache& cache, int64_t p, int64_t anchor, int64_t limit) {
  const float* row = cache.values + p * cache.n;
  const float bar = row[anchor];
  if (!cache.blocks.hold_all_above(bar)) return vector_kernels().count_above(row, cache.n, bar, limit);
  return vector_kernels().count_in_blocks(row, cache.n, cache.blocks.row(p), bar, limit);
}

// j*: the first position whose candidate ranks the anchor behind more than k images, else the count.
inline int64_t first_inconsistent_candidate(const Cache& cache, const Entry* candidates, int64_t count,
                                            const PredictionOptions& options) {
  const int64_t rank = largest_consistent_rank(count, options.min_rank, options.strict);
  if (!needs_walk(count, options.strict) || rank >= cache.n - 1) return count;  // the anchor itself never counts
  for (int64_t j = 0; j < count; ++j) {
    if (rank_of_anchor(cache, candidates[j].column, candidates[0].column, rank) > rank) return j;
  }
  return count;
}

// The labels of one sample from its similarity row and the cache; entries has room for n.
inline void predict_row(const float* row, const Cache& cache, int64_t own, const PredictionOptions& options,
                        std::vector<Entry>& entries, uint8_t* labels) {
  const int64_t count = vector_kernels().collect_above(row, cache.n, options.threshold, 0, entries.data());
  std::sort(entries.begin(), entries.begin() + count,
            [](const Entry& a, const Entry& b) { return comes_before(a, b); });
  const int64_t first = first_inconsistent_candidate(cache, entries.data(), count, options);
  decide_labels(entries.data(), count, first, own, options.strict, labels);
}

}  // namespace snnet
