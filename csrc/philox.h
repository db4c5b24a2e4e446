// Random bits of attention dropout, the same on every backend and for every division of the work.
// Torch-free; host and device. Internal linkage: CPU units of several instruction sets include it.
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
//
// For the row's 64-bit key, query position p = t + S - T, global head h and key position s:
//   key     = (low, high) 32-bit word of the row's key
//   counter = (s / 32 * 4 + s % 8 / 2, p, h, 0)
//   bits    = the low (s even) or high (s odd) 16 bits of output word s % 32 / 8
//   kept iff bits >= threshold; what is kept is multiplied by 65536 / (65536 - threshold)
// A thread that holds columns 8n + 2t, 8n + 2t + 1 (n = 0..3) of a group of 32 keys, as in the
// accumulators of mma.m16n8k16, gets its 8 values from a single call with counter 4 * group + t.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ROOTS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ROOTS_HOST_DEVICE inline
#endif

namespace roots {

struct PhiloxBits {
  uint32_t word[4];
};

// The 10 rounds for one counter and key.
static ROOTS_HOST_DEVICE PhiloxBits philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                               uint32_t key0, uint32_t key1) {
  PhiloxBits c = {{c0, c1, c2, c3}};
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1,
          static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The bits of group s / 32 for the pairs of keys s % 8 / 2 == pair: word n belongs to keys
// 32 * group + 8n + 2 * pair (low half) and the one after it (high half).
static ROOTS_HOST_DEVICE PhiloxBits attention_dropout_bits(uint64_t row_key, uint32_t position,
                                                           uint32_t head, uint32_t group,
                                                           uint32_t pair) {
  return philox4x32(group * 4 + pair, position, head, 0, static_cast<uint32_t>(row_key),
                    static_cast<uint32_t>(row_key >> 32));
}

// Whether weight (position, head, key) is kept.
static ROOTS_HOST_DEVICE bool attention_dropout_keeps(uint64_t row_key, uint32_t position,
                                                      uint32_t head, uint32_t key,
                                                      uint32_t threshold) {
  const PhiloxBits bits = attention_dropout_bits(row_key, position, head, key / 32, key % 8 / 2);
  // An array in registers has no index that is computed.
  const uint32_t low = key % 16 < 8 ? bits.word[0] : bits.word[1];
  const uint32_t high = key % 16 < 8 ? bits.word[2] : bits.word[3];
  const uint32_t word = key % 32 < 16 ? low : high;
  return (key % 2 == 0 ? word & 0xffffu : word >> 16) >= threshold;
}

// A rate in [0, 1) in steps of 1 / 65536, rounded to the nearest and at most 65535.
static inline uint32_t attention_dropout_threshold(double rate) {
  const uint32_t threshold = static_cast<uint32_t>(rate * 65536.0 + 0.5);
  return threshold > 65535u ? 65535u : threshold;
}

// What the kept weights are multiplied by.
static ROOTS_HOST_DEVICE float attention_dropout_scale(uint32_t threshold) {
  return 65536.0f / (65536.0f - static_cast<float>(threshold));
}

}  // namespace roots
