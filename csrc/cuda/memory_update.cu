// The momentum update of the memory, alone and with its neighbour lists: checks and launches.
#include "memory_update.cuh"

#include <algorithm>
#include <optional>

#include "../common/apart.h"
#include "launch.cuh"
#include "list_rank.cuh"

namespace snnet {
namespace {

// The arguments of a momentum update of the memory.
struct RowUpdate {
  Tensor positions, live, alpha;  // keep what `update` points to
  MemoryUpdate update{};

  // `written`: what is written beside the memory.
  template <class... Written>
  RowUpdate(const Call& call, const Tensor& memory, const Tensor& index, const Tensor& features,
            const Tensor& momentum, const Written&... written)
      : positions(apart_from(call.checked_index(index), memory, written...)),
        live(apart_from(features, memory, written...)), alpha(apart_from(momentum, memory, written...)) {
    const int64_t n = rows_of(memory, "memory"), d = memory.size(1), batch_size = positions.size(0);
    call.check_storage(memory, "memory", ScalarType::Float, n, d);
    SNNET_CHECK(batch_size < std::numeric_limits<int32_t>::max(), "index has too many entries");
    call.check_matrix(features, "features", ScalarType::Float, batch_size, d);
    call.check_device(momentum, "momentum");
    SNNET_CHECK(momentum.scalar_type() == ScalarType::Float && momentum.dim() == 0,
                "momentum must be a 0-d float32 tensor");
    update.memory = memory.mutable_data_ptr<float>();
    update.index = positions.const_data_ptr<int64_t>();
    update.momentum = alpha.const_data_ptr<float>();
    update.features = live.const_data_ptr<float>();
    update.n = n;
    update.d = d;
    update.batch_size = static_cast<int32_t>(batch_size);
  }
};

// M[index] <- normalize(alpha M[index] + (1 - alpha) f)
void update_memory_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum) {
  const Call call(memory);
  const RowUpdate checked(call, memory, index, features, momentum);
  const MemoryUpdate& update = checked.update;
  if (update.n == 0) return;
  launch(update_rows_kernel, static_cast<unsigned>(update.batch_size), kUpdateThreads, 0, call.stream(), update);
}

// M[index] <- normalize(alpha M[index] + (1 - alpha) f), and its symmetric lists from similarity [B, n]. Lists on a GPU
// have no mirrors: mirrors is int32 [n, 0].
void update_memory_lists_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum,
                          const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                          const Tensor& mirrors, const std::optional<Tensor>& similarity) {
  const Call call(memory);
  const RowUpdate checked(call, memory, index, features, momentum, columns, values, counts, floors, mirrors);
  ListUpdate update{};
  update.rows = checked.update;
  const int64_t n = update.rows.n, batch_size = update.rows.batch_size;
  update.lists = lists_of_call(call, columns, values, counts, floors, n);
  call.check_storage(mirrors, "lists.mirrors", ScalarType::Int, n, 0);
  SNNET_CHECK(similarity.has_value(), "similarity must be given");
  call.check_matrix(*similarity, "similarity", ScalarType::Float, batch_size, n);
  if (batch_size == 0 || n == 0) return;
  const Tensor products = apart_from(*similarity, memory, columns, values, counts, floors, mirrors);
  update.similarity = products.const_data_ptr<float>();

  const int64_t capacity = update.lists.capacity;
  const int64_t segment = std::min<int64_t>(n, std::max<int64_t>(kFewestEvents, kEventsOfPlace * capacity));
  const int64_t slots = 3 * batch_size * segment + batch_size * batch_size;
  SNNET_CHECK(slots < std::numeric_limits<int32_t>::max(), "index has too many entries");
  const Tensor scratch = scratch_parts(
      call, ScratchPart(update.events, slots), ScratchPart(update.last, batch_size * segment),
      ScratchPart(update.entries, batch_size), ScratchPart(update.lengths, batch_size),
      ScratchPart(update.pairs, batch_size * batch_size));
  update.segment = static_cast<int32_t>(segment);

  const unsigned entries = blocks_for(batch_size, 1), rows = blocks_for(batch_size * (1 + kPartsOfEvents), 1);
  launch(follow_lists_kernel, entries, kUpdateThreads, 0, call.stream(), update);
  launch(rank_lists_kernel, rows, kUpdateThreads, 0, call.stream(), update);
  launch(write_lists_kernel, rows, kUpdateThreads, 0, call.stream(), update);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("update_memory_", TORCH_BOX(&snnet::update_memory_));
  m.impl("update_memory_lists_", TORCH_BOX(&snnet::update_memory_lists_));
}
