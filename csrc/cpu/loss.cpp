// The mutual label loss of up to three label sets with its gradient, from one selection a row.
#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "../common/loss.h"
#include "products.h"
#include "selection.h"
#include "sparse_product.h"

namespace snnet {
namespace {

constexpr int64_t kEntriesAtOnce = int64_t{1} << 20;  // of similarity, and slopes that are kept
constexpr int64_t kFewestRows = 16;                   // at once, however long, so that threads have work

constexpr int64_t kMostSimilarities = int64_t{1} << 28;  // entries of s that are held at once, 1 GiB

// The loss of similarity [B, n]; weights of the label sets sum to 1, sets of weight 0 are left out.
struct Loss {
  const float* similarity = nullptr;
  int64_t batch_size, n;
  int sets = 0;
  const uint8_t* labels[kMostSets];
  double weights[kMostSets];
  double delta, ratio;
  bool is_mmcl;  // kind "mmcl", else "l2"
  std::vector<Tensor> held;  // keeps the labels alive
};

// A column that is positive in some label set.
struct Positive {
  int32_t column;
  uint32_t sets;       // bit k: positive in set k
  double hard_weight;  // of the sets in which it is a hard negative
};

// Buffers of one thread.
struct RowScratch {
  SelectionScratch selection;
  std::vector<uint64_t> any;        // the union of the label sets
  std::vector<int32_t> before;      // positives in the words before each word
  std::vector<Positive> positives;  // by rising column
};

// Finds the positives of row b.
void open_labels(const Loss& loss, int64_t b, RowScratch& scratch) {
  const int64_t words = (loss.n + 63) / 64, width = label_bytes(loss.n);
  const uint8_t* rows[kMostSets];
  for (int k = 0; k < loss.sets; ++k) rows[k] = loss.labels[k] + b * width;
  scratch.any.resize(words);
  scratch.before.resize(words);
  scratch.positives.clear();
  for (int64_t w = 0; w < words; ++w) {
    uint64_t any = 0;
    for (int k = 0; k < loss.sets; ++k) any |= label_word(rows[k], w);
    any &= columns_of_word(w, loss.n);
    scratch.any[w] = any;
    scratch.before[w] = static_cast<int32_t>(scratch.positives.size());
    for (; any != 0; any &= any - 1) {
      const int64_t column = 64 * w + lowest_bit(any);
      uint32_t sets = 0;
      for (int k = 0; k < loss.sets; ++k) sets |= static_cast<uint32_t>(bit_at(rows[k], column)) << k;
      scratch.positives.push_back({static_cast<int32_t>(column), sets, 0});
    }
  }
}

// The positive at `column`, or null.
Positive* find_positive(RowScratch& scratch, int32_t column) {
  const uint64_t any = scratch.any[column / 64], bit = uint64_t{1} << (column % 64);
  if ((any & bit) == 0) return nullptr;
  return &scratch.positives[scratch.before[column / 64] + count_bits(any & (bit - 1))];
}

// What one entry of each kind weighs in the loss of a row, and how many hard negatives each label set has.
struct RowWeights {
  int64_t hard[kMostSets];
  double positive[kMostSets], hard_negative[kMostSets];
};

RowWeights weights_of_row(const Loss& loss, const std::vector<Positive>& positives) {
  RowWeights weights;
  for (int k = 0; k < loss.sets; ++k) {
    int64_t count = 0;
    for (const Positive& positive : positives) count += positive.sets >> k & 1;
    const int64_t negatives = loss.n - count;
    weights.hard[k] = hard_negatives(negatives, loss.ratio);
    const double share = loss.weights[k] / static_cast<double>(loss.batch_size);
    weights.positive[k] = count > 0 ? loss.delta * share / static_cast<double>(count) : 0;
    weights.hard_negative[k] = negatives > 0 ? share / static_cast<double>(weights.hard[k]) : 0;
  }
  return weights;
}

// kind "mmcl": the loss of row b, its slopes appended (each column once).
double hard_negative_row(const Loss& loss, int64_t b, RowScratch& scratch, std::vector<Entry>& slopes) {
  const float* row = loss.similarity + b * loss.n;
  open_labels(loss, b, scratch);
  std::vector<Positive>& positives = scratch.positives;
  RowWeights weights = weights_of_row(loss, positives);
  int64_t left = 0, fewest = loss.n;
  for (int k = 0; k < loss.sets; ++k) {
    if (weights.hard[k] == 0) continue;
    left += weights.hard[k];
    fewest = std::min(fewest, weights.hard[k]);
  }
  // The `most` largest entries contain the hard negatives of every label set. Every set needs at least `fewest`
  // negatives, so the first `fewest` entries need no order.
  const int64_t most = std::max<int64_t>(static_cast<int64_t>(loss.ratio * static_cast<double>(loss.n)), 1) +
                       static_cast<int64_t>(positives.size());
  const auto& largest = select_largest(row, loss.n, most, scratch.selection, fewest);
  slopes.reserve(slopes.size() + largest.size() + positives.size());
  double total = 0;
  for (uint64_t key : largest) {
    if (left == 0) break;
    const int32_t column = column_of_key(key);
    Positive* positive = find_positive(scratch, column);
    const uint32_t sets = positive != nullptr ? positive->sets : 0;
    double weight = 0;
    for (int k = 0; k < loss.sets; ++k) {
      if (weights.hard[k] == 0 || (sets >> k & 1)) continue;
      --weights.hard[k];
      --left;
      weight += weights.hard_negative[k];
    }
    if (positive != nullptr) {
      positive->hard_weight = weight;
    } else if (weight > 0) {
      const double difference = static_cast<double>(value_of_key(key)) + 1;
      total += weight * difference * difference;
      slopes.push_back({static_cast<float>(2 * weight * difference), column});
    }
  }
  for (const Positive& entry : positives) {
    double weight = 0;
    for (int k = 0; k < loss.sets; ++k) weight += entry.sets >> k & 1 ? weights.positive[k] : 0;
    const double s = row[entry.column];
    double slope = weight * (s - 1);
    total += slope * (s - 1);
    if (entry.hard_weight > 0) {  // 0 times an infinity is NaN
      total += entry.hard_weight * (s + 1) * (s + 1);
      slope += entry.hard_weight * (s + 1);
    }
    slopes.push_back({static_cast<float>(2 * slope), entry.column});
  }
  return total;
}

// kind "l2": the loss of row b; its slopes are 2 s / B everywhere (written to grad if not null) plus those
// appended. With the mean label ȳ, y² = y gives Σ_k λ_k (s − y_k)² = s² + ȳ (1 − 2 s).
double square_row(const Loss& loss, int64_t b, float* grad, RowScratch& scratch, std::vector<Entry>& slopes) {
  const float* row = loss.similarity + b * loss.n;
  open_labels(loss, b, scratch);
  const double scale = 2.0 / static_cast<double>(loss.batch_size);
  double total = vector_kernels().squares(grad, row, static_cast<float>(scale), loss.n);
  for (const Positive& entry : scratch.positives) {
    double mean = 0;
    for (int k = 0; k < loss.sets; ++k) mean += entry.sets >> k & 1 ? loss.weights[k] : 0;
    const double s = row[entry.column];
    if (std::isfinite(s)) total += mean * (1 - 2 * s);  // what is infinite has that square whatever its label
    slopes.push_back({static_cast<float>(-scale * mean), entry.column});
  }
  return total / static_cast<double>(loss.batch_size);
}

Loss check_loss(int64_t batch_size, int64_t n, const std::vector<Tensor>& labels,
                const std::vector<double>& weights, const std::string& kind, double delta, double ratio) {
  SNNET_CHECK(n < std::numeric_limits<int32_t>::max(), "similarity has too many columns");
  SNNET_CHECK(kind == "mmcl" || kind == "l2", "kind must be 'mmcl' or 'l2', got '", kind, "'");
  const double sum = checked_weight_sum(labels.size(), weights, delta, ratio);
  Loss loss{};
  loss.batch_size = batch_size;
  loss.n = n;
  loss.delta = delta;
  loss.ratio = ratio;
  loss.is_mmcl = kind == "mmcl";
  for (std::size_t k = 0; k < labels.size(); ++k) {
    check_matrix(labels[k], "labels", ScalarType::Byte, batch_size, label_bytes(n));
    if (weights[k] == 0) continue;
    loss.held.push_back(torch::stable::contiguous(labels[k]));
    loss.labels[loss.sets] = loss.held.back().const_data_ptr<uint8_t>();
    loss.weights[loss.sets++] = weights[k] / sum;
  }
  return loss;
}

// The losses of rows [from, to) and their slopes; kind "l2" also writes 2 s / B to grad [B, n] if not null.
double reduce_rows(const Loss& loss, int64_t from, int64_t to, float* grad, Slopes& slopes) {
  std::vector<double> rows(to - from);
  torch::stable::parallel_for(from, to, grain(4 * loss.n), [&](int64_t begin, int64_t end) {
    RowScratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      float* own = grad == nullptr ? nullptr : grad + b * loss.n;
      rows[b - from] = loss.is_mmcl ? hard_negative_row(loss, b, scratch, slopes[b])
                                    : square_row(loss, b, own, scratch, slopes[b]);
    }
  });
  double total = 0;
  for (double row : rows) total += row;
  return total;
}

// Calls use(slopes) with the slopes of some rows at a time, those of the others empty; the loss of the batch.
template <class Use>
double reduce_batch(const Loss& loss, float* grad, const Use& use) {
  const int64_t step = std::max(kFewestRows, kEntriesAtOnce / loss.n);
  Slopes slopes(loss.batch_size);
  double total = 0;
  int64_t kept = 0;
  for (int64_t from = 0; from < loss.batch_size; from += step) {
    const int64_t to = std::min(from + step, loss.batch_size);
    total += reduce_rows(loss, from, to, grad, slopes);
    for (int64_t b = from; b < to; ++b) kept += static_cast<int64_t>(slopes[b].size());
    if (kept <= kEntriesAtOnce && to < loss.batch_size) continue;
    use(slopes);
    slopes = Slopes(loss.batch_size);
    kept = 0;
  }
  return total;
}

// similarity [B, n] -> loss [], its gradient [B, n]
std::tuple<Tensor, Tensor> mutual_label_loss(const Tensor& similarity, const std::vector<Tensor>& labels,
                                             const std::vector<double>& weights, const std::string& kind,
                                             double delta, double ratio) {
  SNNET_CHECK(similarity.dim() == 2, "similarity must have 2 dimensions, got ", similarity.dim());
  const int64_t batch_size = similarity.size(0), n = similarity.size(1);
  check_matrix(similarity, "similarity", ScalarType::Float, batch_size, n);
  Loss loss = check_loss(batch_size, n, labels, weights, kind, delta, ratio);
  const Tensor s = torch::stable::contiguous(similarity);
  loss.similarity = const_floats(s);
  Tensor value = torch::stable::new_zeros(similarity, {});
  Tensor grad = torch::stable::new_zeros(similarity, {batch_size, n});
  if (batch_size > 0 && n > 0) {
    *floats(value) = static_cast<float>(reduce_batch(loss, floats(grad), [&](const Slopes& slopes) {
      for (int64_t b = 0; b < batch_size; ++b) {
        for (const Entry& entry : slopes[b]) floats(grad)[b * n + entry.column] += entry.value;
      }
    }));
  }
  return {value, grad};
}

// features [B, d], memory [n, d] -> loss [], its gradient [B, d]
std::tuple<Tensor, Tensor> fused_mutual_label_loss(const Tensor& features, const Tensor& memory,
                                                   const std::optional<Tensor>& similarity,
                                                   const std::vector<Tensor>& labels,
                                                   const std::vector<double>& weights, const std::string& kind,
                                                   double delta, double ratio) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1), batch_size = rows_of(features, "features");
  check_storage(memory, "memory", ScalarType::Float, n, d);
  check_matrix(features, "features", ScalarType::Float, batch_size, d);
  if (similarity) check_matrix(*similarity, "similarity", ScalarType::Float, batch_size, n);
  Loss loss = check_loss(batch_size, n, labels, weights, kind, delta, ratio);
  const int64_t rows = std::max<int64_t>(1, kMostSimilarities / std::max<int64_t>(n, 1));
  Tensor value = torch::stable::new_zeros(memory, {});
  Tensor grad = torch::stable::new_zeros(memory, {batch_size, d});
  if (!similarity && rows < batch_size) {  // so many samples at a time: the loss is a mean over samples
    double total = 0;
    for (int64_t from = 0; from < batch_size; from += rows) {
      const int64_t count = std::min(rows, batch_size - from);
      const auto part_of = [&](Tensor tensor) { return torch::stable::narrow(tensor, 0, from, count); };
      std::vector<Tensor> own;
      for (const Tensor& label : labels) own.push_back(part_of(label));
      const auto [part, part_grad] = fused_mutual_label_loss(part_of(features), memory, std::nullopt, own, weights,
                                                             kind, delta, ratio);
      const double share = static_cast<double>(count) / static_cast<double>(batch_size);
      total += share * static_cast<double>(*const_floats(part));
      vector_kernels().add_scaled(floats(grad) + from * d, const_floats(part_grad), static_cast<float>(share),
                                  count * d);
    }
    *floats(value) = static_cast<float>(total);
    return {value, grad};
  }
  if (batch_size == 0 || n == 0) return {value, grad};
  const Tensor s = similarity ? torch::stable::contiguous(*similarity) : inner_products(features, memory);
  loss.similarity = const_floats(s);
  if (!loss.is_mmcl) {
    vector_kernels().add_scaled(floats(grad), const_floats(weighted_rows(s, memory)),
                                static_cast<float>(2.0 / static_cast<double>(batch_size)), batch_size * d);
  }
  *floats(value) = static_cast<float>(reduce_batch(loss, nullptr, [&](const Slopes& slopes) {
    add_sparse_product(slopes, memory, floats(grad));
  }));
  return {value, grad};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("mutual_label_loss", TORCH_BOX(&snnet::mutual_label_loss));
  m.impl("fused_mutual_label_loss", TORCH_BOX(&snnet::fused_mutual_label_loss));
}
