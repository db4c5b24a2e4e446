#include "cuda_sim.h"

namespace roots::simulator {
namespace {

struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
};
static_assert(sizeof(Fragments) <= sizeof(Slot), "a lane's share fits a slot");

// Eight floats in whatever registers the processor has.
typedef float Row __attribute__((vector_size(32)));

// a and b as the instruction sees them.
struct Matrices {
  float a[16][16];
  Row b[16];
  Row d[16];
};

float to_float(uint32_t half, bool bfloat16) {
  if (bfloat16) return bit_cast<float>(half << 16);
  return __half2float(__half(__half_raw{static_cast<unsigned short>(half)}));
}

// d += a b, the products of one element in order of k.
__attribute__((always_inline)) inline void multiply(Matrices& m) {
  for (int i = 0; i < 16; i += 4) {
    Row sum0 = m.d[i], sum1 = m.d[i + 1], sum2 = m.d[i + 2], sum3 = m.d[i + 3];
    for (int k = 0; k < 16; ++k) {
      sum0 += m.a[i][k] * m.b[k];
      sum1 += m.a[i + 1][k] * m.b[k];
      sum2 += m.a[i + 2][k] * m.b[k];
      sum3 += m.a[i + 3][k] * m.b[k];
    }
    m.d[i] = sum0;
    m.d[i + 1] = sum1;
    m.d[i + 2] = sum2;
    m.d[i + 3] = sum3;
  }
}

void multiply_plain(Matrices& m) { multiply(m); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void multiply_avx2(Matrices& m) { multiply(m); }
const auto multiply_best = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                               ? &multiply_avx2
                               : &multiply_plain;
#else
const auto multiply_best = &multiply_plain;
#endif

// Lane 4g + t holds of a: rows g, g + 8, columns 2t, 2t + 1 and 8 more; of b: rows 2t, 2t + 1 and 8
// more, column g; of d: rows g, g + 8, columns 2t, 2t + 1.
void multiply_fragments(Slot* slots, bool bfloat16) {
  Matrices m;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Fragments& f = *reinterpret_cast<const Fragments*>(slots[lane].bytes);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int upper = 0; upper < 2; ++upper) {
        const uint32_t pair = f.a[upper + 2 * half];
        float* const a = &m.a[g + 8 * upper][2 * t + 8 * half];
        a[0] = to_float(pair & 0xffffu, bfloat16);
        a[1] = to_float(pair >> 16, bfloat16);
      }
      m.b[2 * t + 8 * half][g] = to_float(f.b[half] & 0xffffu, bfloat16);
      m.b[2 * t + 8 * half + 1][g] = to_float(f.b[half] >> 16, bfloat16);
      m.d[g + 8 * half][2 * t] = f.d[2 * half];
      m.d[g + 8 * half][2 * t + 1] = f.d[2 * half + 1];
    }
  }
  multiply_best(m);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    Fragments& f = *reinterpret_cast<Fragments*>(slots[lane].bytes);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      f.d[2 * half] = m.d[g + 8 * half][2 * t];
      f.d[2 * half + 1] = m.d[g + 8 * half][2 * t + 1];
    }
  }
}

// The addresses of 8 * count lanes in, the registers of all lanes out.
void load_fragments(Slot* slots, int count, bool transposed) {
  uint16_t matrices[4][8][8];
  for (int m = 0; m < count; ++m) {
    for (int r = 0; r < 8; ++r) {
      std::memcpy(matrices[m][r], lane_value<const void*>(slots, 8 * m + r), 16);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    uint32_t registers[4] = {};
    for (int m = 0; m < count; ++m) {
      const uint16_t first = transposed ? matrices[m][2 * t][g] : matrices[m][g][2 * t];
      const uint16_t second = transposed ? matrices[m][2 * t + 1][g] : matrices[m][g][2 * t + 1];
      registers[m] = first | uint32_t{second} << 16;
    }
    std::memcpy(slots[lane].bytes, registers, sizeof(registers));
  }
}

}  // namespace

void matrix_multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bfloat16,
                     const Site& site) {
  Fragments mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  std::memcpy(mine.d, d, sizeof(d));
  const Slot* const slots = exchange(0xffffffffu, site, &mine, sizeof(mine),
                                     [&](Slot* all) { multiply_fragments(all, bfloat16); });
  std::memcpy(d, reinterpret_cast<const Fragments*>(slots[current->lane].bytes)->d, sizeof(d));
}

void load_matrices(uint32_t* registers, int count, bool transposed, const void* row,
                   const Site& site) {
  if (current->lane < 8 * count) {
    check_alignment(row, 16, "ldmatrix");
    check_shared(row, 16, "ldmatrix");
  }
  const Slot* const slots = exchange(0xffffffffu, site, &row, sizeof(row),
                                     [&](Slot* all) { load_fragments(all, count, transposed); });
  std::memcpy(registers, slots[current->lane].bytes, sizeof(uint32_t) * count);
}

void copy_async_16(void* target, const void* source, int source_bytes) {
  check_alignment(target, 16, "cp.async into shared memory");
  check_alignment(source, 16, "cp.async from global memory");
  check_shared(target, 16, "cp.async");
  if (source_bytes < 0 || source_bytes > 16) {
    fail("cp.async of " + std::to_string(source_bytes) + " bytes; it copies 0 to 16");
  }
  Thread& self = *current;
  self.copies.push_back({target, self.copy_group, {}});
  std::memcpy(self.copies.back().bytes, source, static_cast<size_t>(source_bytes));
  std::memset(target, 0xff, 16);
}

void copy_async_commit() { ++current->copy_group; }

void copy_async_wait(int newest_groups_left) {
  Thread& self = *current;
  const int64_t before =
      newest_groups_left < 0 ? self.copy_group + 1 : self.copy_group - newest_groups_left;
  size_t landed = 0;
  while (landed < self.copies.size() && self.copies[landed].group < before) {
    std::memcpy(self.copies[landed].target, self.copies[landed].bytes, 16);
    ++landed;
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(landed));
}

}  // namespace roots::simulator
