// The row loops for AVX2: everything after the pragma is compiled for it, so nothing is included after it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "../common/recurrence.h"
#include "vector.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
namespace snnet {
namespace {

struct Lanes {
  using Vector = __m256;
  static constexpr int64_t width = 8;
  static constexpr int most_sums = 12;  // of 16 registers
  static constexpr int64_t most_vectors = 2;
  SNNET_INLINE static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  SNNET_INLINE static void store(float* to, Vector values) { _mm256_storeu_ps(to, values); }
  SNNET_INLINE static Vector broadcast(float value) { return _mm256_set1_ps(value); }
  SNNET_INLINE static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  SNNET_INLINE static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }

  // Bit i is set where block[i] passes, i < 64.
  template <bool inclusive>
  SNNET_INLINE static uint64_t passing(const float* block, float bar) {
    const __m256 bars = _mm256_set1_ps(bar);
    uint64_t mask = 0;
    for (int i = 0; i < 8; ++i) {
      const __m256 pass =
          _mm256_cmp_ps(_mm256_loadu_ps(block + 8 * i), bars, inclusive ? _CMP_GE_OQ : _CMP_GT_OQ);
      mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(pass))) << 8 * i;
    }
    return mask;
  }
};

}  // namespace
#include "panels.inl"
#include "vector.inl"
const VectorKernels avx2_kernels = kKernels;
}  // namespace snnet
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
