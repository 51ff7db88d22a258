// The row loops for the instruction set that every processor of the architecture has.
#include "../common/recurrence.h"
#include "vector.h"

namespace snnet {
namespace {

struct Lanes {
  static constexpr int64_t width = 4;
  static constexpr int most_sums = 12;
  static constexpr int64_t most_vectors = 2;
  typedef float Vector __attribute__((vector_size(4 * sizeof(float))));
  SNNET_INLINE static Vector load(const float* from) {
    Vector values;
    __builtin_memcpy(&values, from, sizeof values);
    return values;
  }
  SNNET_INLINE static void store(float* to, Vector values) { __builtin_memcpy(to, &values, sizeof values); }
  SNNET_INLINE static Vector broadcast(float value) { return Vector{value, value, value, value}; }
  SNNET_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  // Rounded once where the processor has an instruction for it.
  SNNET_INLINE static Vector multiply_add(Vector a, Vector b, Vector sum) {
#if defined(__FP_FAST_FMAF)
    for (int i = 0; i < width; ++i) sum[i] = __builtin_fmaf(a[i], b[i], sum[i]);
    return sum;
#else
    return a * b + sum;
#endif
  }

  // Bit i is set where block[i] passes, i < 64.
  template <bool inclusive>
  SNNET_INLINE static uint64_t passing(const float* block, float bar) {
    int any = 0;
    for (int i = 0; i < 64; ++i) any |= inclusive ? block[i] >= bar : block[i] > bar;
    if (!any) return 0;
    uint64_t mask = 0;
    for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(inclusive ? block[i] >= bar : block[i] > bar) << i;
    return mask;
  }
};

}  // namespace
#include "panels.inl"
#include "vector.inl"
const VectorKernels baseline_kernels = kKernels;
}  // namespace snnet
