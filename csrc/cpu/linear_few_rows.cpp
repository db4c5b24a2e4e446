// linear_few_rows on a CPU: every weight is read from memory once, and that is what the time goes
// to. A tile of some rows of x and some outputs keeps its sums in registers while it goes along the
// inputs; meanwhile what lies behind its weights is asked for in the order of addresses, which the
// processor's own prefetcher follows: with one stream for each output it reaches half as much.
//
// Each number of y has one vector of sums, over the inputs in their order: it depends neither on
// the other rows of x nor on threads. A bfloat16 weight meets bfloat16 x in instructions for pairs
// of them where the processor has these: half the multiply-adds, with the same float32 sums.

#include "linear_few_rows.h"

#include <array>
#include <cmath>
#include <cstring>

#include "four_sums.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

constexpr int64_t kLineBytes = 64;

// Weights of a cache line, which are handled at once; x is padded with zeros to whole lines.
template <class W>
constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(W));

// Rows of x in a tile, at most; and outputs of a tile with so many rows, for the registers there
// are.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMostRows = 8;
constexpr std::array<int, kMostRows + 1> kOutputs = {0, 4, 6, 6, 6, 5, 4, 3, 3};
#else
constexpr int kMostRows = 4;
constexpr std::array<int, kMostRows + 1> kOutputs = {0, 4, 4, 3, 2};
#endif

// Weights are asked for at least so long before they are needed.
constexpr int64_t kAheadBytes = 12 << 10;

// kWidth weights as floats.
template <class W>
inline Vec weights_at(const W* weights) {
  if constexpr (!std::is_same_v<W, int8_t>) return load_vector(weights);
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#endif
}

// Each sum is taken in the same order, wherever its vector stands.
template <int kCount>
inline void store_sums(const Vec* totals, float* sums) {
  const Vec none(0.0f);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; i += 4) {
    const __m128 four =
        four_sums(totals[i], i + 1 < kCount ? totals[i + 1] : none,
                  i + 2 < kCount ? totals[i + 2] : none, i + 3 < kCount ? totals[i + 3] : none);
    _mm_storeu_ps(sums + i, four);
  }
}

// What a tile of kRows rows and kCount outputs is made from. x: as PaddedRows has it; weight:
// [kCount, inputs]; ahead: what is asked for meanwhile, as many bytes as the tile has.
template <class X, class W>
struct Tile {
  const X* x;
  const W* weight;
  int64_t inputs;
  const char* ahead;
};

// The weights of a tile that fill no line, padded with zeros: [kCount, kLine<W>].
template <class W, int kCount>
struct Rest {
  alignas(kLineBytes) W weights[kCount][kLine<W>];

  explicit Rest(const W* weight, int64_t inputs) {
    const int64_t whole = inputs / kLine<W> * kLine<W>;
    std::memset(weights, 0, sizeof(weights));
    for (int o = 0; o < kCount; ++o) {
      std::memcpy(weights[o], weight + o * inputs + whole, (inputs - whole) * sizeof(W));
    }
  }
};

// Asks for the next kCount lines: into the first cache while x leaves room there, else the second.
template <int kRows, int kCount>
inline void ask_for(const char*& ahead) {
#pragma GCC unroll 8
  for (int o = 0; o < kCount; ++o) {
    _mm_prefetch(ahead + o * kLineBytes, kRows == 1 ? _MM_HINT_T0 : _MM_HINT_T1);
  }
  ahead += kCount * kLineBytes;
}

// sums: [kRows, kCount], and room for a multiple of four.
template <int kRows, int kCount, class W>
void multiply(const Tile<float, W>& tile, float* sums) {
  Vec total[kRows][kCount];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int o = 0; o < kCount; ++o) total[m][o] = Vec(0.0f);
  }
  const float* x = tile.x;
  const char* ahead = tile.ahead;
  const auto add_line = [&](const W* weight, int64_t row) __attribute__((always_inline)) {
    ask_for<kRows, kCount>(ahead);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLine<W>; i += kWidth) {
      Vec right[kCount];
#pragma GCC unroll 8
      for (int o = 0; o < kCount; ++o) right[o] = weights_at(weight + o * row + i);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Vec left = Vec::loadu(x + m * kLine<W> + i);
#pragma GCC unroll 8
        for (int o = 0; o < kCount; ++o) {
          total[m][o] = at::vec::fmadd(left, right[o], total[m][o]);
        }
      }
    }
    x += kRows * kLine<W>;
  };
  const int64_t whole = tile.inputs / kLine<W> * kLine<W>;
  for (int64_t i = 0; i < whole; i += kLine<W>) add_line(tile.weight + i, tile.inputs);
  if (whole < tile.inputs) {
    const Rest<W, kCount> rest(tile.weight, tile.inputs);
    add_line(rest.weights[0], kLine<W>);
  }
  store_sums<kRows * kCount>(total[0], sums);
}

#if defined(CPU_CAPABILITY_AVX512)
#define ROOTS_PAIRS __attribute__((target("avx512bf16")))

ROOTS_PAIRS inline __m512bh pairs_at(const c10::BFloat16* source) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(source));
}

template <int kRows, int kCount>
ROOTS_PAIRS void multiply(const Tile<c10::BFloat16, c10::BFloat16>& tile, float* sums) {
  using W = c10::BFloat16;
  __m512 total[kRows][kCount];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int o = 0; o < kCount; ++o) total[m][o] = _mm512_setzero_ps();
  }
  const Rest<W, kCount> rest(tile.weight, tile.inputs);
  const int64_t whole = tile.inputs / kLine<W>;
  const int64_t lines = (tile.inputs + kLine<W> - 1) / kLine<W>;
  const W* x = tile.x;
  const W* weight = tile.weight;
  const char* ahead = tile.ahead;
  int64_t row = tile.inputs;
  for (int64_t line = 0; line < lines; ++line, weight += kLine<W>, x += kRows * kLine<W>) {
    if (line == whole) weight = rest.weights[0], row = kLine<W>;
    ask_for<kRows, kCount>(ahead);
    __m512bh right[kCount];
#pragma GCC unroll 8
    for (int o = 0; o < kCount; ++o) right[o] = pairs_at(weight + o * row);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512bh left = pairs_at(x + m * kLine<W>);
#pragma GCC unroll 8
      for (int o = 0; o < kCount; ++o) {
        total[m][o] = _mm512_dpbf16_ps(total[m][o], left, right[o]);
      }
    }
  }
  Vec totals[kRows * kCount];
#pragma GCC unroll 32
  for (int i = 0; i < kRows * kCount; ++i) totals[i] = total[i / kCount][i % kCount];
  store_sums<kRows * kCount>(totals, sums);
}
#endif

// x in the order in which tiles read it: [tiles, lines, tile_rows, line], the last line of a row
// and the last tile padded with zeros.
template <class X>
struct PaddedRows {
  int64_t tiles;
  int64_t tile_rows;
  int64_t tile_size;  // elements
  Floats data;

  PaddedRows(const LinearFewRows& args, int64_t line)
      : tiles((args.rows + kMostRows - 1) / kMostRows),
        tile_rows((args.rows + tiles - 1) / tiles),
        tile_size(tile_rows * round_up(args.inputs, line)),
        data(tiles * tile_size) {
    X* to = const_cast<X*>(tile(0));
    std::memset(to, 0, static_cast<size_t>(tiles * tile_size) * sizeof(X));
    if constexpr (std::is_same_v<X, float>) {
      with_dtype(args.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        fill<T>(args, line, to,
                [](const T* from, float* row, int64_t count) { widen(from, row, count); });
      });
    } else {
      fill<X>(args, line, to,
              [](const X* from, X* row, int64_t count) { std::copy_n(from, count, row); });
    }
  }
  template <class T, class Copy>
  void fill(const LinearFewRows& args, int64_t line, X* to, const Copy& copy) const {
    for (int64_t m = 0; m < args.rows; ++m) {
      const T* from = static_cast<const T*>(args.x) + m * args.inputs;
      X* row = to + m / tile_rows * tile_size + m % tile_rows * line;
      for (int64_t i = 0; i < args.inputs; i += line, row += tile_rows * line) {
        copy(from + i, row, std::min(line, args.inputs - i));
      }
    }
  }
  const X* tile(int64_t index) const {
    return reinterpret_cast<const X*>(data.get()) + index * tile_size;
  }
};

// y of kCount outputs from `output` on and the rows from `first` on; sums: [kRows, kCount].
template <int kRows, int kCount>
void finish(const LinearFewRows& args, const float* sums, int64_t first, int64_t output) {
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* bias = static_cast<const T*>(args.bias);
    for (int64_t m = 0; m < std::min<int64_t>(kRows, args.rows - first); ++m) {
      T* y = static_cast<T*>(args.y) + (first + m) * args.outputs + output;
      for (int o = 0; o < kCount; ++o) {
        const float factor = args.scale == nullptr ? 1.0f : args.scale[output + o];
        const float shift = bias == nullptr ? 0.0f : static_cast<float>(bias[output + o]);
        // Written so: rounded once, or else at the compiler's choice from place to place.
        y[o] = static_cast<T>(std::fma(sums[m * kCount + o], factor, shift));
      }
    }
  });
}

// y of kCount outputs from `output` on, of all rows.
template <int kRows, int kCount, class X, class W>
void outputs_at(const LinearFewRows& args, const PaddedRows<X>& x, int64_t output) {
  const W* weight = static_cast<const W*>(args.weight) + output * args.inputs;
  const int64_t bytes = kCount * args.inputs * static_cast<int64_t>(sizeof(W));
  const char* ahead = reinterpret_cast<const char*>(weight) + std::max(bytes, kAheadBytes);
  for (int64_t tile = 0; tile < x.tiles; ++tile) {
    float sums[(kRows * kCount + 3) / 4 * 4];
    multiply<kRows, kCount>(Tile<X, W>{x.tile(tile), weight, args.inputs, ahead}, sums);
    finish<kRows, kCount>(args, sums, tile * kRows, output);
  }
}

template <int kRows, class X, class W>
void all_outputs(const LinearFewRows& args, const PaddedRows<X>& x) {
  constexpr int kCount = kOutputs[kRows];
  const int64_t tiles = args.outputs / kCount;
  const int64_t rest = args.outputs % kCount;
  // The last outputs, one by one, count as one tile.
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (kCount * args.inputs + 1));
  parallel_for(tiles + (rest > 0 ? 1 : 0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < std::min(end, tiles); ++tile) {
      outputs_at<kRows, kCount, X, W>(args, x, tile * kCount);
    }
    for (int64_t o = tiles * kCount; end > tiles && o < args.outputs; ++o) {
      outputs_at<kRows, 1, X, W>(args, x, o);
    }
  });
}

template <class X, class W, int kRows = kMostRows>
void with_tile_rows(const LinearFewRows& args, const PaddedRows<X>& x) {
  if constexpr (kRows > 1) {
    if (x.tile_rows < kRows) return with_tile_rows<X, W, kRows - 1>(args, x);
  }
  all_outputs<kRows, X, W>(args, x);
}

template <class X, class W>
void run(const LinearFewRows& args) {
  const PaddedRows<X> x(args, kLine<W>);
  with_tile_rows<X, W>(args, x);
}

}  // namespace

Status linear_few_rows(const LinearFewRows& args, Stream) {
  switch (args.weight_type) {
    case WeightType::kFloat32:
      run<float, float>(args);
      break;
    case WeightType::kBFloat16:
#if defined(CPU_CAPABILITY_AVX512)
      if (args.dtype == DType::kBFloat16 && __builtin_cpu_supports("avx512bf16")) {
        run<c10::BFloat16, c10::BFloat16>(args);
        break;
      }
#endif
      run<float, c10::BFloat16>(args);
      break;
    case WeightType::kInt8:
      run<float, int8_t>(args);
      break;
  }
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(linear_few_rows, LinearFewRows)
