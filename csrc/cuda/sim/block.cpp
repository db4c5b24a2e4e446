// How the threads of a block take turns. A thread runs until it has to wait; then it hands over to
// another that can run, of its own warp if there is one. Without a seed the next in order is taken;
// with a seed a random one, and a warp may be left early for another one.
#include "cuda_sim.h"

namespace roots::simulator {

thread_local Thread* current = nullptr;
thread_local Block* current_block = nullptr;

std::string to_string(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string to_string(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(site.name) + " of " + (slash != nullptr ? slash + 1 : site.file) + ":" +
         std::to_string(site.line);
}

void fail(const std::string& message) {
  std::string text = "CUDA simulator: ";
  if (current != nullptr) {
    text += "block " + to_string(blockIdx) + ", thread " + to_string(current->index) + ": ";
  }
  throw Error(text + message + ".");
}

Block::Block() : collectives_(size_t{kMaxWarps} * kWarpSize) {
  adopt_host(host_);
  threads_.resize(kMaxThreads);
  warps_.resize(kMaxWarps);
  for (int warp = 0; warp < kMaxWarps; ++warp) {
    warps_[warp].collectives = &collectives_[size_t{kWarpSize} * warp];
  }
}

Block::~Block() { release_shared(); }

void Block::run(const Launch& launch, int64_t number) {
  prepare(launch, number);
  current_block = this;
  Thread* const first = next_ready();
  current = first;
  threadIdx = first->index;
  switch_fiber(host_, first->fiber);
  current = nullptr;
  current_block = nullptr;
  release_shared();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Block::prepare(const Launch& launch, int64_t number) {
  launch_ = &launch;
  const dim3 block = launch.block;
  num_threads_ = static_cast<int>(block.x * block.y * block.z);
  live_ = num_threads_;
  current_warp_ = 0;
  random_ = Random(launch.seed * 0x2545F4914F6CDD1Du + static_cast<uint64_t>(number));
  constexpr uint32_t kChances[] = {0, 1, 4, 16};
  leave_early_ = launch.seed == 0 ? 0 : kChances[random_.below(4)];
  for (Barrier& barrier : barriers_) barrier = Barrier{};
  dynamic_ = {nullptr, poisoned_memory(launch.dynamic_bytes), launch.dynamic_bytes};
  stacks_.reserve(static_cast<size_t>(num_threads_));
  for (int i = 0; i < num_threads_; ++i) {
    Thread& thread = threads_[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = make_uint3(n % block.x, n / block.x % block.y, n / (block.x * block.y));
    thread.number = i;
    thread.lane = i % kWarpSize;
    thread.warp = &warps_[i / kWarpSize];
    thread.exited = false;
    thread.copies.clear();
    thread.copy_group = 0;
    stacks_.prepare(thread.fiber, n, &Block::thread_entry);
  }
  ready_warps_ = 0;
  for (int w = 0; w * kWarpSize < num_threads_; ++w) {
    const int lanes = std::min(num_threads_ - w * kWarpSize, kWarpSize);
    Warp& warp = warps_[w];
    warp.existing = warp.ready = 0xffffffffu >> (kWarpSize - lanes);
    warp.exited = 0;
    for (int lane = 0; lane < lanes; ++lane) warp.collectives[lane].arrived = 0;
    ready_warps_ |= 1u << w;
  }
}

void Block::thread_entry() {
  fiber_entered();
  Block& block = *current_block;
  try {
    block.launch_->call(block.launch_->arguments);
    block.thread_exits();
  } catch (...) {
    block.error_ = std::current_exception();
  }
  Thread* const self = current;
  Thread* const next = block.error_ ? nullptr : block.next_ready();
  if (next == nullptr) leave_fiber(self->fiber, block.host_);
  current = next;
  threadIdx = next->index;
  leave_fiber(self->fiber, next->fiber);
}

// The running thread is at its end. Nobody may be waiting for it, or wait for it later.
void Block::thread_exits() {
  Thread& self = *current;
  self.exited = true;
  --live_;
  Warp& warp = *self.warp;
  const uint32_t bit = 1u << self.lane;
  warp.exited |= bit;
  warp.ready &= ~bit;
  if (warp.ready == 0) ready_warps_ &= ~(1u << (self.number / kWarpSize));
  const Barrier& barrier = barriers_[0];
  if (barrier.arrived > 0) {
    fail("exits while " + std::to_string(barrier.arrived) + " of " + std::to_string(num_threads_) +
         " threads wait for it at " + to_string(barrier.site));
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Collective& meeting = warp.collectives[lane];
    if (warp.existing >> lane & 1 && meeting.arrived != 0 && (meeting.mask & bit) != 0) {
      fail("exits while lanes of its warp wait for it at " + to_string(*meeting.site));
    }
  }
  if (ready_warps_ == 0 && live_ > 0) report_deadlock();
}

Thread* Block::next_ready() {
  const bool random = launch_->seed != 0;
  uint32_t ready = warps_[current_warp_].ready;
  if (ready == 0 || (random && random_.below(16) < leave_early_)) {
    if (ready_warps_ == 0) return nullptr;
    const int start = random ? static_cast<int>(random_.below(kMaxWarps)) : current_warp_;
    const uint32_t later = ready_warps_ & (0xffffffffu << start);
    current_warp_ = __builtin_ctz(later != 0 ? later : ready_warps_);
    ready = warps_[current_warp_].ready;
  }
  uint32_t lanes = ready;
  if (random) {
    const uint32_t later = ready & (0xffffffffu << random_.below(kWarpSize));
    if (later != 0) lanes = later;
  }
  return &threads_[current_warp_ * kWarpSize + __builtin_ctz(lanes)];
}

// The running thread waits; returns when somebody has woken it and its turn has come.
void Block::wait(const Site& site) {
  Thread& self = *current;
  self.site = &site;
  Warp& warp = *self.warp;
  warp.ready &= ~(1u << self.lane);
  if (warp.ready == 0) ready_warps_ &= ~(1u << (self.number / kWarpSize));
  Thread* next;
  if (warp.ready != 0 && launch_->seed == 0) {
    next = &threads_[self.number - self.lane + __builtin_ctz(warp.ready)];
  } else {
    next = next_ready();
    if (next == nullptr) report_deadlock();
  }
  current = next;
  threadIdx = next->index;
  switch_fiber(self.fiber, next->fiber);
}

void Block::check_meeting(const Collective& meeting, uint32_t mask, const Site& site) const {
  const Thread& self = *current;
  const Warp& warp = *self.warp;
  const auto call = [&] { return "calls " + to_string(site) + " with mask " + hex(mask); };
  if ((mask >> self.lane & 1) == 0) {
    fail(call() + ", which lacks its own lane " + std::to_string(self.lane));
  }
  if ((mask & ~warp.existing) != 0) {
    fail(call() + ", but lane " + std::to_string(__builtin_ctz(mask & ~warp.existing)) +
         " is absent: the block has " + std::to_string(num_threads_) + " threads");
  }
  if ((mask & warp.exited) != 0) {
    fail(call() + ", but lane " + std::to_string(__builtin_ctz(mask & warp.exited)) +
         " has exited");
  }
  if (meeting.arrived == 0) return;
  if (meeting.mask != mask) {
    fail(call() + ", but a lane that it meets has mask " + hex(meeting.mask) + " at " +
         to_string(*meeting.site));
  }
  fail(call() + ", but a lane that it meets is at " + to_string(*meeting.site));
}

void Block::synchronise(int id, int num_threads, bool waits, bool predicate, const Site& site) {
  if (num_threads < 0) num_threads = num_threads_;
  Barrier& barrier = barriers_[id];
  if (barrier.arrived == 0) {
    barrier.expected = num_threads;
    barrier.site = site;
  } else if (barrier.expected != num_threads) {
    fail("threads meet at barrier " + std::to_string(id) + " expecting " +
         std::to_string(num_threads) + " threads at " + to_string(site) + ", " +
         std::to_string(barrier.expected) + " at " + to_string(barrier.site));
  } else if (id == 0 && barrier.site.line != site.line) {
    fail("threads of one block meet at different places: " + to_string(site) + ", " +
         to_string(barrier.site));
  }
  if (id == 0 && live_ < num_threads_) {
    fail("comes to " + to_string(site) + ", but " + std::to_string(num_threads_ - live_) + " of " +
         std::to_string(num_threads_) + " threads have exited");
  }
  barrier.all &= predicate;
  barrier.any |= predicate;
  barrier.count += predicate;
  const Thread& self = *current;
  if (++barrier.arrived == barrier.expected) {
    release_barrier(barrier);
  } else if (waits) {
    barrier.waiting[self.number / kWarpSize] |= 1u << self.lane;
    wait(site);
  }
}

void Block::release_barrier(Barrier& barrier) {
  Barrier next;
  next.all_result = barrier.all;
  next.any_result = barrier.any;
  next.count_result = barrier.count;
  for (int w = 0; w * kWarpSize < num_threads_; ++w) {
    if (barrier.waiting[w] != 0) warps_[w].wake(barrier.waiting[w]);
  }
  barrier = next;
}

void Block::report_deadlock() {
  const Thread* waiting = nullptr;
  std::string others;
  int listed = 0;
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.exited) continue;
    if (waiting == nullptr) {
      waiting = &thread;
    } else if ((thread.site->line != waiting->site->line ||
                thread.site->name != waiting->site->name) &&
               listed++ == 0) {
      others = ", thread " + to_string(thread.index) + " at " + to_string(*thread.site);
    }
  }
  const int exited = num_threads_ - live_;
  if (exited > 0) others += ", and " + std::to_string(exited) + " have exited";
  fail("deadlock of " + std::to_string(live_) + " threads: thread " + to_string(waiting->index) +
       " waits at " + to_string(*waiting->site) + others);
}

}  // namespace roots::simulator
