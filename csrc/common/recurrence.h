// Similarities after a row of the memory moved: m' = (alpha m + beta f) / length, beta = 1 - alpha.
#pragma once

#include "bits.h"

namespace snnet {

constexpr float kSmallestLength = 1e-12f;  // as in torch.nn.functional.normalize
constexpr float kSlack = 1e-5f;            // of a similarity: more than the rounding error of a bound

// A product that no compiler fuses with a sum: nvcc would, and not in all kernels alike.
SNNET_INLINE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// weight value, and 0 for a weight of 0 whatever the value: 0 NaN would live on.
SNNET_INLINE float scaled(float weight, float value) {
  return weight == 0.0f ? 0.0f : rounded_product(weight, value);
}

// A row whose length is not finite is not written.
SNNET_INLINE bool is_finite(float value) { return value - value == 0.0f; }

SNNET_INLINE float blended(float before, float live, float alpha, float beta) {
  return scaled(alpha, before) + rounded_product(beta, live);
}

// S'[i,l] for l outside the batch; also s[c,i] of a later entry c (before = s[c,i], live = G[c,b]).
SNNET_INLINE float blended_similarity(float before, float live, float alpha, float beta, float length) {
  return blended(before, live, alpha, beta) / length;
}

// Old error is multiplied by alpha / length: where that does not shrink it, products are taken afresh.
SNNET_INLINE bool error_grows(float length, float alpha) { return length <= alpha; }

}  // namespace snnet
