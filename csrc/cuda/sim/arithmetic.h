// Device functions of CUDA that the C library lacks, exact to the rounding of the host's.
#pragma once

#include "memory.h"

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }

namespace roots::simulator {
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace roots::simulator

inline int __float_as_int(float x) { return roots::simulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return roots::simulator::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return roots::simulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return roots::simulator::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return roots::simulator::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return roots::simulator::bit_cast<double>(x); }

inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>((uint64_t{x} * y) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
  return result;
}

// prmt in its plain mode: byte i of the result is byte `selector >> 4i & 7` of (y, x); bit 3 of the
// selector spreads that byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(both >> (8 * (choice & 7))) & 255;
    if ((choice & 8) != 0) byte = byte >= 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// Loads and stores with a hint for the caches.
#define ROOTS_SIMULATOR_LOAD(name)                                 \
  template <class T>                                               \
  inline T name(const T* address) {                                \
    roots::simulator::check_alignment(address, alignof(T), #name); \
    return *address;                                               \
  }
#define ROOTS_SIMULATOR_STORE(name)                                \
  template <class T>                                               \
  inline void name(T* address, T value) {                          \
    roots::simulator::check_alignment(address, alignof(T), #name); \
    *address = value;                                              \
  }
ROOTS_SIMULATOR_LOAD(__ldg)
ROOTS_SIMULATOR_LOAD(__ldca)
ROOTS_SIMULATOR_LOAD(__ldcg)
ROOTS_SIMULATOR_LOAD(__ldcs)
ROOTS_SIMULATOR_LOAD(__ldlu)
ROOTS_SIMULATOR_LOAD(__ldcv)
ROOTS_SIMULATOR_STORE(__stcg)
ROOTS_SIMULATOR_STORE(__stcs)
ROOTS_SIMULATOR_STORE(__stwb)
ROOTS_SIMULATOR_STORE(__stwt)

[[noreturn]] inline void __trap() { roots::simulator::fail("stops at __trap()"); }
