// The row loops for AVX2: everything after the pragma is compiled for it, so nothing is included after it.
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define SNNET_HAS_PASSING
namespace snnet {
namespace {

// Bit i is set where block[i] passes, i < 64.
template <bool inclusive>
SNNET_INLINE uint64_t passing(const float* block, float bar) {
  const __m256 bars = _mm256_set1_ps(bar);
  uint64_t mask = 0;
  for (int i = 0; i < 8; ++i) {
    const __m256 pass =
        _mm256_cmp_ps(_mm256_loadu_ps(block + 8 * i), bars, inclusive ? _CMP_GE_OQ : _CMP_GT_OQ);
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(pass))) << 8 * i;
  }
  return mask;
}

}  // namespace
#include "vector.inl"
}  // namespace snnet
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
