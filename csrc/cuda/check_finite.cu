// check_finite on a GPU: the addresses of up to kTensors tensors travel as kernel arguments, and a
// block reads one chunk of 32 KB of one of them, 16 bytes a thread at a time. Bound by memory; the
// host never waits. A number is finite unless all bits of its exponent are set.

#include "../ops/check_finite.h"
#include "device.cuh"

namespace roots {
namespace {

constexpr int kTensors = 96;
constexpr int kThreads = 256;
constexpr int kLoads = 8;
constexpr int64_t kChunkBytes = int64_t{kThreads} * kLoads * 16;

// A launch's tensors; 4096 bytes of arguments are allowed.
struct Table {
  int64_t* first;
  const char* values[kTensors];
  int64_t bytes[kTensors];
  int64_t index[kTensors];
  unsigned first_chunk[kTensors + 1];  // of all chunks, and their number
  int count;
  DType dtype[kTensors];
};
static_assert(sizeof(Table) <= 4096, "arguments of a kernel");

// The bits of the exponents in 4 bytes: of one number, or of the lower and the upper one.
struct Exponents {
  unsigned lower, upper;
};

__device__ __forceinline__ Exponents exponents_of(DType dtype) {
  if (dtype == DType::kFloat32) return {0x7f800000u, 0x7f800000u};
  if (dtype == DType::kFloat16) return {0x00007c00u, 0x7c000000u};
  return {0x00007f80u, 0x7f800000u};
}

__device__ __forceinline__ bool is_bad(unsigned word, Exponents bits) {
  return (word & bits.lower) == bits.lower || (word & bits.upper) == bits.upper;
}

__global__ void __launch_bounds__(kThreads) check_kernel(const __grid_constant__ Table table) {
  // The last tensor whose first chunk is this one or before.
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const char* values = table.values[low];
  const int64_t bytes = table.bytes[low];
  const Exponents bits = exponents_of(table.dtype[low]);
  // Chunks count from the 16-byte boundary at or before the first element.
  const int64_t before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(values) % 16);
  const int64_t chunk = static_cast<int64_t>(blockIdx.x - table.first_chunk[low]) * kChunkBytes;
  bool bad = false;
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    const int64_t at = chunk - before + (k * kThreads + static_cast<int64_t>(threadIdx.x)) * 16;
    if (at >= 0 && at + 16 <= bytes) {
      const auto words = load_pack<4>(reinterpret_cast<const unsigned*>(values + at));
#pragma unroll
      for (int word = 0; word < 4; ++word) bad |= is_bad(words.values[word], bits);
    } else {
      for (int64_t byte = at < 0 ? 0 : at; byte < at + 16 && byte < bytes; byte += 2) {
        // Half a float: the upper one has the exponent.
        const unsigned half = *reinterpret_cast<const uint16_t*>(values + byte);
        const bool upper = table.dtype[low] != DType::kFloat32 || byte % 4 == 2;
        bad |= upper && is_bad(half << 16, {bits.upper, bits.upper});
      }
    }
  }
  if (__syncthreads_or(bad) != 0 && threadIdx.x == 0) {
    // -1, which stands for none, is the largest unsigned number.
    atomicMin(reinterpret_cast<unsigned long long*>(table.first),
              static_cast<unsigned long long>(table.index[low]));
  }
}

}  // namespace

Status check_finite(const CheckFinite& args, Stream stream) {
  for (int64_t done = 0; done < args.count; done += kTensors) {
    Table table{};
    table.first = args.first;
    table.count = static_cast<int>(args.count - done < kTensors ? args.count - done : kTensors);
    for (int i = 0; i < table.count; ++i) {
      const CheckedTensor& tensor = args.tensors[done + i];
      table.values[i] = static_cast<const char*>(tensor.values);
      table.bytes[i] = tensor.size * (tensor.dtype == DType::kFloat32 ? 4 : 2);
      table.index[i] = tensor.index;
      table.dtype[i] = tensor.dtype;
      const int64_t before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.values) % 16);
      const int64_t chunks = ceil_div(before + table.bytes[i], kChunkBytes);
      table.first_chunk[i + 1] = table.first_chunk[i] + static_cast<unsigned>(chunks);
    }
    const dim3 blocks(table.first_chunk[table.count]);
    const Status status = launch(check_kernel, blocks, dim3(kThreads), 0, stream, table);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace roots
