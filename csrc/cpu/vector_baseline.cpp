// The row loops for the instruction set that every processor of the architecture has.
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA baseline
namespace snnet {
namespace {

// a b + sum, rounded once where the processor has an instruction for it.
SNNET_INLINE float multiplied_and_added(float a, float b, float sum) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, sum);
#else
  return a * b + sum;
#endif
}

struct Lanes {
  static constexpr int64_t width = 4;
  static constexpr int most_sums = 8;
  struct Vector {
    float values[width];
  };
  SNNET_INLINE static Vector load(const float* from) {
    Vector vector;
    for (int i = 0; i < width; ++i) vector.values[i] = from[i];
    return vector;
  }
  SNNET_INLINE static void store(float* to, const Vector& vector) {
    for (int i = 0; i < width; ++i) to[i] = vector.values[i];
  }
  SNNET_INLINE static Vector broadcast(float value) {
    Vector vector;
    for (int i = 0; i < width; ++i) vector.values[i] = value;
    return vector;
  }
  SNNET_INLINE static Vector add(Vector a, const Vector& b) {
    for (int i = 0; i < width; ++i) a.values[i] += b.values[i];
    return a;
  }
  SNNET_INLINE static Vector multiply_add(const Vector& a, const Vector& b, Vector sum) {
    for (int i = 0; i < width; ++i) sum.values[i] = multiplied_and_added(a.values[i], b.values[i], sum.values[i]);
    return sum;
  }
};

}  // namespace
#define SNNET_MOST_VECTORS 2
#include "panels.inl"
#include "vector.inl"
}  // namespace snnet
