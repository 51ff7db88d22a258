// The row loops for AVX512: everything after the pragma is compiled for it, so nothing is included after it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "../common/recurrence.h"
#include "vector.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
namespace snnet {
namespace {

struct Lanes {
  using Vector = __m512;
  static constexpr int64_t width = 16;
  static constexpr int most_sums = 24;  // of 32 registers
  static constexpr int64_t most_vectors = 4;
  SNNET_INLINE static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  SNNET_INLINE static void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
  SNNET_INLINE static Vector broadcast(float value) { return _mm512_set1_ps(value); }
  SNNET_INLINE static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  SNNET_INLINE static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }

  // Bit i is set where block[i] passes, i < 64.
  template <bool inclusive>
  SNNET_INLINE static uint64_t passing(const float* block, float bar) {
    const __m512 bars = _mm512_set1_ps(bar);
    uint64_t mask = 0;
    for (int i = 0; i < 4; ++i) {
      const __mmask16 pass =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(block + 16 * i), bars, inclusive ? _CMP_GE_OQ : _CMP_GT_OQ);
      mask |= static_cast<uint64_t>(pass) << 16 * i;
    }
    return mask;
  }
};

}  // namespace
#include "panels.inl"
#include "vector.inl"
const VectorKernels avx512_kernels = kKernels;
}  // namespace snnet
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
