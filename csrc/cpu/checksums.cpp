// Checksums of rows of words: sums of words times odd numbers, modulo 2^64.
#include <optional>

#include "checks.h"

namespace snnet {
namespace {

// One multiplication a cycle; vectors of the oldest instruction set take longer for products of 64 bits.
template <class Word>
__attribute__((optimize("no-tree-vectorize"))) uint64_t weighted_sum(const Word* words, const int64_t* factors, int64_t count) {
  uint64_t sum = 0;
  for (int64_t w = 0; w < count; ++w) {
    sum += static_cast<uint64_t>(static_cast<int64_t>(words[w])) * static_cast<uint64_t>(factors[w]);
  }
  return sum;
}

template <class Word>
void sum_rows(const Tensor& words, const int64_t* rows, const int64_t* factors, int64_t* sums, int64_t count) {
  const Word* values = words.const_data_ptr<Word>();
  const int64_t width = words.size(1);
  torch::stable::parallel_for(0, count, grain(2 * width), [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = rows == nullptr ? r : rows[r];
      sums[r] = static_cast<int64_t>(weighted_sum(values + row * width, factors, width));
    }
  });
}

// words [n, w] -> int64 [n], or [k] of rows [k]
Tensor checksums(const Tensor& words, const std::optional<Tensor>& rows, const Tensor& factors) {
  SNNET_CHECK(words.is_cpu() && words.dim() == 2 && words.is_contiguous(), "words must be a contiguous matrix");
  const int64_t n = words.size(0), width = words.size(1);
  const int64_t* weights = checked_vector<const int64_t>(factors, "factors", width);
  const Tensor positions = rows ? checked_index(*rows, n) : factors;
  const int64_t count = rows ? positions.size(0) : n;
  Tensor sums = torch::stable::new_empty(factors, {count}, ScalarType::Long);
  const int64_t* chosen = rows ? positions.const_data_ptr<int64_t>() : nullptr;
  int64_t* out = sums.mutable_data_ptr<int64_t>();
  switch (words.scalar_type()) {
    case ScalarType::Long: sum_rows<int64_t>(words, chosen, weights, out, count); break;
    case ScalarType::Int: sum_rows<int32_t>(words, chosen, weights, out, count); break;
    case ScalarType::Short: sum_rows<int16_t>(words, chosen, weights, out, count); break;
    case ScalarType::Byte: sum_rows<uint8_t>(words, chosen, weights, out, count); break;
    default: SNNET_CHECK(false, "words must be integers");
  }
  return sums;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) { m.impl("checksums", TORCH_BOX(&snnet::checksums)); }
