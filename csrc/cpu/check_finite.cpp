// check_finite on a CPU: threads over the memory of all tensors; a number is finite unless all bits
// of its exponent are set. Bound by memory.

#include "../ops/check_finite.h"

#include <atomic>

#include "cpu.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

// Elements between two looks at whether the answer is known already.
constexpr int64_t kChunk = 1 << 13;

// Word: unsigned integer of the size of a number; a loop that the compiler makes vectors of.
template <class Word>
bool has_non_finite(const Word* words, int64_t size, Word exponent) {
  Word found = 0;
  for (int64_t i = 0; i < size; ++i) {
    found |= static_cast<Word>((words[i] & exponent) == exponent ? 1 : 0);
  }
  return found != 0;
}

bool has_non_finite(const CheckedTensor& tensor, int64_t begin, int64_t end) {
  const auto* words = static_cast<const uint32_t*>(tensor.values) + begin;
  const auto* halves = static_cast<const uint16_t*>(tensor.values) + begin;
  switch (tensor.dtype) {
    case DType::kFloat32:
      return has_non_finite<uint32_t>(words, end - begin, 0x7f800000u);
    case DType::kFloat16:
      return has_non_finite<uint16_t>(halves, end - begin, 0x7c00u);
    case DType::kBFloat16:
      return has_non_finite<uint16_t>(halves, end - begin, 0x7f80u);
  }
  return false;
}

// Elements [begin, end) of tensor i. `earliest`: the first tensor known to be bad.
void scan(const CheckedTensor& tensor, int64_t i, int64_t begin, int64_t end,
          std::atomic<int64_t>& earliest) {
  for (int64_t at = begin; at < end; at += kChunk) {
    int64_t seen = earliest.load(std::memory_order_relaxed);
    if (seen <= i) return;
    if (!has_non_finite(tensor, at, std::min(at + kChunk, end))) continue;
    while (i < seen && !earliest.compare_exchange_weak(seen, i)) {
    }
    return;
  }
}

}  // namespace

Status check_finite(const CheckFinite& args, Stream) {
  int64_t elements = 0;
  for (int64_t i = 0; i < args.count; ++i) elements += args.tensors[i].size;
  std::atomic<int64_t> earliest{args.count};
  // Elements are numbered through all tensors, one after the other.
  parallel_for(elements, kGrainElements, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int64_t i = 0; i < args.count && first < end; ++i) {
      const CheckedTensor& tensor = args.tensors[i];
      const int64_t next = first + tensor.size;
      if (next > begin) {
        scan(tensor, i, std::max(begin, first) - first, std::min(end, next) - first, earliest);
      }
      first = next;
    }
  });
  if (earliest.load() < args.count) *args.first = args.tensors[earliest.load()].index;
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(check_finite, CheckFinite)
