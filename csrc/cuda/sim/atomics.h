// Atomic operations, for the types that CUDA has them for. Blocks run on several host threads.
#pragma once

#include "block.h"
#include "memory.h"

namespace roots::simulator {

// Replaces *address by op(*address) and returns what was there.
template <class T, class Op>
inline T atomic_update(T* address, const Op& op) {
  check_alignment(address, sizeof(T), "atomic operation");
  T old, desired;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    desired = op(old);
  } while (!__atomic_compare_exchange(address, &old, &desired, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
  return old;
}

}  // namespace roots::simulator

#define ROOTS_SIMULATOR_ATOMIC(name, T, expression)                                                \
  inline T name(T* address, T value) {                                                             \
    return roots::simulator::atomic_update(address,                                                \
                                           [value](T old) { return static_cast<T>(expression); }); \
  }
#define ROOTS_SIMULATOR_ATOMIC_INTEGERS(name, expression) \
  ROOTS_SIMULATOR_ATOMIC(name, int, expression)           \
  ROOTS_SIMULATOR_ATOMIC(name, unsigned, expression)      \
  ROOTS_SIMULATOR_ATOMIC(name, unsigned long long, expression)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicAdd, old + value)
ROOTS_SIMULATOR_ATOMIC(atomicAdd, float, old + value)
ROOTS_SIMULATOR_ATOMIC(atomicAdd, double, old + value)
ROOTS_SIMULATOR_ATOMIC(atomicSub, int, old - value)
ROOTS_SIMULATOR_ATOMIC(atomicSub, unsigned, old - value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicMin, old < value ? old : value)
ROOTS_SIMULATOR_ATOMIC(atomicMin, long long, old < value ? old : value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicMax, old > value ? old : value)
ROOTS_SIMULATOR_ATOMIC(atomicMax, long long, old > value ? old : value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicAnd, old& value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicOr, old | value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicXor, old ^ value)
ROOTS_SIMULATOR_ATOMIC_INTEGERS(atomicExch, ((void)old, value))
ROOTS_SIMULATOR_ATOMIC(atomicExch, float, ((void)old, value))
ROOTS_SIMULATOR_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
ROOTS_SIMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)

#define ROOTS_SIMULATOR_CAS(T)                                            \
  inline T atomicCAS(T* address, T expected, T desired) {                 \
    return roots::simulator::atomic_update(                               \
        address, [=](T old) { return old == expected ? desired : old; }); \
  }
ROOTS_SIMULATOR_CAS(unsigned short)
ROOTS_SIMULATOR_CAS(int)
ROOTS_SIMULATOR_CAS(unsigned)
ROOTS_SIMULATOR_CAS(unsigned long long)

inline void __threadfence_block() {}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
