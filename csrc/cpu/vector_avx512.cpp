// The row loops for AVX512: everything after the pragma is compiled for it, so nothing is included after it.
#if defined(__x86_64__) && defined(__GNUC__)
#include "../common/recurrence.h"
#include "vector.h"

#define SNNET_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
namespace snnet {
#include "vector.inl"
}  // namespace snnet
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
