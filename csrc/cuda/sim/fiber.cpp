#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(ROOTS_SIMULATOR_USES_UCONTEXT)
// Saves what the System V ABI asks a callee to keep, swaps the stacks and goes on where the other
// fiber was left. Fibers mostly wait at the same place, so that the return is predicted well.
extern "C" void roots_simulator_switch(void** save, void* load);
asm(R"(
.text
.globl roots_simulator_switch
.hidden roots_simulator_switch
.type roots_simulator_switch, @function
roots_simulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size roots_simulator_switch, . - roots_simulator_switch
)");
#endif

namespace roots::simulator {
namespace {

// Sanitized frames are several times larger.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = size_t{512} << 10;
#else
constexpr size_t kStackBytes = size_t{128} << 10;
#endif

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

void adopt_host(Fiber& host) {
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) throw std::bad_alloc();
  pthread_attr_getstack(&attributes, &host.stack, &host.stack_bytes);
  pthread_attr_destroy(&attributes);
}

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, count_ * (kStackBytes + page_bytes()));
}

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  const size_t stride = kStackBytes + page_bytes();
  if (memory_ != nullptr) munmap(memory_, count_ * stride);
  count_ = 0;
  void* memory = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    memory_ = nullptr;
    throw std::bad_alloc();
  }
  madvise(memory, count * stride, MADV_NOHUGEPAGE);  // a fiber touches a few pages, not 2 MB
  memory_ = static_cast<char*>(memory);
  count_ = count;
  for (size_t i = 0; i < count; ++i) mprotect(memory_ + i * stride, page_bytes(), PROT_NONE);
}

void Stacks::prepare(Fiber& fiber, size_t i, void (*entry)()) {
  char* const bottom = memory_ + i * (kStackBytes + page_bytes()) + page_bytes();
  // Frames at the same offset of every stack would fall into the same sets of the cache.
  const size_t size = kStackBytes - i % 32 * 320;
  fiber.stack = bottom;
  fiber.stack_bytes = size;
  fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kStackBytes);  // frames of the fiber that was here before
#endif
#if defined(ROOTS_SIMULATOR_USES_UCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  void** top = reinterpret_cast<void**>(bottom + size);
  *--top = nullptr;  // where entry's caller would be: ends backtraces, and aligns the stack
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
#endif
}

void fiber_entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

#if defined(ROOTS_SIMULATOR_USES_UCONTEXT) || defined(__SANITIZE_ADDRESS__)
void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(ROOTS_SIMULATOR_USES_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  roots_simulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}
#endif

void leave_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, to.stack, to.stack_bytes);
#endif
#if defined(ROOTS_SIMULATOR_USES_UCONTEXT)
  setcontext(&to.context);
#else
  roots_simulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
  (void)from;
  __builtin_trap();
}

}  // namespace roots::simulator
