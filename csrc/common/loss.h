// What all computations of the mutual label loss have in common: the checks of its options, and the number of hard
// negatives.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bits.h"
#include "raise.h"

namespace snnet {

constexpr int kMostSets = 3;  // label sets of a loss

// How many of the negatives of a row are hard.
SNNET_INLINE int64_t hard_negatives(int64_t negatives, double ratio) {
  const auto wanted = static_cast<int64_t>(ratio * static_cast<double>(negatives));
  const int64_t at_least_one = wanted < 1 ? 1 : wanted;
  return at_least_one < negatives ? at_least_one : negatives;
}

// Checks the options of a loss with so many label sets, and returns the sum of their weights.
inline double checked_weight_sum(std::size_t sets, const std::vector<double>& weights, double delta, double ratio) {
  SNNET_CHECK(sets >= 1 && sets <= kMostSets && sets == weights.size(),
              "labels and weights must have the same length of 1 to 3, got ", sets, " and ", weights.size());
  SNNET_CHECK(std::isfinite(delta) && delta >= 0, "delta must be finite and not negative, got ", delta);
  SNNET_CHECK(ratio >= 0 && ratio <= 1, "hard_negative_ratio must lie in [0, 1], got ", ratio);
  double sum = 0;
  for (double weight : weights) {
    SNNET_CHECK(std::isfinite(weight) && weight >= 0, "weights must be finite and not negative, got ", weight);
    sum += weight;
  }
  SNNET_CHECK(sum > 0, "weights must not all be zero");
  return sum;
}

}  // namespace snnet
