// The block that a host thread is running: its threads, warps, barriers and shared memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

// The variables of CUDA. In a library that is loaded at run time these few bytes are better
// reached without a call; threads of a block never move to another thread of the host.
#define ROOTS_SIMULATOR_THREAD_LOCAL extern thread_local __attribute__((tls_model("initial-exec")))
ROOTS_SIMULATOR_THREAD_LOCAL uint3 threadIdx;
ROOTS_SIMULATOR_THREAD_LOCAL uint3 blockIdx;
ROOTS_SIMULATOR_THREAD_LOCAL dim3 blockDim;
ROOTS_SIMULATOR_THREAD_LOCAL dim3 gridDim;
static constexpr int warpSize = 32;

namespace roots::simulator {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kNumBarriers = 16;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in a kernel's source a thread synchronises. Two places are one if name and line agree.
struct Site {
  const char* name;
  const char* file;
  int line;
};
#define ROOTS_SIMULATOR_SITE(name) \
  ::roots::simulator::Site { name, file, line }
#define ROOTS_SIMULATOR_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

// What one lane hands to the others.
struct alignas(16) Slot {
  unsigned char bytes[64];
};

// Lanes of one warp that meet in a shuffle, vote, __syncwarp or matrix instruction. Lanes read the
// slots of one meeting while others may already write those of the next: two sets suffice, since
// nobody gets to the meeting after that before all have left this one.
struct Collective {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const Site* site = nullptr;  // of the first to come, for as long as it waits
  int parity = 0;
  Slot slots[2][kWarpSize];
};

struct Warp {
  uint32_t existing = 0;  // lanes that the block has
  uint32_t exited = 0;
  uint32_t ready = 0;       // lanes that run or could run
  Collective* collectives;  // [32], by the lowest lane of the mask
  void wake(uint32_t lanes);
};

struct Barrier {
  int arrived = 0;
  int expected = 0;  // threads; of __syncthreads: all of the block
  Site site{};
  uint32_t waiting[kMaxWarps] = {};
  bool all = true, any = false;
  int count = 0;
  bool all_result = false, any_result = false;
  int count_result = 0;
};

// A cp.async that was issued and has not landed.
struct PendingCopy {
  void* target;
  int64_t group;
  unsigned char bytes[16];
};

// What switching to a thread needs comes first, in one line of the cache.
struct alignas(64) Thread {
  Fiber fiber;
  Warp* warp = nullptr;
  int number = 0;  // in the block
  int lane = 0;
  uint3 index{};
  bool exited = false;
  const Site* site = nullptr;  // where it waits
  int64_t copy_group = 0;      // that a copy issued now would belong to
  std::vector<PendingCopy> copies;
};

// Source of the schedule: small, and the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint32_t operator()() {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }
  uint32_t below(uint32_t bound) {
    return static_cast<uint32_t>((uint64_t{(*this)()} * bound) >> 32);
  }

 private:
  uint64_t state_;
};

// What all blocks of a launch have in common.
struct Launch {
  dim3 grid;
  dim3 block;
  size_t dynamic_bytes;
  size_t shared_limit;  // of dynamic and static shared memory together
  uint64_t seed;        // 0: threads take turns in order
  void (*call)(const void* arguments);
  const void* arguments;
};

class Block {
 public:
  Block();
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Runs one block to its end; throws Error, or what the kernel threw.
  void run(const Launch& launch, int64_t number);

  // Called by the running thread.
  void synchronise(int id, int num_threads, bool waits, bool predicate, const Site& site);
  const Barrier& barrier(int id) const { return barriers_[id]; }
  // Throws Error unless `mask` may be used by the running thread, with those it meets.
  void check_meeting(const Collective& meeting, uint32_t mask, const Site& site) const;
  void wait(const Site& site);
  void* static_shared(const void* key, size_t bytes);
  void* dynamic_shared() const { return dynamic_.memory; }
  bool is_shared(const void* address, size_t bytes) const;

 private:
  struct Region {
    const void* key;
    void* memory;
    size_t bytes;
  };
  static void thread_entry();
  void prepare(const Launch& launch, int64_t number);
  void release_barrier(Barrier& barrier);
  void thread_exits();
  Thread* next_ready();
  void go_on_in(Thread& next);
  void release_shared();
  [[noreturn]] void report_deadlock();

  friend struct Warp;
  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Collective> collectives_;
  Barrier barriers_[kNumBarriers];
  Fiber host_;
  const Launch* launch_ = nullptr;
  int num_threads_ = 0;
  int live_ = 0;
  uint32_t ready_warps_ = 0;
  int current_warp_ = 0;
  Random random_;
  uint32_t leave_early_ = 0;  // of 16, the chance to leave a warp although it could go on
  Region dynamic_{};
  std::vector<Region> static_;
  size_t static_bytes_ = 0;
  std::exception_ptr error_;
};

ROOTS_SIMULATOR_THREAD_LOCAL Thread* current;  // null outside of a kernel
ROOTS_SIMULATOR_THREAD_LOCAL Block* current_block;

// Throws Error, naming the block and thread.
[[noreturn]] void fail(const std::string& message);

std::string to_string(const Site& site);
std::string to_string(const uint3& index);

inline void Warp::wake(uint32_t lanes) {
  ready |= lanes;
  current_block->ready_warps_ |= 1u << (this - current_block->warps_.data());
}

// Waits until all lanes of `mask` have come here, each with `bytes` of its own, and returns their
// slots. The last one to come calls finish(slots) before the others go on.
template <class Finish>
inline const Slot* exchange(uint32_t mask, const Site& site, const void* mine, size_t bytes,
                            const Finish& finish) {
  Thread& self = *current;
  Collective& meeting = self.warp->collectives[mask != 0 ? __builtin_ctz(mask) : 0];
  const bool follows = meeting.arrived != 0 && meeting.mask == mask &&
                       meeting.site->line == site.line && meeting.site->name == site.name;
  if (!follows || (mask >> self.lane & 1) == 0) {
    current_block->check_meeting(meeting, mask, site);
    meeting.mask = mask;
    meeting.site = &site;
  }
  Slot* const slots = meeting.slots[meeting.parity];
  if (bytes != 0) std::memcpy(slots[self.lane].bytes, mine, bytes);
  meeting.arrived |= 1u << self.lane;
  if (meeting.arrived == mask) {
    finish(slots);
    meeting.arrived = 0;
    meeting.parity ^= 1;
    self.warp->wake(mask);
  } else {
    current_block->wait(site);
  }
  return slots;
}

inline const Slot* exchange(uint32_t mask, const Site& site, const void* mine, size_t bytes) {
  return exchange(mask, site, mine, bytes, [](Slot*) {});
}

}  // namespace roots::simulator
