// The mutual label loss of up to three label sets with its gradient, from one selection a row.
#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "products.h"
#include "selection.h"
#include "sparse_product.h"

namespace snnet {
namespace {

constexpr int kMostSets = 3;

// The loss of similarity [B, n]; weights of the label sets sum to 1, sets of weight 0 are left out.
struct Loss {
  const float* similarity;
  int64_t batch_size, n;
  int sets = 0;
  const uint8_t* labels[kMostSets];
  double weights[kMostSets];
  double delta, ratio;
  bool hard_negatives;  // kind "mmcl", else "l2"
  std::vector<Tensor> held;  // keeps the labels alive

  const float* row(int64_t b) const { return similarity + b * n; }
  uint64_t word(int set, int64_t b, int64_t w) const {
    return label_word(labels[set] + b * label_bytes(n), w) & columns_of_word(w, n);
  }
  bool is_positive(int set, int64_t b, int64_t column) const {
    return bit_at(labels[set] + b * label_bytes(n), column);
  }
};

// Calls visit(column) for each column that is positive in some label set.
template <class Visit>
void visit_positives(const Loss& loss, int64_t b, const Visit& visit) {
  for (int64_t w = 0; w < (loss.n + 63) / 64; ++w) {
    uint64_t any = 0;
    for (int k = 0; k < loss.sets; ++k) any |= loss.word(k, b, w);
    for (; any != 0; any &= any - 1) visit(64 * w + lowest_bit(any));
  }
}

// kind "mmcl": the loss of row b, its slopes appended (a column may come twice).
double hard_negative_row(const Loss& loss, int64_t b, SelectionScratch& scratch, std::vector<Entry>& slopes) {
  const float* row = loss.row(b);
  int64_t positives[kMostSets] = {}, any = 0, hard[kMostSets], left = 0;
  visit_positives(loss, b, [&](int64_t column) {
    ++any;
    for (int k = 0; k < loss.sets; ++k) positives[k] += loss.is_positive(k, b, column);
  });
  double positive_weight[kMostSets], hard_weight[kMostSets];
  for (int k = 0; k < loss.sets; ++k) {
    const int64_t negatives = loss.n - positives[k];
    const auto wanted = static_cast<int64_t>(std::floor(loss.ratio * static_cast<double>(negatives)));
    hard[k] = std::min(std::max<int64_t>(wanted, 1), negatives);
    left += hard[k];
    const double share = loss.weights[k] / static_cast<double>(loss.batch_size);
    positive_weight[k] = positives[k] > 0 ? loss.delta * share / static_cast<double>(positives[k]) : 0;
    hard_weight[k] = hard[k] > 0 ? share / static_cast<double>(hard[k]) : 0;
  }
  const auto most_hard = static_cast<int64_t>(loss.ratio * static_cast<double>(loss.n));
  double total = 0;
  // The hard negatives of every label set are among so many of the largest.
  for (uint64_t key : select_largest(row, loss.n, std::max<int64_t>(most_hard, 1) + any, scratch)) {
    if (left == 0) break;
    const int32_t column = column_of_key(key);
    double weight = 0;
    for (int k = 0; k < loss.sets; ++k) {
      if (hard[k] == 0 || loss.is_positive(k, b, column)) continue;
      --hard[k];
      --left;
      weight += hard_weight[k];
    }
    if (weight == 0) continue;
    const double difference = static_cast<double>(row[column]) + 1;
    total += weight * difference * difference;
    slopes.push_back({static_cast<float>(2 * weight * difference), column});
  }
  visit_positives(loss, b, [&](int64_t column) {
    double weight = 0;
    for (int k = 0; k < loss.sets; ++k) weight += loss.is_positive(k, b, column) ? positive_weight[k] : 0;
    const double difference = static_cast<double>(row[column]) - 1;
    total += weight * difference * difference;
    slopes.push_back({static_cast<float>(2 * weight * difference), static_cast<int32_t>(column)});
  });
  return total;
}

// kind "l2": the loss of row b; its slopes are 2 s / B everywhere (written to grad if not null) plus those
// appended. With the mean label ȳ, y² = y gives Σ_k λ_k (s − y_k)² = s² + ȳ (1 − 2 s).
double square_row(const Loss& loss, int64_t b, float* grad, std::vector<Entry>& slopes) {
  const float* row = loss.row(b);
  const double scale = 2.0 / static_cast<double>(loss.batch_size);
  double total = vector_kernels().squares(grad, row, static_cast<float>(scale), loss.n);
  visit_positives(loss, b, [&](int64_t column) {
    double mean = 0;
    for (int k = 0; k < loss.sets; ++k) mean += loss.is_positive(k, b, column) ? loss.weights[k] : 0;
    total += mean * (1 - 2 * static_cast<double>(row[column]));
    slopes.push_back({static_cast<float>(-scale * mean), static_cast<int32_t>(column)});
  });
  return total / static_cast<double>(loss.batch_size);
}

Loss check_loss(int64_t batch_size, int64_t n, const std::vector<Tensor>& labels,
                const std::vector<double>& weights, const std::string& kind, double delta, double ratio) {
  SNNET_CHECK(n < std::numeric_limits<int32_t>::max(), "similarity has too many columns");
  SNNET_CHECK(!labels.empty() && labels.size() <= kMostSets && labels.size() == weights.size(),
              "labels and weights must have the same length of 1 to 3, got ", labels.size(), " and ",
              weights.size());
  SNNET_CHECK(kind == "mmcl" || kind == "l2", "kind must be 'mmcl' or 'l2', got '", kind, "'");
  SNNET_CHECK(std::isfinite(delta) && delta >= 0, "delta must be finite and not negative, got ", delta);
  SNNET_CHECK(ratio >= 0 && ratio <= 1, "hard_negative_ratio must lie in [0, 1], got ", ratio);
  double sum = 0;
  for (double weight : weights) {
    SNNET_CHECK(std::isfinite(weight) && weight >= 0, "weights must be finite and not negative, got ", weight);
    sum += weight;
  }
  SNNET_CHECK(sum > 0, "weights must not all be zero");
  Loss loss{};
  loss.batch_size = batch_size;
  loss.n = n;
  loss.delta = delta;
  loss.ratio = ratio;
  loss.hard_negatives = kind == "mmcl";
  for (std::size_t k = 0; k < labels.size(); ++k) {
    check_matrix(labels[k], "labels", ScalarType::Byte, batch_size, label_bytes(n));
    if (weights[k] == 0) continue;
    loss.held.push_back(torch::stable::contiguous(labels[k]));
    loss.labels[loss.sets] = loss.held.back().const_data_ptr<uint8_t>();
    loss.weights[loss.sets++] = weights[k] / sum;
  }
  return loss;
}

// Calls finish(b, slopes) for each row after its loss is known; the loss of the batch.
template <class Finish>
double reduce_rows(const Loss& loss, float* grad, const Finish& finish) {
  std::vector<double> rows(loss.batch_size);
  torch::stable::parallel_for(0, loss.batch_size, grain(4 * loss.n), [&](int64_t begin, int64_t end) {
    SelectionScratch scratch;
    std::vector<Entry> slopes;
    for (int64_t b = begin; b < end; ++b) {
      slopes.clear();
      rows[b] = loss.hard_negatives ? hard_negative_row(loss, b, scratch, slopes)
                                    : square_row(loss, b, grad == nullptr ? nullptr : grad + b * loss.n, slopes);
      finish(b, slopes);
    }
  });
  double total = 0;
  for (double row : rows) total += row;
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
    float* slope = floats(grad);
    *floats(value) = static_cast<float>(reduce_rows(loss, slope, [&](int64_t b, const std::vector<Entry>& slopes) {
      for (const Entry& entry : slopes) slope[b * n + entry.column] += entry.value;
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
  Tensor value = torch::stable::new_zeros(memory, {});
  Tensor grad = torch::stable::new_zeros(memory, {batch_size, d});
  if (batch_size == 0 || n == 0) return {value, grad};
  const Tensor s = similarity ? torch::stable::contiguous(*similarity) : inner_products(features, memory);
  loss.similarity = const_floats(s);
  std::vector<std::vector<Entry>> slopes(batch_size);
  *floats(value) = static_cast<float>(
      reduce_rows(loss, nullptr, [&](int64_t b, const std::vector<Entry>& own) { slopes[b] = own; }));
  if (!loss.hard_negatives) {
    vector_kernels().add_scaled(floats(grad), const_floats(weighted_rows(s, memory)),
                                static_cast<float>(2.0 / static_cast<double>(batch_size)), batch_size * d);
  }
  add_sparse_product(by_columns(slopes, n), memory, batch_size, floats(grad));
  return {value, grad};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("mutual_label_loss", TORCH_BOX(&snnet::mutual_label_loss));
  m.impl("fused_mutual_label_loss", TORCH_BOX(&snnet::fused_mutual_label_loss));
}
