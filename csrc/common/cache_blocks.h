// Blocks of columns of the similarity cache: a bit for each block of a row, set where it may hold a value above a
// floor. Packed as labels are, a column a block. A bit too many costs a look, one too few would be a wrong label.
#pragma once

#include "bits.h"

namespace snnet {

constexpr int kBlockColumns = 32;

SNNET_INLINE int64_t blocks_of_row(int64_t n) { return (n + kBlockColumns - 1) / kBlockColumns; }
SNNET_INLINE int64_t block_row_bytes(int64_t n) { return label_bytes(blocks_of_row(n)); }

}  // namespace snnet
