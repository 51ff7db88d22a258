// The mutual label loss: checks and launches.
#include "loss.cuh"

#include <string>
#include <tuple>
#include <vector>

#include "launch.cuh"

namespace snnet {
namespace {

// What the kernels read, and what keeps it alive.
struct CheckedLoss {
  LabelLoss kernel{};
  std::vector<Tensor> held;
};

CheckedLoss check_loss(const Call& call, const Tensor& similarity, const std::vector<Tensor>& labels,
                       const std::vector<double>& weights, double delta, double ratio) {
  SNNET_CHECK(similarity.dim() == 2, "similarity must have 2 dimensions, got ", similarity.dim());
  const int64_t batch_size = similarity.size(0), n = similarity.size(1);
  call.check_matrix(similarity, "similarity", ScalarType::Float, batch_size, n);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  SNNET_CHECK(n < kMost && batch_size < kMost, "similarity has too many rows or columns");
  const double sum = checked_weight_sum(labels.size(), weights, delta, ratio);
  CheckedLoss checked;
  LabelLoss& loss = checked.kernel;
  checked.held.push_back(torch::stable::contiguous(similarity));
  loss.similarity = checked.held.back().const_data_ptr<float>();
  loss.batch_size = batch_size;
  loss.n = n;
  loss.words = label_bytes(n) / static_cast<int64_t>(sizeof(uint32_t));
  loss.delta = delta;
  loss.ratio = ratio;
  for (std::size_t k = 0; k < labels.size(); ++k) {
    call.check_matrix(labels[k], "labels", ScalarType::Byte, batch_size, label_bytes(n));
    if (weights[k] == 0) continue;
    Tensor own = torch::stable::contiguous(labels[k]);
    if (!is_aligned(own.const_data_ptr())) own = torch::stable::clone(own);
    loss.labels[loss.sets] = words<const uint32_t>(own);
    loss.weights[loss.sets++] = weights[k] / sum;
    checked.held.push_back(own);
  }
  return checked;
}

// The loss of each row to row_losses [B]; either grad [B, n] or entries [B, n] with entry_counts [B].
void launch_hard_negatives(const Call& call, const LabelLoss& loss, double* row_losses, float* grad, Entry* entries,
                           int32_t* entry_counts) {
  const std::size_t staged = sizeof(LossShared) + static_cast<std::size_t>(loss.n) * sizeof(uint32_t);
  const bool fits = staged <= static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  launch(fits ? hard_negative_loss_kernel<true> : hard_negative_loss_kernel<false>,
         static_cast<unsigned>(loss.batch_size), kLossThreads, fits ? staged : sizeof(LossShared), call.stream(), loss,
         row_losses, grad, entries, entry_counts);
}

// similarity [B, n] -> loss [], its gradient [B, n]
std::tuple<Tensor, Tensor> mutual_label_loss(const Tensor& similarity, const std::vector<Tensor>& labels,
                                             const std::vector<double>& weights, const std::string& kind, double delta,
                                             double ratio) {
  SNNET_CHECK(kind == "mmcl" || kind == "l2", "kind must be 'mmcl' or 'l2', got '", kind, "'");
  const Call call(similarity);
  const CheckedLoss checked = check_loss(call, similarity, labels, weights, delta, ratio);
  const LabelLoss& loss = checked.kernel;
  const int64_t batch_size = loss.batch_size, n = loss.n;
  Tensor grad = torch::stable::new_empty(similarity, {batch_size, n});
  if (batch_size == 0 || n == 0) return {torch::stable::new_zeros(similarity, {}), grad};
  Tensor value = torch::stable::new_empty(similarity, {});
  const bool hard = kind == "mmcl";
  const int64_t parts_of_row = hard ? 1 : (n + kSquareColumns - 1) / kSquareColumns, parts = batch_size * parts_of_row;
  Tensor part_losses = torch::stable::new_empty(similarity, {parts}, ScalarType::Double);
  double* losses = part_losses.mutable_data_ptr<double>();
  float* slopes = grad.mutable_data_ptr<float>();
  if (hard) {
    launch_hard_negatives(call, loss, losses, slopes, nullptr, nullptr);
  } else {
    launch(square_loss_kernel, blocks_for(parts, 1), kSquareThreads, 0, call.stream(), loss, parts_of_row, losses,
           slopes);
  }
  launch(sum_loss_kernel, 1, kSumThreads, 0, call.stream(), losses, parts, value.mutable_data_ptr<float>());
  return {value, grad};
}

// kind "mmcl": similarity [B, n], memory [n, d] -> loss [], its gradient times the memory [B, d]
std::tuple<Tensor, Tensor> sparse_label_loss(const Tensor& similarity, const Tensor& memory,
                                             const std::vector<Tensor>& labels, const std::vector<double>& weights,
                                             double delta, double ratio) {
  const Call call(similarity);
  const CheckedLoss checked = check_loss(call, similarity, labels, weights, delta, ratio);
  const LabelLoss& loss = checked.kernel;
  const int64_t batch_size = loss.batch_size, n = rows_of(memory, "memory"), d = memory.size(1);
  call.check_storage(memory, "memory", ScalarType::Float, loss.n, d);
  if (batch_size == 0 || n == 0 || d == 0) {
    const Tensor value = batch_size == 0 || n == 0
                             ? torch::stable::new_zeros(memory, {})
                             : std::get<0>(mutual_label_loss(similarity, labels, weights, "mmcl", delta, ratio));
    return {value, torch::stable::new_zeros(memory, {batch_size, d})};
  }
  Tensor value = torch::stable::new_empty(memory, {});
  Tensor grad = torch::stable::new_empty(memory, {batch_size, d});
  Tensor row_losses = torch::stable::new_empty(memory, {batch_size}, ScalarType::Double);
  // Room for rows without a zero; what is not written is never touched.
  static_assert(sizeof(Entry) == sizeof(int64_t));
  Tensor entries = torch::stable::new_empty(memory, {batch_size, n}, ScalarType::Long);
  Tensor entry_counts = torch::stable::new_empty(memory, {batch_size}, ScalarType::Int);
  auto* slopes = reinterpret_cast<Entry*>(entries.mutable_data_ptr<int64_t>());
  double* losses = row_losses.mutable_data_ptr<double>();
  int32_t* counts = entry_counts.mutable_data_ptr<int32_t>();
  launch_hard_negatives(call, loss, losses, nullptr, slopes, counts);
  const float* rows = memory.const_data_ptr<float>();
  const bool aligned = is_aligned(rows) && d % 4 == 0;
  const int64_t dimensions = kWarp * (aligned ? 4 : 1);  // of a block
  launch(aligned ? sparse_product_kernel<4> : sparse_product_kernel<1>,
         blocks_for((d + dimensions - 1) / dimensions * batch_size, 1), kProductThreads, 0, call.stream(), slopes,
         counts, rows, n, d, batch_size, grad.mutable_data_ptr<float>(), losses, value.mutable_data_ptr<float>());
  return {value, grad};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("mutual_label_loss", TORCH_BOX(&snnet::mutual_label_loss));
  m.impl("sparse_label_loss", TORCH_BOX(&snnet::sparse_label_loss));
}
