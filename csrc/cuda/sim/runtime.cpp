#include <map>
#include <memory>
#include <mutex>

#include "cuda_sim.h"

thread_local uint3 threadIdx;
thread_local uint3 blockIdx;
thread_local dim3 blockDim;
thread_local dim3 gridDim;

namespace roots::simulator {
namespace {

constexpr int kDefaultSharedBytes = 48 << 10;
constexpr int kMaxSharedBytes = 227 << 10;

thread_local cudaError_t last_error = cudaSuccess;
std::mutex limits_mutex;
std::map<const void*, int> limits;  // of shared memory, where a kernel was given another

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

size_t shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto found = limits.find(kernel);
  return static_cast<size_t>(found != limits.end() ? std::max(found->second, kDefaultSharedBytes)
                                                   : kDefaultSharedBytes);
}

bool fits(const dim3& grid, const dim3& block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads >= 1 && threads <= kMaxThreads && block.z <= 64 && grid.x >= 1 && grid.y >= 1 &&
         grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

uint64_t seed_of_environment() {
  const char* text = std::getenv("ROOTS_SIMULATOR_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
}

// Host threads keep their block, whose stacks take a while to map.
Block& block_of_host_thread() {
  static thread_local std::unique_ptr<Block> block;
  if (!block) block = std::make_unique<Block>();
  return *block;
}

void run_block(const Launch& launch, int64_t number) {
  const dim3& grid = launch.grid;
  gridDim = grid;
  blockDim = launch.block;
  blockIdx = make_uint3(static_cast<unsigned>(number % grid.x),
                        static_cast<unsigned>(number / grid.x % grid.y),
                        static_cast<unsigned>(number / grid.x / grid.y));
  block_of_host_thread().run(launch, number);
}

// Blocks come in any order on a GPU. With a seed: i * odd + start mod 2^bits, leaving out what is
// too large, visits each number below `count` once.
class BlockOrder {
 public:
  BlockOrder(int64_t count, uint64_t seed) : count_(static_cast<uint64_t>(count)) {
    if (seed == 0) return;
    while (mask_ + 1 < count_) mask_ = mask_ * 2 + 1;
    Random random(seed);
    factor_ = (random() << 3) + (random.below(2) != 0 ? 5u : 3u);
    start_ = random();
  }
  int64_t positions() const { return static_cast<int64_t>(mask_ != 0 ? mask_ + 1 : count_); }
  // -1: nothing at this position.
  int64_t operator()(int64_t position) const {
    if (mask_ == 0) return position;
    const uint64_t number = (static_cast<uint64_t>(position) * factor_ + start_) & mask_;
    return number < count_ ? static_cast<int64_t>(number) : -1;
  }

 private:
  uint64_t count_;
  uint64_t mask_ = 0;
  uint64_t factor_ = 1;
  uint64_t start_ = 0;
};

}  // namespace

std::string hex(uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

cudaError_t run_grid(const void* kernel, const cudaLaunchConfig_t& config,
                     void (*call)(const void* arguments), const void* arguments) {
  if (current != nullptr) fail("launches a kernel, which the simulator cannot run");
  if (!fits(config.gridDim, config.blockDim)) return remember(cudaErrorInvalidConfiguration);
  const size_t limit = shared_limit(kernel);
  if (config.dynamicSmemBytes > limit) return remember(cudaErrorInvalidValue);
  const Launch launch{config.gridDim, config.blockDim,       config.dynamicSmemBytes,
                      limit,          seed_of_environment(), call,
                      arguments};
  const dim3& grid = launch.grid;
  const BlockOrder order(int64_t{grid.x} * grid.y * grid.z, launch.seed);
  const int64_t positions = order.positions();
  std::exception_ptr error;
  bool failed = false;
#pragma omp parallel for schedule(dynamic, 1) if (positions > 1)
  for (int64_t position = 0; position < positions; ++position) {
    const int64_t number = order(position);
    if (number < 0 || __atomic_load_n(&failed, __ATOMIC_RELAXED)) continue;
    try {
      run_block(launch, number);
    } catch (...) {
#pragma omp critical(roots_simulator_error)
      if (!error) error = std::current_exception();
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    }
  }
  if (error) std::rethrow_exception(error);
  return cudaSuccess;
}

}  // namespace roots::simulator

using roots::simulator::remember;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(roots::simulator::last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return roots::simulator::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "unknown error of the simulator";
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  using namespace roots::simulator;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kMaxSharedBytes) return remember(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(limits_mutex);
  limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// The attributes of an H100, with few multiprocessors so that small problems fill them.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = roots::simulator::kMaxSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    default:
      return remember(cudaErrorInvalidValue);
  }
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memmove(target, source, bytes);
  return cudaSuccess;
}

}  // extern "C"
