// How many images are more similar to a candidate than its sample's anchor is, from tiles of products.
#pragma once

#include <vector>

#include "inquiry.h"
#include "vector.h"

namespace snnet {

constexpr double kUnitTolerance = 2e-5;  // of a squared length

// What is known of the lengths of the memory's rows.
struct RowLengths {
  int64_t head;             // dimensions of a row's first part
  std::vector<float> rest;  // length of the other part, a little too long
  bool all_short;           // none is longer than 1
  float slack;              // larger than the difference of two roundings of a product
};

RowLengths measure_rows(const Tensor& memory);

// A candidate p of a sample with anchor a whose rank #{l : S[p,l] > S[p,a]} is not known yet.
struct RankPair {
  int32_t sample;
  int32_t position;  // among the sample's candidates
  int32_t candidate;
  int32_t anchor;
  float bar;  // S[p,a]
  int32_t row;
  int64_t rank;  // up to which the candidate is consistent
  int64_t above, unsure;
};

// For each inconsistent pair the sample's entry of first_inconsistent is lowered to its position. Pairs behind that are
// passed over; the pairs come by rising position.
void walk_pairs(const Tensor& memory, const RowLengths& lengths, const std::vector<RankPair>& pairs,
                std::vector<int64_t>& first_inconsistent);

}  // namespace snnet
