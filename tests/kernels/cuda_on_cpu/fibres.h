// CUDA threads as fibres: one block after another, a fibre a thread, switched where threads wait for each other.
//
// A fibre runs until it waits (barrier, warp operation, some atomics) or ends. In some blocks who runs next is drawn
// at random, in others one warp runs as far ahead of the rest as it can. A missing barrier therefore lets threads
// read what others have not written yet, and shared memory holds garbage at first. What a GPU leaves undefined is
// reported: a barrier or a warp operation that some thread never reaches, an index past a shared array, an access
// that is not aligned.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

// Shared memory is thread-local to the one thread of the host that runs the block, so that all of it lies in the
// library's TLS block, where it can be filled with garbage before each block.
#define __shared__ constinit thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostShared = 227 * 1024;
constexpr std::size_t kCanary = 256;
constexpr int kMostIdleWaits = 100000;

}  // namespace cuda_on_cpu

namespace snnet {
// What `extern __shared__` in csrc/cuda/device.cuh names.
struct alignas(16) SharedWord {
  unsigned char bytes[16];
};
inline constinit thread_local SharedWord shared_words[(cuda_on_cpu::kMostShared + cuda_on_cpu::kCanary) / 16] = {};
}  // namespace snnet

namespace cuda_on_cpu {

enum class Operation {
  syncwarp, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all, match_any, match_all,
  reduce_add, reduce_min, reduce_max, reduce_min_signed, reduce_max_signed, reduce_and, reduce_or, reduce_xor
};

inline const char* name_of(Operation operation) {
  constexpr const char* kNames[] = {
      "__syncwarp",      "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",
      "__ballot_sync",   "__any_sync",        "__all_sync",        "__match_any_sync",  "__match_all_sync",
      "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync",
      "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync"};
  return kNames[static_cast<int>(operation)];
}

struct Place {
  const char* file;
  int line;
  bool operator==(const Place& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

struct Fibre {
  enum class State { ended, ready, at_barrier, in_warp };
  jmp_buf context;
  ucontext_t start;
  bool begun = false;  // its stack holds the loop of run_threads
  State state = State::ended;
  uint3 position;
  Place place;  // where it waits
  // A warp operation: what the thread brings and what it gets.
  Operation operation;
  unsigned mask;
  int source;
  uint64_t value, result;
};

// Counts and choices a test can set or read.
struct Settings {
  uint64_t random = 0x9e3779b97f4a7c15u;
  std::size_t most_shared = 163 * 1024;  // of a block, as on compute capability 8.0
  int64_t launches = 0;
};
inline Settings settings;

// An xorshift* generator.
inline uint64_t draw() {
  uint64_t& state = settings.random;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1du;
}

inline unsigned draw_below(std::size_t bound) {
  return static_cast<unsigned>((draw() >> 32) * bound >> 32);
}

struct Warp {
  unsigned waiting = 0, ended = 0;  // lanes
};

struct Block {
  void (*run_thread)(const void*) = nullptr;
  const void* arguments = nullptr;
  unsigned threads = 0;
  std::vector<Fibre*> fibres;   // made when first needed, kept
  std::vector<unsigned> ready;  // threads that can go on
  bool warp_first = false;      // the last that became ready goes on, else any
  Warp warps[kMostThreads / 32];
  unsigned current = 0;
  unsigned ended = 0, arrived = 0;
  Place barrier;
  int barrier_kind = 0;
  int64_t barrier_sum = 0, barrier_result = 0;
  int idle_waits = 0;
  std::string error;
  jmp_buf host;
};
inline Block block;

[[gnu::noinline]] inline void jump(jmp_buf from, jmp_buf to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

inline std::string describe(const Place& place) {
  const char* file = std::strrchr(place.file, '/');
  return std::string(file != nullptr ? file + 1 : place.file) + ":" + std::to_string(place.line);
}

inline std::string describe(unsigned thread) { return "thread " + std::to_string(thread); }

inline std::string describe(const Fibre& in_warp) {
  return std::string(name_of(in_warp.operation)) + " (" + describe(in_warp.place) + ")";
}

// Ends the launch with an error; the fibres of the block are abandoned where they are.
[[noreturn, gnu::noinline]] inline void fail(const std::string& message) {
  block.error = "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
                std::to_string(blockIdx.z) + "): " + message;
  _longjmp(block.host, 1);
}

inline void run_threads();

inline void begin_fibre(Fibre& fibre, unsigned thread) {
  if (fibre.start.uc_stack.ss_sp == nullptr) {
    // Above a page that may not be touched; an odd number of pages, so that stacks do not share cache sets.
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t stack = ((64 * 1024) / page + 1) * page;
    void* memory = mmap(nullptr, stack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = static_cast<char*>(memory) + page;
    fibre.start.uc_stack.ss_size = stack - 64 * (thread % 32);
  }
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, run_threads, 0);
  fibre.begun = true;
  setcontext(&fibre.start);
}

// Goes on with some thread that can; returns when it is this one's turn again.
[[gnu::noinline]] inline void reschedule(jmp_buf from) {
  if (block.ready.empty()) {
    if (block.ended == block.threads) {
      jump(from, block.host);
      return;
    }
    std::string waiting;
    int listed = 0;
    for (unsigned t = 0; t < block.threads && listed < 4; ++t) {
      const Fibre& fibre = *block.fibres[t];
      if (fibre.state == Fibre::State::ended) continue;
      const bool barrier = fibre.state == Fibre::State::at_barrier;
      waiting += std::string(listed++ ? ", " : "") + describe(t) + " at " +
                 (barrier ? "__syncthreads (" + describe(fibre.place) + ")" : describe(fibre));
    }
    fail("threads wait for each other for ever: " + waiting);
  }
  const std::size_t pick = block.warp_first ? block.ready.size() - 1 : draw_below(block.ready.size());
  const unsigned next = block.ready[pick];
  block.ready[pick] = block.ready.back();
  block.ready.pop_back();
  block.current = next;
  Fibre& fibre = *block.fibres[next];
  threadIdx = fibre.position;
  if (from == fibre.context) return;
  if (fibre.begun) {
    jump(from, fibre.context);
  } else if (_setjmp(from) == 0) {
    begin_fibre(fibre, next);
  }
}

inline Fibre& self() { return *block.fibres[block.current]; }

inline void wait(Fibre::State state) {
  self().state = state;
  reschedule(self().context);
}

inline void make_ready(unsigned thread) {
  block.fibres[thread]->state = Fibre::State::ready;
  block.ready.push_back(thread);
}

// All threads of the block: warps in a random order, and lanes from a random one on.
inline void make_all_ready() {
  unsigned order[kMostThreads / 32];
  const unsigned warps = (block.threads + 31) / 32;
  for (unsigned w = 0; w < warps; ++w) {
    const unsigned place = draw_below(w + 1);
    order[w] = order[place];
    order[place] = w;
  }
  for (unsigned w = 0; w < warps; ++w) {
    const unsigned turn = draw_below(32);
    for (unsigned i = 0; i < 32; ++i) {
      const unsigned thread = 32 * order[w] + (i + turn) % 32;
      if (thread < block.threads) make_ready(thread);
    }
  }
}

// Lets others go first: how a spinning thread waits.
inline void idle() {
  if (++block.idle_waits > kMostIdleWaits) fail(describe(block.current) + " waits for something that never comes");
  block.warp_first = false;
  make_ready(block.current);
  reschedule(self().context);
}

// Now and then a thread is overtaken at an atomic operation.
inline void maybe_overtaken() {
  if (block.threads == 0 || draw() >> 61 != 0) return;
  self().state = Fibre::State::ready;
  block.ready.insert(block.ready.begin(), block.current);
  reschedule(self().context);
}

inline void end_thread() {
  self().state = Fibre::State::ended;
  ++block.ended;
  if (block.arrived != 0) {
    fail(describe(block.current) + " left the kernel while others wait at __syncthreads (" +
         describe(block.barrier) + ")");
  }
  const unsigned first = block.current & ~31u, lane = block.current & 31u;
  Warp& warp = block.warps[first / 32];
  warp.ended |= 1u << lane;
  for (unsigned t = first; warp.waiting != 0 && t < first + 32 && t < block.threads; ++t) {
    const Fibre& fibre = *block.fibres[t];
    if (fibre.state == Fibre::State::in_warp && (fibre.mask >> lane & 1) != 0) {
      fail(describe(block.current) + " left the kernel while " + describe(t) + " waits for it at " + describe(fibre));
    }
  }
}

// The life of a fibre: one thread of each block.
inline void run_threads() {
  while (true) {
    block.run_thread(block.arguments);
    end_thread();
    reschedule(self().context);
  }
}

// All threads of the block: returns the sum of what they bring. kind tells __syncthreads from its variants.
inline int64_t barrier(int kind, int64_t value, Place place) {
  if (block.ended != 0) {
    fail(describe(block.current) + " waits at __syncthreads (" + describe(place) +
         "), which other threads left the kernel without reaching");
  }
  if (block.arrived == 0) {
    block.barrier = place;
    block.barrier_kind = kind;
    block.barrier_sum = 0;
  } else if (!(block.barrier == place) || block.barrier_kind != kind) {
    fail(describe(block.current) + " waits at __syncthreads (" + describe(place) + ") while others wait at " +
         describe(block.barrier));
  }
  block.barrier_sum += value;
  self().place = place;
  if (++block.arrived < block.threads) {
    wait(Fibre::State::at_barrier);
    return block.barrier_result;
  }
  block.barrier_result = block.barrier_sum;
  block.arrived = 0;
  block.idle_waits = 0;
  make_all_ready();
  reschedule(self().context);
  return block.barrier_result;
}

// What each lane of `mask` gets, all of them having arrived.
inline void resolve(unsigned first, unsigned mask, Operation operation) {
  uint64_t combined = 0;
  bool begun = false;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const uint64_t value = block.fibres[first + lane]->value;
    const auto low = static_cast<uint32_t>(value), so_far = static_cast<uint32_t>(combined);
    switch (operation) {
      case Operation::ballot: case Operation::any: case Operation::all:
        combined |= static_cast<uint64_t>(value != 0) << lane; break;
      case Operation::reduce_add: combined = static_cast<uint32_t>(so_far + low); break;
      case Operation::reduce_min: combined = begun && so_far < low ? so_far : low; break;
      case Operation::reduce_max: combined = begun && so_far > low ? so_far : low; break;
      case Operation::reduce_min_signed:
        combined = begun && static_cast<int32_t>(so_far) < static_cast<int32_t>(low) ? so_far : low; break;
      case Operation::reduce_max_signed:
        combined = begun && static_cast<int32_t>(so_far) > static_cast<int32_t>(low) ? so_far : low; break;
      case Operation::reduce_and: combined = begun ? so_far & low : low; break;
      case Operation::reduce_or: combined = so_far | low; break;
      case Operation::reduce_xor: combined = so_far ^ low; break;
      default: break;
    }
    begun = true;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fibre& fibre = *block.fibres[first + lane];
    switch (operation) {
      case Operation::syncwarp: break;
      case Operation::shuffle: case Operation::shuffle_up: case Operation::shuffle_down: case Operation::shuffle_xor:
        if ((mask >> fibre.source & 1) == 0) {
          fail(describe(first + lane) + " reads lane " + std::to_string(fibre.source) +
               ", which is not in the mask, at " + describe(fibre));
        }
        fibre.result = block.fibres[first + fibre.source]->value;
        break;
      case Operation::match_any: case Operation::match_all:
        fibre.result = 0;
        for (unsigned other = 0; other < 32; ++other) {
          if ((mask >> other & 1) != 0 && block.fibres[first + other]->value == fibre.value) {
            fibre.result |= uint64_t{1} << other;
          }
        }
        break;
      default: fibre.result = combined; break;
    }
  }
}

// One warp operation of the lanes in `mask`; source is the lane that a shuffle reads.
inline uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, int source, Place place) {
  const unsigned first = block.current & ~31u, lane = block.current & 31u;
  Warp& warp = block.warps[first / 32];
  Fibre& own = self();
  own.operation = operation;
  own.mask = mask;
  own.value = value;
  own.source = source;
  own.place = place;
  if ((mask >> lane & 1) == 0 || (mask & warp.ended) != 0) {
    fail((mask & warp.ended) != 0 ? "the mask of " + describe(block.current) +
                                        " names a lane that has left the kernel or does not exist, at " + describe(own)
                                  : describe(block.current) + " is not in its own mask at " + describe(own));
  }
  bool complete = ((warp.waiting | 1u << lane) & mask) == mask;
  for (unsigned other = 0; complete && other < 32; ++other) {
    if ((mask >> other & 1) == 0 || other == lane) continue;
    const Fibre& fibre = *block.fibres[first + other];
    complete = fibre.operation == operation && fibre.mask == mask;
  }
  if (!complete) {
    warp.waiting |= 1u << lane;
    wait(Fibre::State::in_warp);
    return own.result;
  }
  resolve(first, mask, operation);
  warp.waiting &= ~mask;
  for (unsigned other = 0; other < 32; ++other) {
    if ((mask >> other & 1) != 0) make_ready(first + other);
  }
  block.idle_waits = 0;
  reschedule(own.context);
  return own.result;
}

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

// Runs one block; an error is left in block.error.
[[gnu::noinline]] inline void run_block(std::size_t dynamic_bytes) {
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
  if (_setjmp(block.host) == 0) {
    jmp_buf unused;
    reschedule(unused);
  }
  if (block.error.empty() && !canary_is_whole(dynamic_bytes)) {
    block.error = "a write past the end of the dynamic shared memory";
  }
}

inline void run_grid(dim3 grid, dim3 threads, std::size_t dynamic_bytes, void (*run_thread)(const void*),
                     const void* arguments) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  ++settings.launches;
  block.threads = threads.x * threads.y * threads.z;
  block.run_thread = run_thread;
  block.arguments = arguments;
  while (block.fibres.size() < block.threads) block.fibres.push_back(new Fibre());
  gridDim = grid;
  blockDim = threads;
  snnet::shared_words[0] = {};  // makes the TLS block exist
  const Range memory = thread_local_memory();
  std::vector<int64_t> order(static_cast<std::size_t>(grid.x) * grid.y * grid.z);
  for (std::size_t b = 0; b < order.size(); ++b) {
    const unsigned place = draw_below(b + 1);
    order[b] = order[place];
    order[place] = static_cast<int64_t>(b);
  }
  block.error.clear();
  for (std::size_t b = 0; b < order.size() && block.error.empty(); ++b) {
    blockIdx = {static_cast<unsigned>(order[b] % grid.x), static_cast<unsigned>(order[b] / grid.x % grid.y),
                static_cast<unsigned>(order[b] / grid.x / grid.y)};
    fill_shared(memory, dynamic_bytes);
    run_block(dynamic_bytes);
  }
  block.threads = 0;
  if (!block.error.empty()) {
    for (Fibre* fibre : block.fibres) fibre->begun = false;
    throw std::runtime_error(block.error);
  }
}

}  // namespace cuda_on_cpu
