// Loops over rows of floats, compiled once for each instruction set and chosen at run time.
//
// Every loop has fixed lanes and one order, and the compiler fuses nothing, so results do not depend on the instruction
// set. Only `panel_products` asks for fused multiply-adds, which the baseline of x86 lacks.
#pragma once

#include <cstdint>

#include "../common/bits.h"
#include "../common/select.h"

namespace snnet {

struct VectorKernels {
  // The entries of row[0, n) with value > bar, columns counted from first_column; out has room for n. The count.
  int64_t (*collect_above)(const float* row, int64_t n, float bar, int32_t first_column, Entry* out);
  // The same with value >= bar.
  int64_t (*collect_from)(const float* row, int64_t n, float bar, int32_t first_column, Entry* out);
  // The same with value + scale * rest[l] > bar.
  int64_t (*collect_reaching)(const float* row, const float* rest, float scale, int64_t n, float bar,
                              int32_t first_column, Entry* out);
  // The same with value > bar or value > gain * floors[l] - slack.
  int64_t (*collect_rising)(const float* row, const float* floors, int64_t n, float bar, float gain, float slack,
                            Entry* out);
  // #{l : row[l] > bar}, or some number above limit as soon as it is known to be.
  int64_t (*count_above)(const float* row, int64_t n, float bar, int64_t limit);
  // The first largest entry of row[0, n), NaN above everything; value -inf and column -1 if none is above -inf.
  Entry (*largest)(const float* row, int64_t n);
  // The smallest entry of row[0, n), NaN left out; inf if there is none.
  float (*lowest)(const float* row, int64_t n);
  // maxima[g] = max of row[l] over l % groups == g (at least -inf); groups is a multiple of 16. True if a NaN.
  bool (*group_maxima)(const float* row, int64_t n, int64_t groups, float* maxima);
  // A value that at least k of values[0, count) reach and hardly more, 0 < k <= count; no NaN; ordered [count] is
  // scratch.
  float (*bar_of_largest)(const float* values, int64_t count, int64_t k, uint32_t* ordered);
  double (*dot)(const float* a, const float* b, int64_t n);
  // out[i] = rows[i] . x for i < count
  void (*dots)(const float* const* rows, int64_t count, const float* x, int64_t n, float* out);
  // out += weight * x
  void (*add_scaled)(float* out, const float* x, float weight, int64_t n);
  // out = alpha * before + beta * live
  void (*blend)(float* out, const float* before, const float* live, float alpha, float beta, int64_t n);
  // out /= length
  void (*divide)(float* out, float length, int64_t n);
  // out = scale * row (out may be null); the sum of row[l]²
  double (*squares)(float* out, const float* row, float scale, int64_t n);
  // out[r, lane] += rows[r] . lane of the panel, for r < count; in place of out where it `begins`. panel is [d, lanes]
  // and out [count, lanes], where lanes = vectors * lanes_of_vector; vectors <= most_vectors. Rows of d floats, `stride`
  // apart.
  void (*panel_products)(const float* panel, int64_t vectors, const float* rows, int64_t stride, int64_t count,
                         int64_t d, bool begins, float* out);
  int64_t lanes_of_vector, most_vectors;
};

// Those of each instruction set; the last two are on x86-64 alone.
extern const VectorKernels baseline_kernels, avx2_kernels, avx512_kernels;

// The instruction set in use; chosen at first use: the widest this processor has.
const VectorKernels& vector_kernels();
const char* instruction_set();
// False where the name is unknown or the processor does not have it.
bool select_instruction_set(const char* name);

}  // namespace snnet
