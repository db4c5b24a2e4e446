// Attention on a CPU, forward: an online softmax over tiles of keys (Dao et al., "FlashAttention",
// 2022, algorithm 1; Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
//
// A task is a chunk of the rows of one key head. For every tile of kTileKeys keys that one of its
// rows sees, keys and values are packed in fp32; then six rows at a time: scores, their largest,
// weights, and the sum over the values. Only panels of keys that one of the six rows sees are
// computed. What a row gives does not depend on the rows beside it, nor on chunks and threads.

#include <vector>

#include "attention_draws.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

// Rows of a task, if there are enough of them for all threads.
constexpr int64_t kMostRows = 42 * kTileRows;
constexpr int64_t kFewestRows = 8 * kTileRows;

// Six rows, or fewer at the end: what they see, and where they are in the online softmax.
struct Panel {
  int64_t row;
  int64_t count;
  Range seen[kTileRows];
  Range any;
  float largest[kTileRows];  // of scale * log2(e) * score
  float sum[kTileRows];      // of 2^(that - largest)
};

struct Tiles {
  Floats queries, columns, values, scores, outputs;
  std::vector<Panel> panels;

  Tiles(int64_t rows, int64_t padded)
      : queries(rows * padded),
        columns(padded * kTileKeys),
        values(kTileKeys * padded),
        scores(kTileRows * kTileKeys),
        outputs(rows * padded) {}
};

Panel make_panel(const Head& head, int64_t row, int64_t count) {
  Panel panel;
  panel.row = row;
  panel.count = count;
  panel.any = {0, 0};
  for (int64_t i = 0; i < count; ++i) {
    panel.seen[i] = head.visible(row + i);
    panel.any = panel.any.with(panel.seen[i]);
    panel.largest[i] = -kInfinity;
    panel.sum[i] = 0.0f;
  }
  return panel;
}

// Turns the scores of a row, of the vectors over `keys` of a tile, into weights; returns what the
// output so far is to be multiplied by. `seen` and `keys` are positions in the tile.
float soften(float* scores, Range seen, Range keys, float scale, float& largest, float& sum) {
  const Vec factor(scale);
  Vec top(-kInfinity);
  for (int64_t s = keys.lo; s < keys.hi; s += kWidth) {
    Vec x = Vec::loadu(scores + s) * factor;
    if (s < seen.lo || s + kWidth > seen.hi) x = select(x, s, seen, -kInfinity);
    top = at::vec::maximum(top, x);
    x.store(scores + s);
  }
  const float before = largest;
  largest = std::max(before, maximum(top));
  // Nothing seen so far: the weights are 2^-inf.
  const Vec shift(largest == -kInfinity ? 0.0f : largest);
  Vec total(0.0f);
  for (int64_t s = keys.lo; s < keys.hi; s += kWidth) {
    const Vec weight = exp2(Vec::loadu(scores + s) - shift);
    total = total + weight;
    weight.store(scores + s);
  }
  const float decay = before == -kInfinity ? 0.0f : std::exp2(before - largest);
  sum = sum * decay + roots::ROOTS_CAPABILITY::sum(total);
  return decay;
}

inline void drop(const Head& head, int64_t row, int64_t first, Range keys, float* weights) {
  alignas(64) float factors[kTileKeys];
  keep_factors(head, row, first, factors);
  for (int64_t s = keys.lo; s < keys.hi; s += kWidth) {
    (Vec::loadu(weights + s) * Vec::loadu(factors + s)).store(weights + s);
  }
}

// The keys of a tile, from `first` on, for six rows.
void add_tile(const Head& head, const Tiles& tiles, Panel& panel, int64_t index, int64_t first) {
  const AttentionProblem& problem = head.problem;
  const int64_t padded = round_up(problem.head_size, kWidth);
  Range any = panel.any.within({first, first + kTileKeys});
  if (any.empty()) return;
  any = any.from(first);
  float* scores = tiles.scores.get();
  const int64_t begin = any.lo / kTileColumns * kTileColumns;
  const Range vectors{any.lo / kWidth * kWidth, round_up(any.hi, kWidth)};
  for (int64_t s = begin; s < any.hi; s += kTileColumns) {
    Product product{};
    product.a = tiles.queries.get() + index * kTileRows * padded;
    product.row = padded;
    product.step = 1;
    product.b = tiles.columns.get() + s * padded;
    product.b_step = kTileColumns;
    product.c = scores + s;
    product.c_row = kTileKeys;
    product.count = problem.head_size;
    multiply_in_parts(product, panel.count, (std::min(s + kTileColumns, vectors.hi) - s) / kWidth);
  }
  float decay[kTileRows];
  for (int64_t i = 0; i < panel.count; ++i) {
    const Range seen = panel.seen[i].within({first, first + kTileKeys}).from(first);
    float* row = scores + i * kTileKeys;
    decay[i] = soften(row, seen, vectors, problem.scale * kLog2E, panel.largest[i], panel.sum[i]);
    if (problem.dropout_threshold > 0) drop(head, panel.row + i, first, vectors, row);
  }
  Product product{};
  product.a = scores + any.lo;
  product.row = kTileKeys;
  product.step = 1;
  product.b = tiles.values.get() + any.lo * padded;
  product.b_step = padded;
  product.c = tiles.outputs.get() + index * kTileRows * padded;
  product.c_row = padded;
  product.count = any.hi - any.lo;
  product.add = true;
  product.decay = decay;
  multiply(product, panel.count, padded / kWidth);
}

template <class T>
void finish(const AttentionForward& args, const Head& head, const Tiles& tiles, const Panel& panel,
            int64_t index) {
  const int64_t size = head.problem.head_size, padded = round_up(size, kWidth);
  for (int64_t i = 0; i < panel.count; ++i) {
    const float* o = tiles.outputs.get() + (index * kTileRows + i) * padded;
    const float sum = panel.sum[i];
    narrow(o, sum > 0.0f || sum != sum ? 1.0f / sum : 0.0f,
           static_cast<T*>(args.o) + head.output(panel.row + i), size);
    args.lse[head.statistic(panel.row + i)] =
        static_cast<float>((panel.largest[i] + std::log2(static_cast<double>(sum))) / kLog2E);
  }
}

template <class T>
void forward_rows(const AttentionForward& args, const Head& head, int64_t begin, int64_t end,
                  Tiles& tiles) {
  const int64_t size = args.problem.head_size, padded = round_up(size, kWidth);
  Range any{0, 0};
  tiles.panels.clear();
  for (int64_t row = begin; row < end; row += kTileRows) {
    tiles.panels.push_back(make_panel(head, row, std::min(kTileRows, end - row)));
    any = any.with(tiles.panels.back().any);
  }
  for (int64_t row = begin; row < end; ++row) {
    widen(head.row_of<T>(args.q, row), tiles.queries.get() + (row - begin) * padded, size);
  }
  std::fill_n(tiles.outputs.get(), (end - begin) * padded, 0.0f);
  for (int64_t first = any.lo / kTileKeys * kTileKeys; first < any.hi; first += kTileKeys) {
    const Range keys = any.within({first, first + kTileKeys});
    pack_columns<T>(head, args.k, first, keys, tiles.columns.get());
    pack_rows<T>(head, args.v, first, keys, tiles.values.get());
    for (size_t i = 0; i < tiles.panels.size(); ++i) {
      add_tile(head, tiles, tiles.panels[i], static_cast<int64_t>(i), first);
    }
  }
  for (size_t i = 0; i < tiles.panels.size(); ++i) {
    finish<T>(args, head, tiles, tiles.panels[i], static_cast<int64_t>(i));
  }
}

}  // namespace

Status attention_forward(const AttentionForward& args, Stream) {
  const AttentionProblem& problem = args.problem;
  const int64_t heads = problem.batch * problem.key_heads;
  const int64_t rows = problem.queries * (problem.heads / problem.key_heads);
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  int64_t chunk = kMostRows;
  while (chunk > kFewestRows && heads * ((rows + chunk - 1) / chunk) < 2 * threads) chunk /= 2;
  chunk = std::min(round_up(chunk, kTileRows), round_up(rows, kTileRows));
  const int64_t chunks = (rows + chunk - 1) / chunk;
  with_dtype(problem.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(heads * chunks, 1, [&](int64_t begin, int64_t end) {
      Tiles tiles(chunk, round_up(problem.head_size, kWidth));
      for (int64_t task = begin; task < end; ++task) {
        const Head head(problem, task / chunks);
        const int64_t row = task % chunks * chunk;
        forward_rows<T>(args, head, row, std::min(row + chunk, rows), tiles);
      }
    });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(attention_forward, AttentionForward)
