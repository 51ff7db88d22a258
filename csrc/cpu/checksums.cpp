// Checksums of rows of words, see ops/checksums.py.
#include <atomic>
#include <optional>

#include "checks.h"
#include "prefetch.h"

namespace snnet {
namespace {

using Half = uint32_t __attribute__((may_alias));  // of a word; which of the two comes first changes no product

template <class Word>
uint64_t sum_of_row(const void* words, const int64_t* keys, int64_t row, int64_t width) {
  const Word* values = static_cast<const Word*>(words) + row * width;
  const Half* key = reinterpret_cast<const Half*>(keys);
  uint64_t sum = 0;
  for (int64_t w = 0; w < width; ++w) {
    uint32_t one, other;
    if constexpr (sizeof(Word) == 8) {
      const Half* halves = reinterpret_cast<const Half*>(values);
      one = halves[2 * w], other = halves[2 * w + 1];
    } else {
      const int64_t word = values[w];
      one = static_cast<uint32_t>(word), other = static_cast<uint32_t>(word >> 32);
    }
    one += key[2 * w], other += key[2 * w + 1];
    sum += uint64_t{one} * other;
  }
  return sum;
}

// The checksums of the rows of words [n, w].
class RowSums {
 public:
  RowSums(const Tensor& words, const Tensor& keys) {
    SNNET_CHECK(words.is_cpu() && words.dim() == 2 && words.is_contiguous(), "words must be a contiguous matrix");
    n = words.size(0), width = words.size(1);
    words_ = words.const_data_ptr();
    keys_ = checked_vector<const int64_t>(keys, "keys", width);
    row_bytes_ = width * words.element_size();
    switch (words.scalar_type()) {
      case ScalarType::Long: sum_ = sum_of_row<int64_t>; break;
      case ScalarType::Int: sum_ = sum_of_row<int32_t>; break;
      case ScalarType::Short: sum_ = sum_of_row<int16_t>; break;
      case ScalarType::Byte: sum_ = sum_of_row<uint8_t>; break;
      default: SNNET_CHECK(false, "words must be integers");
    }
  }

  int64_t operator()(int64_t row) const { return static_cast<int64_t>(sum_(words_, keys_, row, width)); }

  void prefetch_row(int64_t row) const {
    if (row >= 0) prefetch(static_cast<const char*>(words_) + row * row_bytes_, row_bytes_);
  }

  int64_t n, width;

 private:
  const void* words_;
  int64_t row_bytes_;
  const int64_t* keys_;
  uint64_t (*sum_)(const void* words, const int64_t* keys, int64_t row, int64_t width);
};

// words [n, w] -> int64 [n], or [k] of rows [k]
Tensor checksums(const Tensor& words, const std::optional<Tensor>& rows, const Tensor& keys) {
  const RowSums sum_of(words, keys);
  const Tensor positions = rows ? checked_index(*rows, sum_of.n) : keys;
  const int64_t count = rows ? positions.size(0) : sum_of.n;
  Tensor sums = torch::stable::new_empty(keys, {count}, ScalarType::Long);
  const int64_t* chosen = rows ? positions.const_data_ptr<int64_t>() : nullptr;
  int64_t* out = sums.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, count, grain(2 * sum_of.width), [=, &sum_of](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (chosen != nullptr && r + 1 < end) sum_of.prefetch_row(chosen[r + 1]);
      out[r] = sum_of(chosen == nullptr ? r : chosen[r]);
    }
  });
  return sums;
}

// Whether rows [k] of words [n, w] have their checksums of sums [n]; -1 stands for no row.
Tensor checksums_match(const Tensor& words, const Tensor& rows, const Tensor& keys, const Tensor& sums) {
  const RowSums sum_of(words, keys);
  const int64_t* expected = checked_vector<const int64_t>(sums, "sums", sum_of.n);
  const Tensor positions = checked_index(rows, sum_of.n, -1);
  const int64_t* chosen = positions.const_data_ptr<int64_t>();
  std::atomic<bool> all_match = true;
  torch::stable::parallel_for(0, positions.size(0), grain(2 * sum_of.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (r + 1 < end) sum_of.prefetch_row(chosen[r + 1]);
      if (chosen[r] >= 0 && sum_of(chosen[r]) != expected[chosen[r]]) all_match = false;
    }
  });
  Tensor match = torch::stable::new_empty(keys, {}, ScalarType::Bool);
  *match.mutable_data_ptr<bool>() = all_match;
  return match;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("checksums", TORCH_BOX(&snnet::checksums));
  m.impl("checksums_match", TORCH_BOX(&snnet::checksums_match));
}
