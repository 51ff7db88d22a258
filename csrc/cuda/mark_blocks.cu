// The marks of a whole similarity cache: check and launch.
#include "mark_blocks.cuh"

#include "checked_blocks.cuh"

namespace snnet {
namespace {

// The blocks of a cache [n, n] that hold a value above the floor: uint8 [n, block_row_bytes(n)].
Tensor mark_cache_blocks(const Tensor& cache, double floor) {
  const Call call(cache);
  const int64_t n = rows_of(cache, "cache");
  call.check_storage(cache, "cache", ScalarType::Float, n, n);
  const Tensor bits = torch::stable::new_empty(cache, {n, block_row_bytes(n)}, ScalarType::Byte);
  const CacheBlocks blocks = checked_blocks(call, bits, floor, n);
  launch(mark_blocks_kernel, blocks_for(n * blocks.words, kMarkThreads / kWarp), kMarkThreads, 0, call.stream(),
         cache.const_data_ptr<float>(), blocks, n);
  return bits;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet_cuda, SNNET_DEVICE_KEY, m) {
  m.impl("mark_cache_blocks", TORCH_BOX(&snnet::mark_cache_blocks));
}
