// The row loops for the instruction set that every processor of the architecture has.
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA baseline
namespace snnet {
#include "vector.inl"
}  // namespace snnet
