// The momentum update of rows of the exemplar memory: m' = normalize(alpha m + (1 - alpha) f).
#pragma once

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "../common/apart.h"
#include "../common/recurrence.h"
#include "checks.h"
#include "prefetch.h"
#include "products.h"
#include "vector.h"

namespace snnet {

// What an update of rows reads and writes; index [B], features [B, d].
struct MemoryRows {
  Tensor tensor;  // the memory
  float* memory;  // [n, d]
  const int64_t* index;
  const float* features;
  int64_t d;
  float alpha, beta;
};

using Round = std::vector<int64_t>;  // batch entries of distinct index

// Batch entries split so that no index comes twice in a part, earlier entries in earlier parts.
inline std::vector<Round> occurrence_rounds(const int64_t* index, int64_t batch_size) {
  std::vector<Round> rounds;
  std::unordered_map<int64_t, std::size_t> seen;
  for (int64_t b = 0; b < batch_size; ++b) {
    const std::size_t turn = seen[index[b]]++;
    if (turn == rounds.size()) rounds.emplace_back();
    rounds[turn].push_back(b);
  }
  return rounds;
}

// out = (alpha before + beta live) / length. Returns the length: if that is not finite, the row is not to be written.
inline float blend_row(const VectorKernels& kernels, const float* before, const float* live, float alpha, float beta,
                       int64_t d, float* out) {
  kernels.blend(out, before, live, alpha, beta, d);
  const float exact = static_cast<float>(std::sqrt(kernels.dot(out, out, d)));
  const float length = exact < kSmallestLength ? kSmallestLength : exact;
  kernels.divide(out, length, d);
  return length;
}

// The rows of a round that have moved [r, d], and their lengths before the division.
struct Blended {
  Tensor rows;
  std::vector<float> lengths;
};

// Blends and renormalises the memory rows of a round. Entries whose row would not be finite are taken out of the
// round: nothing is written for them.
inline Blended blend_rows(const MemoryRows& rows, Round& round) {
  const int64_t count = static_cast<int64_t>(round.size()), d = rows.d;
  std::vector<float> lengths(round.size());
  Tensor moved = empty_floats(rows.tensor, count, d);
  float* blended = floats(moved);
  const VectorKernels& kernels = vector_kernels();
  torch::stable::parallel_for(0, count, grain(8 * d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (r + 1 < end) prefetch(rows.memory + rows.index[round[r + 1]] * d, d * sizeof(float));
      if (r + 1 < end) prefetch(rows.features + round[r + 1] * d, d * sizeof(float));
      lengths[r] = blend_row(kernels, rows.memory + rows.index[round[r]] * d, rows.features + round[r] * d, rows.alpha,
                             rows.beta, d, blended + r * d);
      if (is_finite(lengths[r])) std::copy_n(blended + r * d, d, rows.memory + rows.index[round[r]] * d);
    }
  });
  int64_t written = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (!is_finite(lengths[r])) continue;
    if (written < r) std::copy_n(blended + r * d, d, blended + written * d);
    round[written] = round[r];
    lengths[written++] = lengths[r];
  }
  round.resize(written);
  lengths.resize(written);
  if (written < count) moved = torch::stable::narrow(moved, 0, 0, written);
  return {moved, lengths};
}

inline float checked_momentum(const Tensor& momentum) {
  SNNET_CHECK(momentum.is_cpu() && momentum.scalar_type() == ScalarType::Float && momentum.dim() == 0,
                  "momentum must be a 0-d float32 tensor on the cpu");
  const float alpha = *momentum.const_data_ptr<float>();
  SNNET_CHECK(alpha >= 0.0f && alpha <= 1.0f, "momentum must lie in [0, 1], got ", alpha);
  return alpha;
}

// What an update is asked for; `rows` point into the tensors beside it.
struct CheckedUpdate {
  Tensor positions, live;
  int64_t n, batch_size;
  MemoryRows rows;
};

// `written`: what is written beside the memory.
template <class... Written>
CheckedUpdate checked_update(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum,
                             const Written&... written) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1);
  check_storage(memory, "memory", ScalarType::Float, n, d);
  const Tensor positions = apart_from(checked_index(index, n), memory, written...);
  check_matrix(features, "features", ScalarType::Float, positions.size(0), d);
  const float alpha = checked_momentum(momentum);
  const Tensor live = apart_from(features, memory, written...);
  return {positions, live, n, positions.size(0),
          {memory, floats(memory), positions.const_data_ptr<int64_t>(), const_floats(live), d, alpha, 1.0f - alpha}};
}

}  // namespace snnet
