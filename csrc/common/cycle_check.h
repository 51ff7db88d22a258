// The check of a sample's candidates, in their order, and what it decides.
#pragma once

#include <cstdint>

#include "bits.h"

namespace snnet {

// k: the rank up to which a candidate is cycle consistent.
SNNET_INLINE int64_t largest_consistent_rank(int64_t candidates, int64_t min_rank) {
  return candidates > min_rank ? candidates : min_rank;
}

// Up to two candidates are positive whatever the check says.
SNNET_INLINE bool needs_check(int64_t candidates) { return candidates > 2; }

// How many of the ordered candidates are positive, j* being the first inconsistent position.
SNNET_INLINE int64_t positive_candidates(int64_t candidates, int64_t first_inconsistent) {
  const int64_t positives = first_inconsistent > 2 ? first_inconsistent : 2;
  return positives < candidates ? positives : candidates;
}

// Unit vectors, and shorter ones for p and l: S[p,l] <= S[p,a] S[a,l] + sqrt(1 - S[p,a]²) sqrt(1 - S[a,l]²),
// so S[p,l] > S[p,a] > 0 needs S[a,l] above this. The slack covers rounding and lengths that are nearly 1.
SNNET_INLINE float lowest_counted_similarity(float bar) {
  constexpr float kSlack = 1e-3f;
  return bar > 0.0f ? 2.0f * bar * bar - 1.0f - kSlack : -__builtin_inff();
}

}  // namespace snnet
