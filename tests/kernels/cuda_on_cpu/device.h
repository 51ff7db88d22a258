// Device code as g++ and clang understand it: qualifiers, vector types, intrinsics.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "warps.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

// Vector types, with the alignment that the loads of a GPU need.
#define CUDA_ON_CPU_VECTOR(type, count, alignment, fields) \
  struct __attribute__((aligned(alignment))) type##count { \
    fields                                                 \
  };
#define CUDA_ON_CPU_VECTORS(name, type, size)                                          \
  CUDA_ON_CPU_VECTOR(name, 2, 2 * size, type x; type y;)                               \
  CUDA_ON_CPU_VECTOR(name, 4, (4 * size > 16 ? 16 : 4 * size), type x; type y; type z; type w;) \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                     \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_ON_CPU_VECTORS(float, float, 4)
CUDA_ON_CPU_VECTORS(int, int, 4)
CUDA_ON_CPU_VECTORS(uint, unsigned, 4)
CUDA_ON_CPU_VECTORS(uchar, unsigned char, 1)
CUDA_ON_CPU_VECTORS(ushort, unsigned short, 2)
CUDA_ON_CPU_VECTOR(double, 2, 16, double x; double y;)
CUDA_ON_CPU_VECTOR(longlong, 2, 16, long long x; long long y;)
CUDA_ON_CPU_VECTOR(ulonglong, 2, 16, unsigned long long x; unsigned long long y;)
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
#undef CUDA_ON_CPU_VECTOR
#undef CUDA_ON_CPU_VECTORS

// ---- Threads that wait for each other. The place of the call is taken along for the report.

#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_PLACE) { cuda_on_cpu::barrier(0, 0, {file, line}); }
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_PLACE) {
  return static_cast<int>(cuda_on_cpu::barrier(1, predicate != 0, {file, line}));
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::barrier(2, predicate != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::barrier(3, predicate == 0, {file, line}) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::syncwarp, mask, 0, 0, {file, line});
}

namespace cuda_on_cpu {

inline int lane() { return static_cast<int>(block.current & 31u); }

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a warp operation takes 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle(Operation operation, unsigned mask, T value, int source, Place place) {
  return from_bits<T>(warp_operation(operation, mask, to_bits(value), source, place));
}

template <class T>
T reduce(Operation operation, unsigned mask, T value, Place place) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "__reduce_*_sync takes int or unsigned");
  return from_bits<T>(warp_operation(operation, mask, to_bits(value), 0, place));
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_PLACE) {
  const int first = cuda_on_cpu::lane() & ~(width - 1);
  return cuda_on_cpu::shuffle(cuda_on_cpu::Operation::shuffle, mask, value, first + (source & (width - 1)),
                              {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE) {
  const int lane = cuda_on_cpu::lane(), source = lane - static_cast<int>(delta);
  return cuda_on_cpu::shuffle(cuda_on_cpu::Operation::shuffle_up, mask, value,
                              source < (lane & ~(width - 1)) ? lane : source, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE) {
  const int lane = cuda_on_cpu::lane(), source = lane + static_cast<int>(delta);
  return cuda_on_cpu::shuffle(cuda_on_cpu::Operation::shuffle_down, mask, value,
                              source > (lane | (width - 1)) ? lane : source, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_CPU_PLACE) {
  const int lane = cuda_on_cpu::lane(), source = lane ^ lanes;
  return cuda_on_cpu::shuffle(cuda_on_cpu::Operation::shuffle_xor, mask, value,
                              source > (lane | (width - 1)) ? lane : source, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return static_cast<unsigned>(
      cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::ballot, mask, predicate != 0, 0, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::any, mask, predicate != 0, 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::all, mask, predicate != 0, 0, {file, line}) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE) {
  return static_cast<unsigned>(cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::match_any, mask,
                                                           cuda_on_cpu::to_bits(value), 0, {file, line}));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, CUDA_ON_CPU_PLACE) {
  const uint64_t same = cuda_on_cpu::warp_operation(cuda_on_cpu::Operation::match_all, mask,
                                                    cuda_on_cpu::to_bits(value), 0, {file, line});
  *all = same == mask;
  return *all ? mask : 0;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Operation::reduce_add, mask, value, {file, line});
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE) {
  using cuda_on_cpu::Operation;
  return cuda_on_cpu::reduce(std::is_signed_v<T> ? Operation::reduce_min_signed : Operation::reduce_min, mask, value,
                             {file, line});
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE) {
  using cuda_on_cpu::Operation;
  return cuda_on_cpu::reduce(std::is_signed_v<T> ? Operation::reduce_max_signed : Operation::reduce_max, mask, value,
                             {file, line});
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Operation::reduce_and, mask, value, {file, line});
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Operation::reduce_or, mask, value, {file, line});
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::reduce(cuda_on_cpu::Operation::reduce_xor, mask, value, {file, line});
}

inline void __threadfence() { cuda_on_cpu::maybe_overtaken_by_a_block(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_on_cpu::idle(); }
[[noreturn]] inline void __trap(CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::fail("a trap at " + cuda_on_cpu::describe(cuda_on_cpu::Place{file, line}));
}

// ---- Atomics: the types of CUDA's, less floating point (their order would change the result).

#define CUDA_ON_CPU_ATOMIC(name, after)                                                             \
  template <class T>                                                                                \
  T name(T* address, std::type_identity_t<T> value) {                                               \
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||                          \
                      std::is_same_v<T, unsigned long long>,                                        \
                  "atomics take int, unsigned or unsigned long long");                              \
    cuda_on_cpu::maybe_overtaken();                                                                 \
    const T before = *address;                                                                      \
    *address = static_cast<T>(after);                                                               \
    return before;                                                                                  \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, before + value)
CUDA_ON_CPU_ATOMIC(atomicSub, before - value)
CUDA_ON_CPU_ATOMIC(atomicMin, before < value ? before : value)
CUDA_ON_CPU_ATOMIC(atomicMax, before > value ? before : value)
CUDA_ON_CPU_ATOMIC(atomicAnd, before & value)
CUDA_ON_CPU_ATOMIC(atomicOr, before | value)
CUDA_ON_CPU_ATOMIC(atomicXor, before ^ value)
CUDA_ON_CPU_ATOMIC(atomicExch, value)
CUDA_ON_CPU_ATOMIC(atomicInc, before >= value ? 0 : before + 1)
#undef CUDA_ON_CPU_ATOMIC
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  cuda_on_cpu::maybe_overtaken();
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}

// ---- Loads, stores and arithmetic of one thread.

#define CUDA_ON_CPU_LOAD(name) \
  template <class T>           \
  T name(const T* address) {   \
    return *address;           \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
template <class T>
T __ldcg(const T* address) {
  cuda_on_cpu::maybe_overtaken_by_a_block();
  return *address;
}
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_LOAD(__ldlu)
#undef CUDA_ON_CPU_LOAD
#define CUDA_ON_CPU_STORE(name)                              \
  template <class T>                                         \
  void name(T* address, std::type_identity_t<T> value) {     \
    *address = value;                                        \
  }
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_STORE

inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(cuda_on_cpu::to_bits(value)); }
inline int __float_as_int(float value) { return static_cast<int>(cuda_on_cpu::to_bits(value)); }
inline float __uint_as_float(unsigned bits) { return cuda_on_cpu::from_bits<float>(bits); }
inline float __int_as_float(int bits) { return cuda_on_cpu::from_bits<float>(static_cast<unsigned>(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const auto byte = static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7)) & 0xffu;
    result |= ((selector >> 4 * i & 8) != 0 ? (byte & 0x80u ? 0xffu : 0u) : byte) << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return static_cast<C>(std::fmin(a, b));
  return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return static_cast<C>(std::fmax(a, b));
  return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}
