// Products with a panel, for the instruction set whose `Lanes` is defined before; included once for each.
//
// Each similarity is the sum of chains of fused multiply-adds over kChain dimensions, all in order. So its bits depend on
// its two rows alone: not on the number of threads, nor on what else is multiplied, nor on which of the processors that
// have fused multiply-adds. A single chain would be as fast, and at d 2048 eight times less exact.

namespace {

constexpr int64_t kLine = 16;  // floats of a cache line
constexpr int64_t kChain = 128;
constexpr int64_t kDepth = 4 * kChain;  // dimensions at once: this part of a panel stays in the second cache

// out [kRows][lanes] += rows [kRows][depth] times panel [depth][lanes]; in place of out where it `begins`.
template <int kVectors, int kRows>
SNNET_INLINE void add_chain(const float* panel, const float* rows, int64_t stride, int64_t depth, bool begins,
                            float* out) {
  constexpr int64_t lanes = kVectors * Lanes::width;
  Lanes::Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Lanes::broadcast(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (k % kLine == 0) {
      for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows + (kRows + r) * stride + k);
    }
    Lanes::Vector part[kVectors];
    for (int v = 0; v < kVectors; ++v) part[v] = Lanes::load(panel + k * lanes + v * Lanes::width);
    for (int r = 0; r < kRows; ++r) {
      const Lanes::Vector value = Lanes::broadcast(rows[r * stride + k]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Lanes::multiply_add(value, part[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* place = out + r * lanes + v * Lanes::width;
      Lanes::store(place, begins ? sums[r][v] : Lanes::add(Lanes::load(place), sums[r][v]));
    }
  }
}

template <int kVectors, int kRows>
SNNET_INLINE void multiply_rows(const float* panel, const float* rows, int64_t stride, int64_t depth, bool begins,
                                float* out) {
  constexpr int64_t lanes = kVectors * Lanes::width;
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t length = depth - k < kChain ? depth - k : kChain;
    add_chain<kVectors, kRows>(panel + k * lanes, rows + k, stride, length, begins && k == 0, out);
  }
}

template <int kVectors>
void multiply(const float* panel, const float* rows, int64_t stride, int64_t count, int64_t d, bool begins,
              float* out) {
  constexpr int kRows = Lanes::most_sums / kVectors < 8 ? Lanes::most_sums / kVectors : 8;
  constexpr int64_t lanes = kVectors * Lanes::width;
  for (int64_t k = 0; k < d; k += kDepth) {
    const int64_t depth = d - k < kDepth ? d - k : kDepth;
    const float* part = panel + k * lanes;
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows) {
      multiply_rows<kVectors, kRows>(part, rows + r * stride + k, stride, depth, begins && k == 0, out + r * lanes);
    }
    for (; r + 2 <= count; r += 2) {
      multiply_rows<kVectors, 2>(part, rows + r * stride + k, stride, depth, begins && k == 0, out + r * lanes);
    }
    if (r < count) {
      multiply_rows<kVectors, 1>(part, rows + r * stride + k, stride, depth, begins && k == 0, out + r * lanes);
    }
  }
}

void panel_products(const float* panel, int64_t vectors, const float* rows, int64_t stride, int64_t count, int64_t d,
                    bool begins, float* out) {
  if (vectors == 1) return multiply<1>(panel, rows, stride, count, d, begins, out);
  if (vectors == 2) return multiply<2>(panel, rows, stride, count, d, begins, out);
  if constexpr (Lanes::most_vectors == 4) {
    if (vectors == 3) return multiply<3>(panel, rows, stride, count, d, begins, out);
    return multiply<4>(panel, rows, stride, count, d, begins, out);
  }
}

}  // namespace
