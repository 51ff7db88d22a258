// Blocks in a random order, one after another or a few at once, each with garbage in its shared memory.
#pragma once

#include <link.h>

#include <mutex>
#include <stdexcept>

#include "fibres.h"

namespace cuda_on_cpu {

// The library's thread-local memory: [begin, end).
struct Range {
  unsigned char *begin = nullptr, *end = nullptr;
};

inline Range thread_local_memory() {
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* found) {
        auto* data = static_cast<unsigned char*>(info->dlpi_tls_data);
        for (int h = 0; data != nullptr && h < info->dlpi_phnum; ++h) {
          unsigned char* end = data + info->dlpi_phdr[h].p_memsz;
          auto* dynamic = reinterpret_cast<unsigned char*>(snnet::shared_words);
          if (info->dlpi_phdr[h].p_type == PT_TLS && dynamic >= data && dynamic < end) {
            *static_cast<Range*>(found) = {data, end};
            return 1;
          }
        }
        return 0;
      },
      &range);
  return range;
}

constexpr unsigned char kCanaryByte = 0xc3;

inline void fill_shared(const Range& memory, std::size_t dynamic_bytes) {
  constexpr unsigned char kGarbage[] = {0xff, 0xa5, 0x7f};  // NaN or -1, a large negative, a large positive
  const unsigned char garbage = kGarbage[draw_below(3)];
  auto* dynamic = reinterpret_cast<unsigned char*>(snnet::shared_words);
  unsigned char* dynamic_end = dynamic + sizeof snnet::shared_words;
  if (memory.begin != nullptr) {
    std::memset(memory.begin, garbage, dynamic - memory.begin);
    std::memset(dynamic_end, garbage, memory.end - dynamic_end);
  }
  std::memset(dynamic, garbage, dynamic_bytes);
  std::memset(dynamic + dynamic_bytes, kCanaryByte, kCanary);
}

inline bool canary_is_whole(std::size_t dynamic_bytes) {
  const auto* canary = reinterpret_cast<unsigned char*>(snnet::shared_words) + dynamic_bytes;
  for (std::size_t i = 0; i < kCanary; ++i) {
    if (canary[i] != kCanaryByte) return false;
  }
  return true;
}

// A block that has begun and is not running, or room for one: its threads are kept.
struct Resident {
  Block state;
  uint3 position{};
  bool is_there = false;
  std::vector<unsigned char> shared;  // what its shared memory holds
};

// The parts of shared memory that a block may use.
template <class Use>
void for_shared(const Range& memory, std::size_t dynamic_bytes, Use use) {
  auto* dynamic = reinterpret_cast<unsigned char*>(snnet::shared_words);
  use(dynamic, dynamic_bytes + kCanary);
  if (memory.begin == nullptr) return;
  unsigned char* dynamic_end = dynamic + sizeof snnet::shared_words;
  use(memory.begin, static_cast<std::size_t>(dynamic - memory.begin));
  use(dynamic_end, static_cast<std::size_t>(memory.end - dynamic_end));
}

inline void begin_block() {
  block.ready.clear();
  block.ended = block.arrived = 0;
  block.idle_waits = 0;
  for (unsigned w = 0; 32 * w < block.threads; ++w) {
    const unsigned lanes = block.threads - 32 * w;
    block.warps[w] = {0, lanes >= 32 ? 0u : ~0u << lanes};  // lanes that do not exist count as ended
  }
  for (unsigned t = 0; t < block.threads; ++t) {
    block.fibres[t]->position = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
  }
  block.warp_first = draw_below(2) == 0;
  make_all_ready();
}

// Runs a block that has begun until it ends or is left for another; an error is left in block.error.
[[gnu::noinline]] inline void run_block(std::size_t dynamic_bytes) {
  block.is_left = false;
  if (_setjmp(block.host) == 0) {
    jmp_buf unused;
    reschedule(unused);
  }
  if (block.error.empty() && !canary_is_whole(dynamic_bytes)) {
    block.error = "a write past the end of the dynamic shared memory";
  }
}

// Takes turns among `residents` until all blocks have ended or one has failed; returns its error.
inline std::string run_blocks(const std::vector<int64_t>& order, dim3 grid, std::size_t dynamic_bytes,
                              const Block& launch, std::vector<Resident>& residents) {
  snnet::shared_words[0] = {};  // makes the TLS block exist
  const Range memory = thread_local_memory();
  std::size_t begun = 0, ended = 0;
  while (ended < order.size()) {
    Resident& resident = residents[draw_below(static_cast<std::size_t>(settings.blocks_at_once))];
    if (!resident.is_there && begun == order.size()) continue;
    std::swap(block, resident.state);
    if (resident.is_there) {
      const unsigned char* from = resident.shared.data();
      for_shared(memory, dynamic_bytes, [&](unsigned char* at, std::size_t size) {
        std::memcpy(at, from, size);
        from += size;
      });
      blockIdx = resident.position;
    } else {
      const int64_t b = order[begun++];
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      block.threads = launch.threads;
      block.run_thread = launch.run_thread;
      block.arguments = launch.arguments;
      while (block.fibres.size() < block.threads) block.fibres.push_back(new Fibre());
      block.error.clear();
      fill_shared(memory, dynamic_bytes);
      begin_block();
    }
    run_block(dynamic_bytes);
    resident.is_there = block.is_left && block.error.empty();
    ended += !resident.is_there;
    if (resident.is_there) {
      resident.position = blockIdx;
      resident.shared.clear();
      for_shared(memory, dynamic_bytes, [&](unsigned char* at, std::size_t size) {
        resident.shared.insert(resident.shared.end(), at, at + size);
      });
    }
    const std::string error = block.error;
    block.threads = 0;
    std::swap(block, resident.state);
    if (resident.is_there) resident.state.threads = launch.threads;
    if (!error.empty()) return error;
  }
  return "";
}

inline void run_grid(dim3 grid, dim3 threads, std::size_t dynamic_bytes, void (*run_thread)(const void*),
                     const void* arguments) {
  static std::mutex one_launch_at_a_time;
  static std::vector<Resident> residents(1);
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  ++settings.launches;
  Block launch;
  launch.threads = threads.x * threads.y * threads.z;
  launch.run_thread = run_thread;
  launch.arguments = arguments;
  gridDim = grid;
  blockDim = threads;
  std::vector<int64_t> order(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  for (std::size_t b = 0; b < order.size(); ++b) {
    const unsigned place = draw_below(b + 1);
    order[b] = order[place];
    order[place] = static_cast<int64_t>(b);
  }
  const auto most = static_cast<std::size_t>(settings.blocks_at_once);
  if (residents.size() < most) residents.resize(most);  // never fewer: their threads are kept
  const std::string error = run_blocks(order, grid, dynamic_bytes, launch, residents);
  if (error.empty()) return;
  for (Resident& resident : residents) {
    resident.is_there = false;
    for (Fibre* fibre : resident.state.fibres) fibre->begun = false;
  }
  throw std::runtime_error(error);
}

}  // namespace cuda_on_cpu
