// rotary on a GPU. A block handles a few tokens, of 512 items in all; an item is kSize pairs of one
// head (two packs of 16 bytes), or a pack of the dims that are kept. Moves x once in and once out.

#include "../ops/rotary.h"
#include "device.cuh"

namespace roots {
namespace {

constexpr int kThreads = 256;
constexpr int kItemsOfBlock = 512;

// Where item `item` of a token lies; 32-bit, because a token has fewer than 2^31 elements.
struct Layout {
  int rotated_items;  // of a head
  int items;          // of a head
  int tokens_of_block;
};

template <int kSize>
struct Floats {
  float values[kSize];

  __device__ __forceinline__ explicit Floats(const float* source) {
    constexpr int kStep = kSize < 4 ? kSize : 4;
#pragma unroll
    for (int k = 0; k < kSize; k += kStep) {
      const auto pack = load_pack<kStep>(source + k);
#pragma unroll
      for (int j = 0; j < kStep; ++j) values[k + j] = pack.values[j];
    }
  }
};

// Pairs first, ..., first + kSize - 1 of the head at x.
template <class T, int kSize, bool kInterleaved>
__device__ __forceinline__ void rotate_item(const T* x, T* y, const Floats<kSize>& cos,
                                            const Floats<kSize>& sin, int64_t first,
                                            int64_t angles) {
  const int64_t a = kInterleaved ? 2 * first : first;
  const int64_t b = kInterleaved ? a + kSize : a + angles;
  Pack<T, kSize> packs[2] = {load_pack<kSize>(x + a), load_pack<kSize>(x + b)};
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    T& left = kInterleaved ? packs[2 * k / kSize].values[2 * k % kSize] : packs[0].values[k];
    T& right =
        kInterleaved ? packs[(2 * k + 1) / kSize].values[(2 * k + 1) % kSize] : packs[1].values[k];
    const float l = to_float(left), r = to_float(right);
    left = from_float<T>(fmaf(l, cos.values[k], -r * sin.values[k]));
    right = from_float<T>(fmaf(r, cos.values[k], l * sin.values[k]));
  }
  store_pack(y + a, packs[0]);
  store_pack(y + b, packs[1]);
}

// The row of the tables for a token, or -1 for a bad position.
__device__ __forceinline__ int64_t table_row(const Rotary& args, int64_t index, int64_t token) {
  if (args.positions == nullptr) return args.table_of_rows ? index : token;
  const int64_t position = args.positions[index];
  return position >= 0 && position < args.table_rows ? position : -1;
}

template <class T, int kSize, bool kInterleaved>
__global__ void rotary_kernel(Rotary args, Layout layout) {
  const int items_of_token = static_cast<int>(args.heads) * layout.items;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * layout.tokens_of_block;
  const int tokens = static_cast<int>(
      min(static_cast<int64_t>(layout.tokens_of_block), args.rows * args.tokens - first_token));
  for (int i = threadIdx.x; i < tokens * items_of_token; i += kThreads) {
    const int64_t index = first_token + i / items_of_token;
    const int item = i % items_of_token;
    const int64_t row = index / args.tokens, token = index % args.tokens;
    const int64_t head = item / layout.items;
    const int part = item % layout.items;
    const T* x = static_cast<const T*>(args.x) + row * args.x_strides.row +
                 token * args.x_strides.token + head * args.x_strides.head;
    T* y = static_cast<T*>(args.y) + row * args.y_strides.row + token * args.y_strides.token +
           head * args.y_strides.head;
    if (part >= layout.rotated_items) {
      const int64_t kept = 2 * args.angles + (part - layout.rotated_items) * kSize;
      store_pack(y + kept, load_pack<kSize>(x + kept));
      continue;
    }
    const int64_t first = static_cast<int64_t>(part) * kSize;
    const int64_t place = table_row(args, index, token);
    const int64_t entry = (place < 0 ? 0 : place) * args.angles + first;
    Floats<kSize> cos(args.cos + entry), sin(args.sin + entry);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (args.inverse) sin.values[k] = -sin.values[k];
      if (place < 0) cos.values[k] = sin.values[k] = NAN;
    }
    rotate_item<T, kSize, kInterleaved>(x, y, cos, sin, first, args.angles);
  }
}

template <class T, int kSize>
Status launch_rotary(const Rotary& args, Stream stream) {
  Layout layout{};
  layout.rotated_items = static_cast<int>(args.angles / kSize);
  const int64_t kept = args.x == args.y ? 0 : (args.head_size - 2 * args.angles) / kSize;
  layout.items = layout.rotated_items + static_cast<int>(kept);
  if (layout.items == 0) return 0;
  const int64_t fitting = kItemsOfBlock / (args.heads * layout.items);
  layout.tokens_of_block = fitting > 1 ? static_cast<int>(fitting) : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows * args.tokens, layout.tokens_of_block)));
  return args.interleaved
             ? launch(rotary_kernel<T, kSize, true>, grid, dim3(kThreads), 0, stream, args, layout)
             : launch(rotary_kernel<T, kSize, false>, grid, dim3(kThreads), 0, stream, args,
                      layout);
}

bool are_multiples(const HeadStrides& strides, int64_t size) {
  return strides.row % size == 0 && strides.token % size == 0 && strides.head % size == 0;
}

}  // namespace

Status rotary(const Rotary& args, Stream stream) {
  return with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = kPackSize<T>;
    const bool wide = args.angles % kWide == 0 && args.head_size % kWide == 0 &&
                      are_multiples(args.x_strides, kWide) &&
                      are_multiples(args.y_strides, kWide) && is_aligned(args.x, 16) &&
                      is_aligned(args.y, 16) && is_aligned(args.cos, 16) &&
                      is_aligned(args.sin, 16);
    return wide ? launch_rotary<T, kWide>(args, stream) : launch_rotary<T, 1>(args, stream);
  });
}

}  // namespace roots
