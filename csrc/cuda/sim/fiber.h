// Fibers: the stacks on which the threads of a block take turns on one thread of the host.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(ROOTS_SIMULATOR_UCONTEXT)
#define ROOTS_SIMULATOR_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace roots::simulator {

struct Fiber {
  void* stack_pointer = nullptr;  // of a fiber that is not running
  void* stack = nullptr;          // lowest address of the stack
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#if defined(ROOTS_SIMULATOR_USES_UCONTEXT)
  ucontext_t context{};
#endif
};

// The fiber that stands for the host thread's own stack.
void adopt_host(Fiber& host);

// Stacks for `count` fibers, each above a page that must not be touched; freed with it.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  void reserve(size_t count);
  // Lets `fiber`, the i-th, begin in `entry` when it is next switched to. `entry` never returns.
  void prepare(Fiber& fiber, size_t i, void (*entry)());

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

// To be called first in a fiber's entry.
void fiber_entered();

// Leave `from` and go on in `to`; returns when somebody switches back to `from`.
#if defined(ROOTS_SIMULATOR_USES_UCONTEXT) || defined(__SANITIZE_ADDRESS__)
void switch_fiber(Fiber& from, Fiber& to);
#else
extern "C" void roots_simulator_switch(void** save, void* load);
inline void switch_fiber(Fiber& from, Fiber& to) {
  roots_simulator_switch(&from.stack_pointer, to.stack_pointer);
}
#endif

// Leave `from` for ever.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

}  // namespace roots::simulator
