// Shared memory and checked access.
#pragma once

#include "block.h"

namespace roots::simulator {

void* poisoned_memory(size_t bytes);

std::string hex(uint64_t value);

// Variables of one declaration in one instance of a kernel are one variable.
template <class T, class Declaration>
inline T& static_shared(const Declaration&) {
  static const char key = 0;
  return *static_cast<T*>(current_block->static_shared(&key, sizeof(T)));
}

[[noreturn]] void fail_alignment(const void* address, size_t bytes, const char* name);

// An access of `bytes` at once must be aligned to as many, or the GPU stops the kernel. Inlined, so
// that the compiler knows `bytes`, a power of 2: kernels ask this before every access of theirs.
template <class T>
__attribute__((always_inline)) inline void check_alignment(const T* address, size_t bytes,
                                                           const char* name) {
  if (__builtin_expect(reinterpret_cast<uintptr_t>(address) % bytes != 0, 0)) {
    fail_alignment(address, bytes, name);
  }
}

inline void check_shared(const void* address, size_t bytes, const char* name) {
  if (__builtin_expect(!current_block->is_shared(address, bytes), 0)) {
    fail(std::string(name) + " of " + std::to_string(bytes) + " bytes at address " +
         hex(reinterpret_cast<uintptr_t>(address)) + ", outside of the block's shared memory");
  }
}

}  // namespace roots::simulator

#define ROOTS_STATIC_SHARED(T, name) \
  using roots_type_of_##name = T;    \
  auto& name = ::roots::simulator::static_shared<roots_type_of_##name>([] {})
#define ROOTS_DYNAMIC_SHARED(T, name) \
  T* name = static_cast<T*>(::roots::simulator::current_block->dynamic_shared())
