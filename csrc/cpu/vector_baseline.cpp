// The row loops for the instruction set that every processor of the architecture has.
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA baseline
namespace snnet {
namespace {

struct Lanes {
  static constexpr int64_t width = 4;
  static constexpr int most_sums = 12;
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
};

}  // namespace
#define SNNET_MOST_VECTORS 2
#include "panels.inl"
#include "vector.inl"
}  // namespace snnet
