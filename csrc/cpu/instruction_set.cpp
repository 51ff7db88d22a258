// Which of the compiled instruction sets is used.
#include <atomic>
#include <cstring>
#include <iterator>

#include "vector.h"

namespace snnet {

namespace {

struct InstructionSet {
  const char* name;
  const VectorKernels* kernels;
  bool (*is_available)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const InstructionSet kInstructionSets[] = {  // the widest last
    {"baseline", &baseline_kernels, always},
#if defined(__x86_64__)
    {"avx2", &avx2_kernels, has_avx2},
    {"avx512", &avx512_kernels, has_avx512},
#endif
};

std::atomic<const InstructionSet*> chosen{nullptr};

const InstructionSet& current() {
  const InstructionSet* set = chosen.load(std::memory_order_relaxed);
  if (set == nullptr) {
    set = std::end(kInstructionSets) - 1;
    while (!set->is_available()) --set;
    chosen.store(set, std::memory_order_relaxed);
  }
  return *set;
}

}  // namespace

const VectorKernels& vector_kernels() { return *current().kernels; }

const char* instruction_set() { return current().name; }

bool select_instruction_set(const char* name) {
  for (const InstructionSet& set : kInstructionSets) {
    if (std::strcmp(name, set.name) != 0 || !set.is_available()) continue;
    chosen.store(&set, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace snnet
