// The loops of vector.h, written so that a compiler vectorises them; included once for each instruction set, whose
// `Lanes` is defined before.
// Nothing here may call an inline function that is not always inlined, see SNNET_INLINE.

namespace {

constexpr int64_t kBlock = 64;  // floats looked at before a branch
constexpr int kLanes = 16;      // partial sums of a reduction

template <bool inclusive>
SNNET_INLINE bool passes(float value, float bar) {
  return inclusive ? value >= bar : value > bar;
}

template <bool inclusive>
SNNET_INLINE int64_t collect(const float* row, int64_t n, float bar, int32_t first_column, Entry* out) {
  int64_t found = 0, l = 0;
  for (; l + kBlock <= n; l += kBlock) {
    uint64_t mask = Lanes::passing<inclusive>(row + l, bar);
    for (int turn = 0; turn < 2; ++turn) {  // mostly there are few: no branch that could be guessed wrong
      const int64_t i = l + lowest_bit(mask | uint64_t{1} << 63);
      out[found] = {row[i], static_cast<int32_t>(first_column + i)};
      found += mask != 0;
      mask &= mask - 1;
    }
    for (; mask != 0; mask &= mask - 1) {
      const int64_t i = l + lowest_bit(mask);
      out[found++] = {row[i], static_cast<int32_t>(first_column + i)};
    }
  }
  for (; l < n; ++l) {
    if (passes<inclusive>(row[l], bar)) out[found++] = {row[l], static_cast<int32_t>(first_column + l)};
  }
  return found;
}

int64_t collect_above(const float* row, int64_t n, float bar, int32_t first_column, Entry* out) {
  return collect<false>(row, n, bar, first_column, out);
}

int64_t collect_from(const float* row, int64_t n, float bar, int32_t first_column, Entry* out) {
  return collect<true>(row, n, bar, first_column, out);
}

int64_t collect_reaching(const float* row, const float* rest, float scale, int64_t n, float bar,
                         int32_t first_column, Entry* out) {
  int64_t found = 0;
  for (int64_t l = 0; l < n; l += kBlock) {
    const int64_t end = n - l < kBlock ? n : l + kBlock;
    int any = 0;
    for (int64_t i = l; i < end; ++i) any |= row[i] + scale * rest[i] > bar;
    for (int64_t i = l; any && i < end; ++i) {
      out[found] = {row[i], static_cast<int32_t>(first_column + i)};
      found += row[i] + scale * rest[i] > bar;
    }
  }
  return found;
}

// Bit i is set where row[i] > bar or row[i] > gain * floors[i] - slack, i < size <= 64.
SNNET_INLINE uint64_t rising(const float* row, const float* floors, int64_t size, float bar, float gain, float slack) {
  float above[kBlock];
  for (int64_t i = 0; i < size; ++i) {
    const float own = row[i] - bar, other = row[i] - (gain * floors[i] - slack);
    above[i] = other > own ? other : own;
  }
  for (int64_t i = size; i < kBlock; ++i) above[i] = 0.0f;
  return Lanes::passing<false>(above, 0.0f);
}

int64_t collect_rising(const float* row, const float* floors, int64_t n, float bar, float gain, float slack,
                       Entry* out) {
  constexpr int64_t kAhead = 2048;  // over the end of a page, where the processor does not look by itself
  int64_t found = 0;
  for (int64_t l = 0; l < n; l += kBlock) {
    for (int64_t i = 0; i < kBlock; i += 16) __builtin_prefetch(row + l + kAhead + i);
    uint64_t mask = n - l < kBlock ? rising(row + l, floors + l, n - l, bar, gain, slack)
                                   : rising(row + l, floors + l, kBlock, bar, gain, slack);
    for (; mask != 0; mask &= mask - 1) {
      const int64_t i = l + lowest_bit(mask);
      out[found++] = {row[i], static_cast<int32_t>(i)};
    }
  }
  return found;
}

int64_t count_above(const float* row, int64_t n, float bar, int64_t limit) {
  constexpr int64_t kStep = 512;  // a check of the limit a step
  int64_t count = 0, l = 0;
  for (; l + kStep <= n; l += kStep) {
    int32_t above = 0;
    for (int64_t i = 0; i < kStep; ++i) above += row[l + i] > bar;
    count += above;
    if (count > limit) return count;
  }
  int32_t above = 0;
  for (; l < n; ++l) above += row[l] > bar;
  return count + above;
}

Entry largest(const float* row, int64_t n) {
  constexpr int64_t kStep = 256;
  float best = -__builtin_inff();
  int64_t where = -1, size = 0;
  int nan = 0;
  for (int64_t l = 0; l < n; l += kStep) {
    const int64_t step = n - l < kStep ? n - l : kStep;
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = -__builtin_inff();
    int64_t k = 0;
    for (; k + 2 * kLanes <= step; k += 2 * kLanes) {
      const float *a = row + l + k, *b = a + kLanes;
      for (int i = 0; i < kLanes; ++i) {
        nan |= __builtin_isunordered(a[i], b[i]);
        const float larger = a[i] > b[i] ? a[i] : b[i];
        lanes[i] = larger > lanes[i] ? larger : lanes[i];
      }
    }
    for (; k < step; ++k) {
      nan |= row[l + k] != row[l + k];
      lanes[0] = row[l + k] > lanes[0] ? row[l + k] : lanes[0];
    }
    float top = lanes[0];
    for (int i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
    if (top > best) {
      best = top;
      where = l;
      size = step;
    }
  }
  if (nan) {
    int64_t column = 0;
    while (row[column] == row[column]) ++column;
    return {row[column], static_cast<int32_t>(column)};
  }
  if (where < 0) return {best, -1};
  int64_t column = where;
  while (column < where + size - 1 && row[column] != best) ++column;
  return {best, static_cast<int32_t>(column)};
}

float lowest(const float* row, int64_t n) {
  float lanes[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) lanes[i] = __builtin_inff();
  int64_t l = 0;
  for (; l + kBlock <= n; l += kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) lanes[i] = row[l + i] < lanes[i] ? row[l + i] : lanes[i];
  }
  for (int64_t i = 0; l + i < n; ++i) lanes[i] = row[l + i] < lanes[i] ? row[l + i] : lanes[i];
  float low = lanes[0];
  for (int64_t i = 1; i < kBlock; ++i) low = lanes[i] < low ? lanes[i] : low;
  return low;
}

bool group_maxima(const float* row, int64_t n, int64_t groups, float* maxima) {
  for (int64_t g = 0; g < groups; ++g) maxima[g] = -__builtin_inff();
  int nan = 0;
  int64_t l = 0;
  for (; l + 4 * groups <= n; l += 4 * groups) {
    const float *a = row + l, *b = a + groups, *c = b + groups, *d = c + groups;
    for (int64_t g = 0; g < groups; ++g) {
      nan |= __builtin_isunordered(a[g], b[g]) | __builtin_isunordered(c[g], d[g]);
      const float first = a[g] > b[g] ? a[g] : b[g], second = c[g] > d[g] ? c[g] : d[g];
      const float largest = first > second ? first : second;
      maxima[g] = largest > maxima[g] ? largest : maxima[g];
    }
  }
  for (; l < n; l += groups) {
    const int64_t end = n - l < groups ? n - l : groups;
    for (int64_t g = 0; g < end; ++g) {
      nan |= row[l + g] != row[l + g];
      maxima[g] = row[l + g] > maxima[g] ? row[l + g] : maxima[g];
    }
  }
  return nan != 0;
}

float bar_of_largest(const float* values, int64_t count, int64_t k, uint32_t* ordered) {
  constexpr uint32_t kBins = 256;
  uint32_t low = 0xffffffffu, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    ordered[i] = ordered_number(values[i]);
    low = ordered[i] < low ? ordered[i] : low;
    high = ordered[i] > high ? ordered[i] : high;
  }
  int shift = 0;
  while ((high - low) >> shift >= kBins) ++shift;
  uint32_t counts[kBins] = {};
  for (int64_t i = 0; i < count; ++i) ++counts[(ordered[i] - low) >> shift];
  uint32_t bin = kBins - 1;
  for (int64_t above = counts[bin]; above < k; above += counts[bin]) --bin;
  return value_of_bits(low + (bin << shift));
}

double dot(const float* a, const float* b, int64_t n) {
  double lanes[8] = {};
  int64_t l = 0;
  for (; l + 8 <= n; l += 8) {
    for (int i = 0; i < 8; ++i) lanes[i] += static_cast<double>(a[l + i]) * static_cast<double>(b[l + i]);
  }
  double sum = 0;
  for (int i = 0; i < 8; ++i) sum += lanes[i];
  for (; l < n; ++l) sum += static_cast<double>(a[l]) * static_cast<double>(b[l]);
  return sum;
}

template <int kRows>
SNNET_INLINE void dot_rows(const float* const* rows, const float* x, int64_t n, float* out) {
  float lanes[kRows][kLanes] = {};
  int64_t l = 0;
  for (; l + kLanes <= n; l += kLanes) {
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kLanes; ++i) lanes[r][i] += rows[r][l + i] * x[l + i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += lanes[r][i];
    for (int64_t k = l; k < n; ++k) sum += rows[r][k] * x[k];
    out[r] = sum;
  }
}

void dots(const float* const* rows, int64_t count, const float* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) dot_rows<4>(rows + i, x, n, out + i);
  for (; i < count; ++i) dot_rows<1>(rows + i, x, n, out + i);
}

void add_scaled(float* __restrict out, const float* __restrict x, float weight, int64_t n) {
  for (int64_t l = 0; l < n; ++l) out[l] += weight * x[l];
}

void blend(float* __restrict out, const float* __restrict before, const float* __restrict live, float alpha,
           float beta, int64_t n) {
  for (int64_t l = 0; l < n; ++l) out[l] = blended(before[l], live[l], alpha, beta);
}

void divide(float* out, float length, int64_t n) {
  for (int64_t l = 0; l < n; ++l) out[l] /= length;
}

double squares(float* __restrict out, const float* __restrict row, float scale, int64_t n) {
  if (out != nullptr) {
    for (int64_t l = 0; l < n; ++l) out[l] = scale * row[l];
  }
  return dot(row, row, n);
}

constexpr VectorKernels kKernels = {
    .collect_above = collect_above,
    .collect_from = collect_from,
    .collect_reaching = collect_reaching,
    .collect_rising = collect_rising,
    .count_above = count_above,
    .largest = largest,
    .lowest = lowest,
    .group_maxima = group_maxima,
    .bar_of_largest = bar_of_largest,
    .dot = dot,
    .dots = dots,
    .add_scaled = add_scaled,
    .blend = blend,
    .divide = divide,
    .squares = squares,
    .panel_products = panel_products,
    .lanes_of_vector = Lanes::width,
    .most_vectors = Lanes::most_vectors,
};

}  // namespace
