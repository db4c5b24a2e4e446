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

// The operands as the instruction sees them; a and b as bits.
struct alignas(32) Matrices {
  uint16_t a[16][16];
  uint16_t b[16][8];
  float d[16][8];
};

// Lane 4g + t holds of a: rows g, g + 8, columns 2t, 2t + 1 and 8 more; of b: rows 2t, 2t + 1 and 8
// more, column g; of d: rows g, g + 8, columns 2t, 2t + 1.
void gather(const Slot* slots, Matrices& m) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Fragments& f = *reinterpret_cast<const Fragments*>(slots[lane].bytes);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      std::memcpy(&m.a[g][2 * t + 8 * half], &f.a[2 * half], 4);
      std::memcpy(&m.a[g + 8][2 * t + 8 * half], &f.a[1 + 2 * half], 4);
      m.b[2 * t + 8 * half][g] = static_cast<uint16_t>(f.b[half]);
      m.b[2 * t + 8 * half + 1][g] = static_cast<uint16_t>(f.b[half] >> 16);
      std::memcpy(&m.d[g + 8 * half][2 * t], &f.d[2 * half], 8);
    }
  }
}

void scatter(const Matrices& m, Slot* slots) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    Fragments& f = *reinterpret_cast<Fragments*>(slots[lane].bytes);
    const int g = lane / 4, t = lane % 4;
    std::memcpy(&f.d[0], &m.d[g][2 * t], 8);
    std::memcpy(&f.d[2], &m.d[g + 8][2 * t], 8);
  }
}

// d += a b, the products of one element in order of k. convert(from, to) makes eight floats.
template <class Convert>
__attribute__((always_inline)) inline void multiply(Matrices& m, const Convert& convert) {
  Row b[16];
  for (int k = 0; k < 16; ++k) convert(m.b[k], b[k]);
  for (int i = 0; i < 16; i += 4) {
    alignas(32) float a[4][16];
    Row sum[4];
    for (int r = 0; r < 4; ++r) {
      std::memcpy(&sum[r], m.d[i + r], sizeof(Row));
      convert(m.a[i + r], *reinterpret_cast<Row*>(a[r]));
      convert(m.a[i + r] + 8, *reinterpret_cast<Row*>(a[r] + 8));
    }
    for (int k = 0; k < 16; ++k) {
      sum[0] += a[0][k] * b[k];
      sum[1] += a[1][k] * b[k];
      sum[2] += a[2][k] * b[k];
      sum[3] += a[3][k] * b[k];
    }
    for (int r = 0; r < 4; ++r) std::memcpy(m.d[i + r], &sum[r], sizeof(Row));
  }
}

void multiply_plain(Matrices& m, bool bfloat16) {
  multiply(m, [bfloat16](const uint16_t* from, Row& to) {
    for (int i = 0; i < 8; ++i) {
      to[i] = bfloat16 ? bit_cast<float>(uint32_t{from[i]} << 16)
                       : __half2float(__half(__half_raw{from[i]}));
    }
  });
}

#if defined(__x86_64__)
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t HalfWords __attribute__((vector_size(16)));
typedef short HalfBits __attribute__((vector_size(16)));

__attribute__((target("avx2,fma,f16c"))) void multiply_avx2(Matrices& m, bool bfloat16) {
  if (bfloat16) {
    multiply(m, [](const uint16_t* from, Row& to) __attribute__((target("avx2,fma,f16c"))) {
      HalfWords bits;
      std::memcpy(&bits, from, sizeof(bits));
      to = reinterpret_cast<Row>(__builtin_convertvector(bits, Words) << 16);
    });
  } else {
    multiply(m, [](const uint16_t* from, Row& to) __attribute__((target("avx2,fma,f16c"))) {
      HalfBits bits;
      std::memcpy(&bits, from, sizeof(bits));
      to = __builtin_ia32_vcvtph2ps256(bits);
    });
  }
}

const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
const auto multiply_best = has_avx2 ? &multiply_avx2 : &multiply_plain;
#else
const auto multiply_best = &multiply_plain;
#endif

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
  const Slot* const slots = exchange(0xffffffffu, site, &mine, sizeof(mine), [&](Slot* all) {
    Matrices m;
    gather(all, m);
    multiply_best(m, bfloat16);
    scatter(m, all);
  });
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
