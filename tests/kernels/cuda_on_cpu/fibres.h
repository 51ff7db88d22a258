// CUDA threads as fibres, a fibre a thread, switched where threads wait for each other.
//
// A fibre runs until it waits (barrier, warp operation, some atomics) or ends. In some blocks who runs next is drawn
// at random, in others one warp runs as far ahead of the rest as it can. Blocks run one after another, or a few at once:
// then the running one changes at random places where a thread waits, above all where it reads or writes what other
// blocks may (atomics, fences, loads past the L1). A missing barrier therefore lets threads
// read what others have not written yet, and shared memory holds garbage at first. What a GPU leaves undefined is
// reported: a barrier or a warp operation that some thread never reaches, an index past a shared array, an access
// that is not aligned.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>
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
  int64_t left_out = -1;  // the barrier that a mutant goes without
  int64_t blocks_at_once = 1;
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
  bool is_left = false;  // for another block
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

// Whether a switch of threads, one in so many, is one of blocks.
inline bool leaves_block(unsigned one_in) {
  if (settings.blocks_at_once == 1 || draw_below(one_in) != 0) return false;
  block.is_left = true;
  return true;
}

// Goes on with some thread that can; returns when it is this one's turn again.
[[gnu::noinline]] inline void reschedule(jmp_buf from, unsigned leave_one_in = 64) {
  if (!block.ready.empty() && leaves_block(leave_one_in)) {
    jump(from, block.host);
    return;
  }
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
  reschedule(self().context, 2);
}

// Now and then a thread is overtaken where it meets others: at an atomic operation, by another block at a fence.
inline void maybe_overtaken() {
  if (block.threads == 0 || draw() >> 61 != 0) return;
  self().state = Fibre::State::ready;
  block.ready.insert(block.ready.begin(), block.current);
  reschedule(self().context, 2);
}
inline void maybe_overtaken_by_a_block() {
  if (settings.blocks_at_once > 1) maybe_overtaken();
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

}  // namespace cuda_on_cpu
