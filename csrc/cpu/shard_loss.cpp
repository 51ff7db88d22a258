// The part of the mutual label loss that falls on the columns that one process owns.
//
// Which negatives are hard is decided over the columns of all processes: each gives its largest, as keys that order
// all entries of a row, and learns for each label set the key from which on they count.
#include <algorithm>
#include <array>
#include <functional>
#include <tuple>
#include <vector>

#include "../common/loss.h"
#include "products.h"
#include "selection.h"
#include "sparse_product.h"

namespace snnet {
namespace {

// Keys as signed integers, which order in the same way; the smallest is no entry.
constexpr uint64_t kSign = uint64_t{1} << 63;
int64_t signed_key(uint64_t key) { return static_cast<int64_t>(key ^ kSign); }

// The own columns of a batch: similarity [B, n], packed labels of each set.
struct OwnColumns {
  Tensor similarity;
  std::vector<Tensor> held;
  int64_t batch_size, n, first;
  int sets;
  uint32_t all;  // a bit for each set
  const float* values;
  std::array<const uint8_t*, kMostSets> bits{};

  OwnColumns(const Tensor& given, const std::vector<Tensor>& labels, int64_t first_column)
      : similarity(torch::stable::contiguous(given)), batch_size(given.size(0)), n(given.size(1)), first(first_column),
        sets(static_cast<int>(labels.size())), all((1u << labels.size()) - 1), values(const_floats(similarity)) {
    check_matrix(given, "similarity", ScalarType::Float, batch_size, n);
    SNNET_CHECK(!labels.empty() && labels.size() <= kMostSets, "labels must be 1 to 3 tensors, got ", labels.size());
    SNNET_CHECK(first >= 0 && first + n < std::numeric_limits<int32_t>::max(), "columns must fit an int32");
    for (const Tensor& label : labels) {
      check_matrix(label, "labels", ScalarType::Byte, batch_size, label_bytes(n));
      held.push_back(torch::stable::contiguous(label));
      bits[held.size() - 1] = held.back().const_data_ptr<uint8_t>();
    }
  }

  const float* row(int64_t b) const { return values + b * n; }

  const uint8_t* label(int k, int64_t b) const { return bits[k] + b * label_bytes(n); }

  uint32_t sets_of(int64_t b, int64_t column) const {
    uint32_t found = 0;
    for (int k = 0; k < sets; ++k) found |= static_cast<uint32_t>(bit_at(label(k, b), column)) << k;
    return found;
  }

  // Calls use(column) for what is positive in any set, or with `in_all` in every one; rising.
  template <class Use>
  void positives(int64_t b, bool in_all, const Use& use) const {
    for (int64_t word = 0; 64 * word < n; ++word) {
      uint64_t bits = label_word(label(0, b), word);
      for (int k = 1; k < sets; ++k) {
        const uint64_t other = label_word(label(k, b), word);
        bits = in_all ? bits & other : bits | other;
      }
      for (bits &= columns_of_word(word, n); bits != 0; bits &= bits - 1) use(64 * word + lowest_bit(bits));
    }
  }
};

constexpr int64_t kKeyBytes = 9;  // of a negative that travels: its key, and the sets in which it is negative

// The k largest entries of each row that are negative in some label set, uint8 [B, 9 k], of row order[b]: their keys
// int64 [k], in no order, and the sets uint8 [k] in which each is negative (bit by bit). Behind the last one the smallest
// number and 0.
Tensor largest_negatives(const Tensor& similarity, const std::vector<Tensor>& labels, const Tensor& order, int64_t first,
                         int64_t k) {
  SNNET_CHECK(similarity.dim() == 2, "similarity must have 2 dimensions, got ", similarity.dim());
  const OwnColumns own(similarity, labels, first);
  SNNET_CHECK(k >= 0, "k must not be negative, got ", k);
  const Tensor rows = checked_index(order, own.batch_size);
  const int64_t* row_of = rows.const_data_ptr<int64_t>();
  const int64_t size = rows.size(0);
  Tensor found_bytes = torch::stable::new_zeros(similarity, {size, kKeyBytes * k}, ScalarType::Byte);
  uint8_t* bytes = found_bytes.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, size, grain(4 * own.n), [&](int64_t begin, int64_t end) {
    SelectionScratch scratch;
    std::vector<int64_t> keys(k);
    for (int64_t e = begin; e < end; ++e) {
      const int64_t b = row_of[e];
      int64_t passed = 0;
      own.positives(b, true, [&](int64_t) { ++passed; });
      select_largest(own.row(b), own.n, k + passed, scratch, own.n);
      std::vector<uint64_t>& found = scratch.keys;
      const auto is_positive = [&](uint64_t key) { return own.sets_of(b, column_of_key(key)) == own.all; };
      found.erase(std::remove_if(found.begin(), found.end(), is_positive), found.end());
      keep_largest(found, k, k);
      std::fill(keys.begin(), keys.end(), std::numeric_limits<int64_t>::min());
      uint8_t* out = bytes + e * kKeyBytes * k;
      for (std::size_t j = 0; j < found.size(); ++j) {
        keys[j] = signed_key(found[j] - static_cast<uint64_t>(first));  // a column further back: a smaller key
        out[8 * k + j] = static_cast<uint8_t>(own.all & ~own.sets_of(b, column_of_key(found[j])));
      }
      if (k > 0) std::memcpy(out, keys.data(), 8 * k);
    }
  });
  return found_bytes;
}

// Of what all processes have sent of a sample, found uint8 [R, b, 9 k]: int64 [b, sets + 1], the key of the last hard
// negative of each set, and whether all keys are certain. How many are hard follows from `positives` int64 [b, sets] in
// n columns. A key is uncertain if a process may have kept back a larger one.
Tensor hard_negative_bars(const Tensor& found, const Tensor& positives, int64_t n, double ratio) {
  SNNET_CHECK(found.is_cpu() && found.scalar_type() == ScalarType::Byte && found.dim() == 3 && found.is_contiguous() &&
                  found.size(2) % kKeyBytes == 0,
              "found must be contiguous uint8 [R, b, 9 k] on the cpu");
  const int64_t ranks = found.size(0), size = found.size(1), k = found.size(2) / kKeyBytes;
  const int64_t count = positives.dim() == 2 ? positives.size(1) : 0;
  check_storage(positives, "positives", ScalarType::Long, size, count);
  SNNET_CHECK(count <= kMostSets, "positives must have at most ", kMostSets, " columns, got ", count);
  Tensor told = torch::stable::new_empty(positives, {size, count + 1});
  int64_t* bars = told.mutable_data_ptr<int64_t>();
  const uint8_t* bytes = found.const_data_ptr<uint8_t>();
  const int64_t* positive = positives.const_data_ptr<int64_t>();
  torch::stable::parallel_for(0, size, grain(4 * count * ranks * k), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> keys(ranks * k), negative;
    std::vector<uint8_t> sets(ranks * k);
    for (int64_t b = begin; b < end; ++b) {
      int64_t kept_back = std::numeric_limits<int64_t>::min();  // no process has kept back a key above this
      for (int64_t r = 0; r < ranks && k > 0; ++r) {
        const uint8_t* told_by = bytes + (r * size + b) * kKeyBytes * k;
        std::memcpy(keys.data() + r * k, told_by, 8 * k);
        std::memcpy(sets.data() + r * k, told_by + 8 * k, k);
        kept_back = std::max(kept_back, *std::min_element(keys.begin() + r * k, keys.begin() + (r + 1) * k));
      }
      bool is_sure = true;
      for (int64_t j = 0; j < count; ++j) {
        const int64_t needed = hard_negatives(n - positive[b * count + j], ratio);
        int64_t& bar = bars[b * (count + 1) + j];
        bar = std::numeric_limits<int64_t>::max();
        if (needed <= 0) continue;
        negative.clear();
        for (int64_t e = 0; e < ranks * k; ++e) {
          if (sets[e] >> j & 1) negative.push_back(keys[e]);
        }
        bar = std::numeric_limits<int64_t>::min();
        if (needed <= static_cast<int64_t>(negative.size())) {
          std::nth_element(negative.begin(), negative.begin() + needed - 1, negative.end(), std::greater<>());
          bar = negative[needed - 1];
        }
        is_sure = is_sure && kept_back <= bar;
      }
      bars[b * (count + 1) + count] = is_sure;
    }
  });
  return told;
}

// The own part of the loss of each row, float64 [B], and of its gradient [B, d]. Of label set k the negatives with a
// key of at least bars[b, k] are hard; all of these are among those that largest_negatives gave. The set weighs weights[k],
// its positives[b, k] (of all `images` columns) delta times that.
std::tuple<Tensor, Tensor> own_columns_loss(const Tensor& similarity, const Tensor& memory,
                                            const std::vector<Tensor>& labels, const Tensor& order,
                                            const Tensor& negatives, int64_t first, const Tensor& bars,
                                            const Tensor& positives, const std::vector<double>& weights, double delta,
                                            int64_t images, double ratio) {
  SNNET_CHECK(similarity.dim() == 2, "similarity must have 2 dimensions, got ", similarity.dim());
  const OwnColumns own(similarity, labels, first);
  const int64_t d = memory.size(1);
  check_storage(memory, "memory", ScalarType::Float, own.n, d);
  check_storage(bars, "bars", ScalarType::Long, own.batch_size, own.sets);
  check_storage(positives, "positives", ScalarType::Long, own.batch_size, own.sets);
  SNNET_CHECK(static_cast<int>(weights.size()) == own.sets, "weights must be ", own.sets, " numbers, got ",
              weights.size());
  const Tensor rows = checked_index(order, own.batch_size);
  const int64_t size = rows.size(0), width = negatives.dim() == 2 ? negatives.size(1) : 0, count = width / kKeyBytes;
  check_storage(negatives, "negatives", ScalarType::Byte, size, kKeyBytes * count);
  Tensor losses = torch::stable::new_zeros(similarity, {own.batch_size}, ScalarType::Double);
  Tensor grad = torch::stable::new_zeros(similarity, {own.batch_size, d});
  Slopes slopes(own.batch_size);
  torch::stable::parallel_for(0, size, grain(own.n / 8 + 8 * count), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> keys(count);
    for (int64_t e = begin; e < end; ++e) {
      const int64_t b = rows.const_data_ptr<int64_t>()[e];
      const int64_t* bar = bars.const_data_ptr<int64_t>() + b * own.sets;
      double positive[kMostSets], hard[kMostSets];  // what an entry weighs
      for (int k = 0; k < own.sets; ++k) {
        const int64_t number = positives.const_data_ptr<int64_t>()[b * own.sets + k];
        positive[k] = delta * weights[k] / static_cast<double>(std::max<int64_t>(number, 1));
        hard[k] = weights[k] / static_cast<double>(std::max<int64_t>(hard_negatives(images - number, ratio), 1));
      }
      const float* row = own.row(b);
      double total = 0;
      const auto add = [&](int64_t column, uint32_t sets) {
        const double s = row[column];
        const int64_t key = signed_key(selection_key(row[column], static_cast<int32_t>(first + column)));
        double near = 0, far = 0;
        bool is_hard = false;
        for (int k = 0; k < own.sets; ++k) {
          if (sets >> k & 1) {
            near += positive[k];
          } else if (key >= bar[k]) {
            far += hard[k];
            is_hard = true;
          }
        }
        if (sets == 0 && !is_hard) return;
        const double up = sets != 0 ? near * (s - 1) : 0, down = is_hard ? far * (s + 1) : 0;
        total += (sets != 0 ? up * (s - 1) : 0) + (is_hard ? down * (s + 1) : 0);
        slopes[b].push_back({static_cast<float>(2 * (up + down)), static_cast<int32_t>(column)});
      };
      own.positives(b, false, [&](int64_t column) { add(column, own.sets_of(b, column)); });
      const uint8_t* given = negatives.const_data_ptr<uint8_t>() + e * width;
      std::memcpy(keys.data(), given, 8 * count);
      for (int64_t j = 0; j < count; ++j) {
        if (given[8 * count + j] != own.all) continue;  // none, or a positive of some set
        const int64_t column = column_of_key(static_cast<uint64_t>(keys[j]) ^ kSign) - first;
        SNNET_CHECK(column >= 0 && column < own.n, "negatives must be of own columns, got ", first + column);
        add(column, 0);
      }
      losses.mutable_data_ptr<double>()[b] = total;
    }
  });
  add_sparse_product(slopes, memory, floats(grad));
  return {losses, grad};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("largest_negatives", TORCH_BOX(&snnet::largest_negatives));
  m.impl("hard_negative_bars", TORCH_BOX(&snnet::hard_negative_bars));
  m.impl("own_columns_loss", TORCH_BOX(&snnet::own_columns_loss));
}
