// Checksums of rows of words: sums of words times odd numbers, modulo 2^64.
#include <atomic>
#include <optional>

#include "checks.h"

namespace snnet {
namespace {

// One multiplication a cycle; vectors of the oldest instruction set take longer for products of 64 bits.
template <class Word>
__attribute__((optimize("no-tree-vectorize"))) uint64_t weighted_sum(const void* words, const int64_t* factors, int64_t row,
                                                                     int64_t width) {
  const Word* values = static_cast<const Word*>(words) + row * width;
  uint64_t sum = 0;
  for (int64_t w = 0; w < width; ++w) {
    sum += static_cast<uint64_t>(static_cast<int64_t>(values[w])) * static_cast<uint64_t>(factors[w]);
  }
  return sum;
}

// The checksums of the rows of words [n, w].
class RowSums {
 public:
  RowSums(const Tensor& words, const Tensor& factors) {
    SNNET_CHECK(words.is_cpu() && words.dim() == 2 && words.is_contiguous(), "words must be a contiguous matrix");
    n = words.size(0), width = words.size(1);
    words_ = words.const_data_ptr();
    factors_ = checked_vector<const int64_t>(factors, "factors", width);
    switch (words.scalar_type()) {
      case ScalarType::Long: sum_ = weighted_sum<int64_t>; break;
      case ScalarType::Int: sum_ = weighted_sum<int32_t>; break;
      case ScalarType::Short: sum_ = weighted_sum<int16_t>; break;
      case ScalarType::Byte: sum_ = weighted_sum<uint8_t>; break;
      default: SNNET_CHECK(false, "words must be integers");
    }
  }

  int64_t operator()(int64_t row) const { return static_cast<int64_t>(sum_(words_, factors_, row, width)); }

  int64_t n, width;

 private:
  const void* words_;
  const int64_t* factors_;
  uint64_t (*sum_)(const void* words, const int64_t* factors, int64_t row, int64_t width);
};

// words [n, w] -> int64 [n], or [k] of rows [k]
Tensor checksums(const Tensor& words, const std::optional<Tensor>& rows, const Tensor& factors) {
  const RowSums sum_of(words, factors);
  const Tensor positions = rows ? checked_index(*rows, sum_of.n) : factors;
  const int64_t count = rows ? positions.size(0) : sum_of.n;
  Tensor sums = torch::stable::new_empty(factors, {count}, ScalarType::Long);
  const int64_t* chosen = rows ? positions.const_data_ptr<int64_t>() : nullptr;
  int64_t* out = sums.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, count, grain(2 * sum_of.width), [=, &sum_of](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) out[r] = sum_of(chosen == nullptr ? r : chosen[r]);
  });
  return sums;
}

// Whether rows [k] of words [n, w] have their checksums of sums [n]; -1 stands for no row.
Tensor checksums_match(const Tensor& words, const Tensor& rows, const Tensor& factors, const Tensor& sums) {
  const RowSums sum_of(words, factors);
  const int64_t* expected = checked_vector<const int64_t>(sums, "sums", sum_of.n);
  const Tensor positions = checked_index(rows, sum_of.n, -1);
  const int64_t* chosen = positions.const_data_ptr<int64_t>();
  std::atomic<bool> all_match = true;
  torch::stable::parallel_for(0, positions.size(0), grain(2 * sum_of.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (chosen[r] >= 0 && sum_of(chosen[r]) != expected[chosen[r]]) all_match = false;
    }
  });
  Tensor match = torch::stable::new_empty(factors, {}, ScalarType::Bool);
  *match.mutable_data_ptr<bool>() = all_match;
  return match;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("checksums", TORCH_BOX(&snnet::checksums));
  m.impl("checksums_match", TORCH_BOX(&snnet::checksums_match));
}
