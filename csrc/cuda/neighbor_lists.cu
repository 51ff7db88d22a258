// Building neighbour lists from products by tiles: checks and the launch.
#include "neighbor_lists.cuh"

#include "launch.cuh"

namespace snnet {
namespace {

// Takes products [rows, count] of the rows from first_row on with the columns from first_column on into lists.
void take_products_(const Tensor& products, int64_t first_row, int64_t first_column, const Tensor& columns,
                    const Tensor& values, const Tensor& counts, const Tensor& floors) {
  const Call call(products);
  const int64_t rows = rows_of(products, "products"), count = products.size(1), n = rows_of(columns, "lists.columns");
  call.check_storage(products, "products", ScalarType::Float, rows, count);
  const NeighborLists lists = lists_of_call(call, columns, values, counts, floors, n);
  SNNET_CHECK(first_row >= 0 && first_row + rows <= n && first_column >= 0 && first_column + count <= n,
              "products must lie in [", n, ", ", n, "]");
  SNNET_CHECK(lists.capacity >= 1 || n == 0, "lists.columns must have a place");
  if (count == 0) return;
  launch(take_products_kernel, blocks_for(rows, 1), kTakeThreads, 0, call.stream(), products.const_data_ptr<float>(),
         count, first_row, static_cast<int32_t>(first_column), lists);
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("take_products_", TORCH_BOX(&snnet::take_products_));
}
