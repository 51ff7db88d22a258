// The row loops for the instruction set that every processor of the architecture has.
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA baseline
namespace snnet {
namespace {

// a b + sum, rounded once. Where the processor does not have it: the product is exact as double, and of a sum that is
// not exact the last bit is made odd, so that its second rounding, to float, is that of the exact sum.
SNNET_INLINE float fused_multiply_add(float a, float b, float sum) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, sum);
#else
  const double product = static_cast<double>(a) * b, other = sum, total = product + other, part = total - product;
  const double rest = (product - (total - part)) + (other - part);
  int64_t bits;
  __builtin_memcpy(&bits, &total, sizeof bits);
  const bool is_inexact = rest > 0 || rest < 0;  // no NaN, which an infinity leaves
  bits += is_inexact && !(bits & 1) ? ((rest > 0) == (total > 0) ? 1 : -1) : 0;
  double odd;
  __builtin_memcpy(&odd, &bits, sizeof odd);
  return static_cast<float>(odd);
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
    for (int i = 0; i < width; ++i) sum.values[i] = fused_multiply_add(a.values[i], b.values[i], sum.values[i]);
    return sum;
  }
};

}  // namespace
#define SNNET_MOST_VECTORS 2
#include "panels.inl"
#include "vector.inl"
}  // namespace snnet
