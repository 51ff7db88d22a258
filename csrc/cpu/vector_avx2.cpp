// The row loops for AVX2: everything after the pragma is compiled for it, so nothing is included after it.
#if defined(__x86_64__) && defined(__GNUC__)
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
namespace snnet {
#include "vector.inl"
}  // namespace snnet
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
