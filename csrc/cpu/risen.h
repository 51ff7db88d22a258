// Pairs that a momentum update has raised into neighbour lists.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/recurrence.h"
#include "vector.h"

namespace snnet {

constexpr float kResized = 1e-6f;  // a row whose length differed from 1 by more has moved, even without its feature

// A row that has moved: what it is now, s [n] of its feature before the update, its length before the division and the
// floor of its list.
struct MovedRow {
  const float *row, *similarity;
  float length, floor;
};

// The rows [n, d] that it may be listed with, and the weights of the update.
struct OtherRows {
  const float *memory, *floors;
  int64_t n, d;
  float alpha, beta;
};

// Calls use(row, product) for the other rows whose pair with the moved one is above one of their floors now, where
// is_taken(row) says nothing else looks after the pair. s tells which few these may be: the others were at or below both
// floors. `rising` is scratch with room for n.
template <class IsTaken, class Use>
void find_risen_pairs(const MovedRow& moved, const OtherRows& others, Entry* rising, const IsTaken& is_taken,
                      const Use& use) {
  int64_t found = 0;
  if (others.beta > 0.0f) {
    const float gain = (moved.length - others.alpha) / others.beta, slack = kSlack / others.beta;
    found = vector_kernels().collect_rising(moved.similarity, others.floors, others.n, moved.floor * gain - slack,
                                            gain, slack, rising);
  } else if (std::abs(moved.length - 1.0f) > kResized) {  // s tells nothing
    for (; found < others.n; ++found) rising[found].column = static_cast<int32_t>(found);
  }
  int64_t left = 0;
  for (int64_t e = 0; e < found; ++e) {
    if (!is_taken(rising[e].column)) rising[left++].column = rising[e].column;
  }
  constexpr int64_t kAtOnce = 16;
  for (int64_t first = 0; first < left; first += kAtOnce) {
    const int64_t size = std::min(kAtOnce, left - first);
    const float* rows[kAtOnce];
    float products[kAtOnce];
    for (int64_t j = 0; j < size; ++j) rows[j] = others.memory + int64_t{rising[first + j].column} * others.d;
    vector_kernels().dots(rows, size, moved.row, others.d, products);
    for (int64_t j = 0; j < size; ++j) {
      const int32_t l = rising[first + j].column;
      if (products[j] > moved.floor || products[j] > others.floors[l]) use(l, products[j]);
    }
  }
}

}  // namespace snnet
