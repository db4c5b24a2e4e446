// Barriers, shuffles and votes. Threads meet only with threads that are at the same line.
#pragma once

#include "block.h"
#include "memory.h"

namespace roots::simulator {

template <class T>
inline T shuffle(uint32_t mask, T value, int source, int width, const Site& site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "no type of a shuffle");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail(to_string(site) + " has width " + std::to_string(width) + ", no power of 2 up to 32");
  }
  const Slot* const slots = exchange(mask, site, &value, sizeof(T));
  if ((mask >> source & 1) == 0) {
    fail(to_string(site) + " reads lane " + std::to_string(source) + ", which mask " + hex(mask) +
         " lacks");
  }
  T result;
  std::memcpy(&result, slots[source].bytes, sizeof(T));
  return result;
}

template <class T>
inline T lane_value(const Slot* slots, int lane) {
  T value;
  std::memcpy(&value, slots[lane].bytes, sizeof(T));
  return value;
}

// op(...op(value of the lowest lane, next)..., value of the highest lane)
template <class T, class Op>
inline T reduce(uint32_t mask, T value, const Site& site, const Op& op) {
  const Slot* const slots = exchange(mask, site, &value, sizeof(T));
  T result = lane_value<T>(slots, __builtin_ctz(mask));
  for (uint32_t rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
    result = op(result, lane_value<T>(slots, __builtin_ctz(rest)));
  }
  return result;
}

}  // namespace roots::simulator

inline void __syncthreads(ROOTS_SIMULATOR_CALLER) {
  roots::simulator::current_block->synchronise(0, -1, true, false,
                                               ROOTS_SIMULATOR_SITE("__syncthreads"));
}
inline int __syncthreads_and(int predicate, ROOTS_SIMULATOR_CALLER) {
  auto& block = *roots::simulator::current_block;
  block.synchronise(0, -1, true, predicate != 0, ROOTS_SIMULATOR_SITE("__syncthreads_and"));
  return block.barrier(0).all_result;
}
inline int __syncthreads_or(int predicate, ROOTS_SIMULATOR_CALLER) {
  auto& block = *roots::simulator::current_block;
  block.synchronise(0, -1, true, predicate != 0, ROOTS_SIMULATOR_SITE("__syncthreads_or"));
  return block.barrier(0).any_result;
}
inline int __syncthreads_count(int predicate, ROOTS_SIMULATOR_CALLER) {
  auto& block = *roots::simulator::current_block;
  block.synchronise(0, -1, true, predicate != 0, ROOTS_SIMULATOR_SITE("__syncthreads_count"));
  return block.barrier(0).count_result;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, ROOTS_SIMULATOR_CALLER) {
  roots::simulator::exchange(mask, ROOTS_SIMULATOR_SITE("__syncwarp"), nullptr, 0);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, ROOTS_SIMULATOR_CALLER) {
  const int lane = roots::simulator::current->lane;
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return roots::simulator::shuffle(mask, value, from, width, ROOTS_SIMULATOR_SITE("__shfl_sync"));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        ROOTS_SIMULATOR_CALLER) {
  const int lane = roots::simulator::current->lane;
  const bool inside = (lane & (width - 1)) >= static_cast<int>(delta);
  return roots::simulator::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane,
                                   width, ROOTS_SIMULATOR_SITE("__shfl_up_sync"));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          ROOTS_SIMULATOR_CALLER) {
  const int lane = roots::simulator::current->lane;
  const bool inside = (lane & (width - 1)) + static_cast<int64_t>(delta) < width;
  return roots::simulator::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane,
                                   width, ROOTS_SIMULATOR_SITE("__shfl_down_sync"));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                         ROOTS_SIMULATOR_CALLER) {
  const int lane = roots::simulator::current->lane, other = lane ^ lane_mask;
  const bool inside = other <= (lane | (width - 1)) && other < 32;
  return roots::simulator::shuffle(mask, value, inside ? other : lane, width,
                                   ROOTS_SIMULATOR_SITE("__shfl_xor_sync"));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ROOTS_SIMULATOR_CALLER) {
  const unsigned bit = predicate != 0 ? 1u << roots::simulator::current->lane : 0u;
  return roots::simulator::reduce(mask, bit, ROOTS_SIMULATOR_SITE("__ballot_sync"),
                                  [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, ROOTS_SIMULATOR_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ROOTS_SIMULATOR_CALLER) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, ROOTS_SIMULATOR_CALLER) {
  const auto* slots =
      roots::simulator::exchange(mask, ROOTS_SIMULATOR_SITE("__match_any_sync"), &value, sizeof(T));
  unsigned equal = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (std::memcmp(slots[lane].bytes, &value, sizeof(T)) == 0) equal |= 1u << lane;
  }
  return equal;
}
template <class T>
inline unsigned __match_all_sync(unsigned mask, T value, int* all, ROOTS_SIMULATOR_CALLER) {
  *all = __match_any_sync(mask, value, file, line) == mask;
  return *all ? mask : 0;
}

#define ROOTS_SIMULATOR_REDUCE(name, T, expression)                                       \
  inline T name(unsigned mask, T value, ROOTS_SIMULATOR_CALLER) {                         \
    return roots::simulator::reduce(mask, value, ROOTS_SIMULATOR_SITE(#name),             \
                                    [](T a, T b) { return static_cast<T>(expression); }); \
  }
ROOTS_SIMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
ROOTS_SIMULATOR_REDUCE(__reduce_add_sync, int, a + b)
ROOTS_SIMULATOR_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
ROOTS_SIMULATOR_REDUCE(__reduce_min_sync, int, std::min(a, b))
ROOTS_SIMULATOR_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
ROOTS_SIMULATOR_REDUCE(__reduce_max_sync, int, std::max(a, b))
ROOTS_SIMULATOR_REDUCE(__reduce_and_sync, unsigned, a& b)
ROOTS_SIMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
ROOTS_SIMULATOR_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
