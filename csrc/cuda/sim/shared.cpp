// Shared memory: every variable an allocation of its own, so that AddressSanitizer knows its end.
#include "cuda_sim.h"

namespace roots::simulator {

// All ones are a NaN as float, half and bfloat16, and an index far outside.
void* poisoned_memory(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return memory;
}

void fail_alignment(const void* address, size_t bytes, const char* name) {
  fail(std::string(name) + " of " + std::to_string(bytes) + " bytes at address " +
       hex(reinterpret_cast<uintptr_t>(address)) + ", which is no multiple of them");
}

void* Block::static_shared(const void* key, size_t bytes) {
  for (const Region& region : static_) {
    if (region.key == key) return region.memory;
  }
  static_bytes_ += (bytes + 15) / 16 * 16;
  const size_t total = static_bytes_ + launch_->dynamic_bytes;
  if (total > launch_->shared_limit) {
    fail(std::to_string(total) + " bytes of static and dynamic shared memory are more than the " +
         std::to_string(launch_->shared_limit) + " that this kernel may have");
  }
  static_.push_back({key, poisoned_memory(bytes), bytes});
  return static_.back().memory;
}

bool Block::is_shared(const void* address, size_t bytes) const {
  const uintptr_t first = reinterpret_cast<uintptr_t>(address), last = first + bytes;
  const auto inside = [&](const Region& region) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(region.memory);
    return first >= begin && last <= begin + region.bytes;
  };
  if (inside(dynamic_)) return true;
  for (const Region& region : static_) {
    if (inside(region)) return true;
  }
  return false;
}

void Block::release_shared() {
  std::free(dynamic_.memory);
  dynamic_ = {};
  for (const Region& region : static_) std::free(region.memory);
  static_.clear();
  static_bytes_ = 0;
}

}  // namespace roots::simulator
