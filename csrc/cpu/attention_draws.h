// Dropout of attention weights on a CPU: the draws of csrc/philox.h for a tile of keys at once.
#pragma once

#include "../philox.h"
#include "attention_tiles.h"

namespace roots {
namespace ROOTS_CAPABILITY {

// 32-bit words, one call of the generator in each lane.
#if defined(CPU_CAPABILITY_AVX512)
using Words = __m512i;
inline Words words(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
inline Words xor_words(Words a, Words b) { return _mm512_xor_si512(a, b); }

// Low and high words of a * multiplier: 64-bit products of the even and of the odd lanes.
inline void multiply_words(Words a, Words multiplier, Words& low, Words& high) {
  const Words even = _mm512_mul_epu32(a, multiplier);
  const Words odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), multiplier);
  low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}
#else
using Words = __m256i;
inline Words words(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
inline Words xor_words(Words a, Words b) { return _mm256_xor_si256(a, b); }

inline void multiply_words(Words a, Words multiplier, Words& low, Words& high) {
  const Words even = _mm256_mul_epu32(a, multiplier);
  const Words odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), multiplier);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}
#endif

// philox4x32 of the counters (call + lane, position, head, 0).
inline void draw(uint32_t call, uint32_t position, uint32_t head, uint64_t key, Words out[4]) {
#if defined(CPU_CAPABILITY_AVX512)
  const Words lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  Words c0 = _mm512_add_epi32(words(call), lanes);
#else
  Words c0 = _mm256_add_epi32(words(call), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#endif
  Words c1 = words(position), c2 = words(head), c3 = words(0);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    Words low0, high0, low1, high1;
    multiply_words(c0, words(0xD2511F53u), low0, high0);
    multiply_words(c2, words(0xCD9E8D57u), low1, high1);
    c0 = xor_words(xor_words(high1, c1), words(key0));
    c1 = low1;
    c2 = xor_words(xor_words(high0, c3), words(key1));
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// Writes for each of the kTileKeys keys from `first` on what its weight is multiplied by: 0, or
// 1 / (1 - rate). `first` is a multiple of kTileKeys; position and head are those of the row.
inline void keep_factors(const Head& head, int64_t row, int64_t first, float* factors) {
  const AttentionProblem& problem = head.problem;
  const uint32_t threshold = problem.dropout_threshold;
  const float scale = attention_dropout_scale(threshold);
  const auto position = static_cast<uint32_t>(head.query(row) + problem.keys - problem.queries);
  const auto global_head = static_cast<uint32_t>(problem.first_head + head.head(row));
  const auto key = static_cast<uint64_t>(problem.dropout_keys[head.b]);
  // Four calls make a group of 32 keys; lane 4 g + i of word j has keys 32 g + 8 j + 2 i, + 1.
  constexpr int64_t kKeysOfCalls = kWidth * 8;
  for (int64_t s = 0; s < kTileKeys; s += kKeysOfCalls) {
    Words drawn[4];
    draw(static_cast<uint32_t>((first + s) / 8), position, global_head, key, drawn);
#if defined(CPU_CAPABILITY_AVX512)
    __mmask32 kept[4];
    for (int j = 0; j < 4; ++j) {
      kept[j] = _mm512_cmpge_epu16_mask(drawn[j], _mm512_set1_epi16(static_cast<short>(threshold)));
    }
    for (int g = 0; g < 4; ++g) {
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t even = kept[2 * pair] >> (8 * g) & 0xff;
        const uint32_t odd = kept[2 * pair + 1] >> (8 * g) & 0xff;
        const auto mask = static_cast<__mmask16>(even | odd << 8);
        _mm512_storeu_ps(factors + s + 32 * g + 16 * pair,
                         _mm512_maskz_mov_ps(mask, _mm512_set1_ps(scale)));
      }
    }
#else
    const __m256i last_dropped = _mm256_set1_epi32(static_cast<int>(threshold) - 1);
    for (int j = 0; j < 4; ++j) {
      for (int g = 0; g < 2; ++g) {
        const __m128i halves =
            g == 0 ? _mm256_castsi256_si128(drawn[j]) : _mm256_extracti128_si256(drawn[j], 1);
        const __m256i kept = _mm256_cmpgt_epi32(_mm256_cvtepu16_epi32(halves), last_dropped);
        _mm256_storeu_ps(factors + s + 32 * g + 8 * j,
                         _mm256_and_ps(_mm256_castsi256_ps(kept), _mm256_set1_ps(scale)));
      }
    }
#endif
  }
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots
