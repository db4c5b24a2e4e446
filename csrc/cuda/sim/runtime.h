// Launches, and the part of CUDA's runtime that launchers use.
#pragma once

#include "block.h"

namespace roots::simulator {

// Runs all blocks; throws Error. A launch that CUDA refuses returns the error and runs nothing.
cudaError_t run_grid(const void* kernel, const cudaLaunchConfig_t& config,
                     void (*call)(const void* arguments), const void* arguments);

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
  static void run(const void* self) {
    const Call& call = *static_cast<const Call*>(self);
    std::apply(call.kernel, call.arguments);
  }
};

}  // namespace roots::simulator

template <class... Parameters, class... Arguments>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                                      void (*kernel)(Parameters...), Arguments&&... arguments) {
  using Call = roots::simulator::Call<Parameters...>;
  static_assert((sizeof(Parameters) + ... + 0) <= 4096,
                "arguments of a kernel: at most 4096 bytes");
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  return roots::simulator::run_grid(reinterpret_cast<const void*>(kernel), *config, &Call::run,
                                    &call);
}

template <class... Parameters>
inline cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                        int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

// The blocks that fit a multiprocessor, as far as their shared memory and threads decide.
template <class... Parameters>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                                 void (*)(Parameters...),
                                                                 int block_threads,
                                                                 size_t dynamic_bytes) {
  const size_t by_memory = (size_t{228} << 10) / (dynamic_bytes + 1024);
  *blocks =
      static_cast<int>(std::min<size_t>(by_memory, 2048u / static_cast<unsigned>(block_threads)));
  return cudaSuccess;
}
