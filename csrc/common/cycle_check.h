// The cycle check of label prediction: which samples are checked, what a list tells of a candidate, and which labels
// follow.
#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"
#include "raise.h"
#include "select.h"

namespace snnet {

struct PredictionOptions {
  float threshold;
  int64_t min_rank;
};

inline PredictionOptions checked_prediction(double threshold, int64_t min_rank) {
  SNNET_CHECK(std::isfinite(threshold), "threshold must be finite, got ", threshold);
  SNNET_CHECK(min_rank >= 0, "min_rank must be at least 0, got ", min_rank);
  return {static_cast<float>(threshold), min_rank};
}

// k: the rank up to which a candidate is cycle consistent.
SNNET_INLINE int64_t largest_consistent_rank(int64_t candidates, int64_t min_rank) {
  return candidates > min_rank ? candidates : min_rank;
}

// Whether the candidates of a sample are checked: up to two are positive whatever the check says, and no anchor has
// more than n - 1 images before it.
SNNET_INLINE bool needs_check(int64_t candidates, int64_t min_rank, int64_t n) {
  return candidates > 2 && largest_consistent_rank(candidates, min_rank) < n - 1;
}

// Of what several processes tell the smallest counts: all but one tell kElsewhere.
enum Verdict : int8_t { kConsistent, kInconsistent, kUntold, kElsewhere };

// What the list of a candidate p tells. `bar` is S[p, anchor] if p lists the anchor, else the floor of p. `above` is
// how many listed images are above it: if S[p, anchor] is at or above the floor, all that are more similar to p.
SNNET_INLINE Verdict list_verdict(int64_t above, int64_t rank, bool lists_anchor, float bar, float floor) {
  if (above > rank) return kInconsistent;
  return lists_anchor && bar >= floor ? kConsistent : kUntold;
}

// How many of the ordered candidates are positive, j* being the first inconsistent position.
SNNET_INLINE int64_t positive_candidates(int64_t candidates, int64_t first_inconsistent) {
  const int64_t positives = first_inconsistent > 2 ? first_inconsistent : 2;
  return positives < candidates ? positives : candidates;
}

// Sets the labels [label_bytes(n)] (all 0 before) of image `own` from its ordered candidates.
inline void decide_labels(const Entry* candidates, int64_t count, int64_t first_inconsistent, int64_t own,
                          uint8_t* labels) {
  const int64_t positives = positive_candidates(count, first_inconsistent);
  for (int64_t j = 0; j < positives; ++j) set_bit(labels, candidates[j].column);
  set_bit(labels, own);
}

// For unit vectors, and also if p and l are shorter: S[p,l] <= S[p,a] S[a,l] + sqrt(1 - S[p,a]²) sqrt(1 - S[a,l]²).
// So S[p,l] > S[p,a] > 0 needs S[a,l] above this. The slack covers rounding and lengths that are nearly 1.
SNNET_INLINE float lowest_counted_similarity(float bar) {
  constexpr float kSlack = 1e-3f;
  return bar > 0.0f ? 2.0f * bar * bar - 1.0f - kSlack : -__builtin_inff();
}

}  // namespace snnet
