// Which of the compiled instruction sets is used.
#include <atomic>
#include <cstring>

#include "vector.h"

namespace snnet {

extern const VectorKernels baseline_kernels;
#if defined(__x86_64__) && defined(__GNUC__)
extern const VectorKernels avx2_kernels;
extern const VectorKernels avx512_kernels;
#endif

namespace {

struct InstructionSet {
  const char* name;
  const VectorKernels* kernels;
};

bool available(int level) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (level == 2) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (level == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return level == 0;
}

const InstructionSet kInstructionSets[] = {
    {"baseline", &baseline_kernels},
#if defined(__x86_64__) && defined(__GNUC__)
    {"avx2", &avx2_kernels},
    {"avx512", &avx512_kernels},
#endif
};
constexpr int kNumber = sizeof kInstructionSets / sizeof kInstructionSets[0];

std::atomic<int> chosen{-1};

int current() {
  int level = chosen.load(std::memory_order_relaxed);
  if (level < 0) {
    for (level = kNumber - 1; !available(level);) --level;
    chosen.store(level, std::memory_order_relaxed);
  }
  return level;
}

}  // namespace

const VectorKernels& vector_kernels() { return *kInstructionSets[current()].kernels; }

const char* instruction_set() { return kInstructionSets[current()].name; }

bool select_instruction_set(const char* name) {
  for (int level = 0; level < kNumber; ++level) {
    if (std::strcmp(name, kInstructionSets[level].name) == 0 && available(level)) {
      chosen.store(level, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace snnet
