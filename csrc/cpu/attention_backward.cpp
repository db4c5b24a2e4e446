// Attention on a CPU, backward: the weights are computed again from the log-sum-exp (Dao et al.,
// "FlashAttention", 2022, algorithm 4). With z = keep / (1 - rate):
//   p = exp(scale q k - lse)    delta = sum_d do o - dlse    ds = p (z (do v^T) - delta)
//   dq = scale ds k             dk = scale ds^T q            dv = (z p)^T do
//
// For a key head, tiles of keys are outside and blocks of rows inside: dk and dv of a tile are
// summed while it is in the cache, dq of all rows over the tiles, all in fp32 and rounded once.
// Where there are too few heads for the threads, dq and (dk, dv) come from two passes over parts of
// the rows and of the keys, at seven products in place of five. Every number is summed in the same
// order either way, so no result depends on the number of threads.

#include <vector>

#include "attention_draws.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

// Rows whose weights are kept at a time.
constexpr int64_t kBlockPanels = 10;
constexpr int64_t kBlockRows = kBlockPanels * kTileRows;

// What a task computes: dq of these rows, or dk and dv of these keys, or both of all.
struct Part {
  Range rows;
  Range keys;
  bool rows_wanted;
  bool keys_wanted;
};

// Six rows, or fewer at the end.
struct Panel {
  int64_t row;
  int64_t count;
  Range seen[kTileRows];
  Range any;
};

struct Tiles {
  int64_t padded;
  Floats queries, grad_outputs, grad_queries, lse, lse_rest, delta;  // by row of the task
  Floats key_columns, value_columns, keys, grad_keys, grad_values;   // by key of the tile
  Floats weights, grad_scores;                                       // [kBlockRows, kTileKeys]
  std::vector<Panel> panels;

  Tiles(int64_t rows, int64_t padded)
      : padded(padded),
        queries(rows * padded),
        grad_outputs(rows * padded),
        grad_queries(rows * padded),
        lse(rows),
        lse_rest(rows),
        delta(rows),
        key_columns(padded * kTileKeys),
        value_columns(padded * kTileKeys),
        keys(padded * kTileKeys),
        grad_keys(padded * kTileKeys),
        grad_values(padded * kTileKeys),
        weights(kBlockRows * kTileKeys),
        grad_scores(kBlockRows * kTileKeys) {}
};

float dot(const float* a, const float* b, int64_t size) {
  Vec total(0.0f);
  for (int64_t d = 0; d < size; d += kWidth) {
    total = at::vec::fmadd(Vec::loadu(a + d), Vec::loadu(b + d), total);
  }
  return sum(total);
}

template <class T>
Range read_rows(const AttentionBackward& args, const Head& head, Range rows, Tiles& tiles) {
  const int64_t size = args.problem.head_size;
  Floats output(tiles.padded);
  Range any{0, 0};
  tiles.panels.clear();
  for (int64_t row = rows.lo; row < rows.hi; ++row) {
    const int64_t i = row - rows.lo;
    float* grad_output = tiles.grad_outputs.get() + i * tiles.padded;
    widen(head.row_of<T>(args.q, row), tiles.queries.get() + i * tiles.padded, size);
    widen(head.row_of<T>(args.grad_o, row), grad_output, size);
    widen(head.row_of<T>(args.o, row), output.get(), size);
    const int64_t place = head.statistic(row);
    // In two numbers, because a rounding error of it is one of all weights of the row.
    const double lse = args.lse[place] * 1.4426950408889634;
    tiles.lse.get()[i] = static_cast<float>(lse);
    tiles.lse_rest.get()[i] = static_cast<float>(lse - tiles.lse.get()[i]);
    tiles.delta.get()[i] = dot(grad_output, output.get(), tiles.padded) -
                           (args.grad_lse == nullptr ? 0.0f : args.grad_lse[place]);
    if (i % kTileRows == 0) tiles.panels.push_back({row, 0, {}, {0, 0}});
    Panel& panel = tiles.panels.back();
    panel.seen[panel.count] = head.visible(row);
    panel.any = panel.any.with(panel.seen[panel.count++]);
    any = any.with(panel.any);
  }
  std::fill_n(tiles.grad_queries.get(), (rows.hi - rows.lo) * tiles.padded, 0.0f);
  return any;
}

// A tile of keys, from `first` on, and what of it a task sees.
struct KeyTile {
  int64_t first;
  Range keys;
};

template <class T>
void read_keys(const AttentionBackward& args, const Head& head, const KeyTile& tile,
               const Tiles& tiles) {
  pack_columns<T>(head, args.k, tile.first, tile.keys, tiles.key_columns.get());
  pack_columns<T>(head, args.v, tile.first, tile.keys, tiles.value_columns.get());
  pack_rows<T>(head, args.k, tile.first, tile.keys, tiles.keys.get());
}

// Six rows of `left` times panels of columns: products over the head size.
void multiply_columns(const Tiles& tiles, const float* left, const float* columns, float* result,
                      const Panel& panel, Range keys, int64_t size) {
  Product product{};
  product.row = tiles.padded;
  product.step = 1;
  product.b_step = kTileColumns;
  product.c_row = kTileKeys;
  product.count = size;
  product.a = left;
  const int64_t end = round_up(keys.hi, kWidth);
  for (int64_t s = keys.lo / kTileColumns * kTileColumns; s < keys.hi; s += kTileColumns) {
    product.b = columns + s * tiles.padded;
    product.c = result + s;
    multiply_in_parts(product, panel.count, (std::min(s + kTileColumns, end) - s) / kWidth);
  }
}

// From scores and do v^T of a row, in place, to z p and ds. `seen` and `keys` are positions in the
// tile; what is not seen becomes 0.
struct RowTerms {
  float scale;
  float lse;  // of log2(e) times it
  float lse_rest;
  float delta;
  const float* factors;  // z, or null
};

void differentiate(const RowTerms& row, Range seen, Range keys, float* scores, float* grads) {
  const Vec scale(row.scale), lse(row.lse), rest(row.lse_rest), delta(row.delta);
  std::fill_n(scores, keys.lo, 0.0f);
  std::fill_n(grads, keys.lo, 0.0f);
  for (int64_t s = keys.lo; s < keys.hi; s += kWidth) {
    const Vec p = exp2(at::vec::fmsub(Vec::loadu(scores + s), scale, lse) - rest);
    Vec dp = Vec::loadu(grads + s), zp = p;
    if (row.factors != nullptr) {
      const Vec z = Vec::loadu(row.factors + s);
      zp = p * z;
      dp = dp * z;
    }
    Vec ds = p * (dp - delta);
    if (s < seen.lo || s + kWidth > seen.hi) {
      zp = select(zp, s, seen, 0.0f);
      ds = select(ds, s, seen, 0.0f);
    }
    zp.store(scores + s);
    ds.store(grads + s);
  }
  std::fill_n(scores + keys.hi, kTileKeys - keys.hi, 0.0f);
  std::fill_n(grads + keys.hi, kTileKeys - keys.hi, 0.0f);
}

// z p and ds of six rows over a tile, and their share of dq.
void add_panel(const Head& head, const Part& part, const KeyTile& tile, const Tiles& tiles,
               const Panel& panel) {
  const AttentionProblem& problem = head.problem;
  const int64_t index = panel.row - part.rows.lo;
  float* weights = tiles.weights.get() + index % kBlockRows * kTileKeys;
  float* grads = tiles.grad_scores.get() + index % kBlockRows * kTileKeys;
  const Range window{tile.first, tile.first + kTileKeys};
  const Range any = panel.any.within(window).from(tile.first);
  if (any.empty()) {
    std::fill_n(weights, panel.count * kTileKeys, 0.0f);
    std::fill_n(grads, panel.count * kTileKeys, 0.0f);
    return;
  }
  const float* queries = tiles.queries.get() + index * tiles.padded;
  const float* grad_outputs = tiles.grad_outputs.get() + index * tiles.padded;
  multiply_columns(tiles, queries, tiles.key_columns.get(), weights, panel, any, problem.head_size);
  multiply_columns(tiles, grad_outputs, tiles.value_columns.get(), grads, panel, any,
                   problem.head_size);
  const Range vectors{any.lo / kWidth * kWidth, round_up(any.hi, kWidth)};
  alignas(64) float factors[kTileKeys];
  for (int64_t i = 0; i < panel.count; ++i) {
    const bool drops = problem.dropout_threshold > 0;
    if (drops) keep_factors(head, panel.row + i, tile.first, factors);
    const RowTerms row{problem.scale * kLog2E, tiles.lse.get()[index + i],
                       tiles.lse_rest.get()[index + i], tiles.delta.get()[index + i],
                       drops ? factors : nullptr};
    differentiate(row, panel.seen[i].within(window).from(tile.first), vectors,
                  weights + i * kTileKeys, grads + i * kTileKeys);
  }
  if (!part.rows_wanted) return;
  Product product{};
  product.a = grads + any.lo;
  product.row = kTileKeys;
  product.step = 1;
  product.b = tiles.keys.get() + any.lo * tiles.padded;
  product.b_step = tiles.padded;
  product.c = tiles.grad_queries.get() + index * tiles.padded;
  product.c_row = tiles.padded;
  product.count = any.hi - any.lo;
  product.add = true;
  multiply(product, panel.count, tiles.padded / kWidth);
}

// The share of a block of rows in dk and dv of a tile, six keys at a time.
void add_keys(const Part& part, const KeyTile& tile, const Tiles& tiles, const Panel* panels,
              int64_t count) {
  const Range keys = tile.keys.from(tile.first);
  for (int64_t s = keys.lo; s < keys.hi; s += kTileRows) {
    const int64_t width = std::min(kTileRows, keys.hi - s);
    const Range six{tile.first + s, tile.first + s + width};
    Range rows{0, 0};
    for (int64_t i = 0; i < count; ++i) {
      const Panel& panel = panels[i];
      if (panel.any.within(six).empty()) continue;
      rows = rows.with({panel.row, panel.row + panel.count});
    }
    if (rows.empty()) continue;
    const int64_t block = (panels->row - part.rows.lo) / kBlockRows * kBlockRows;
    const int64_t begin = rows.lo - part.rows.lo;
    Product product{};
    product.row = 1;
    product.step = kTileKeys;
    product.b_step = tiles.padded;
    product.c_row = tiles.padded;
    product.count = rows.hi - rows.lo;
    product.add = true;
    product.a = tiles.weights.get() + (begin - block) * kTileKeys + s;
    product.b = tiles.grad_outputs.get() + begin * tiles.padded;
    product.c = tiles.grad_values.get() + s * tiles.padded;
    multiply(product, width, tiles.padded / kWidth);
    product.a = tiles.grad_scores.get() + (begin - block) * kTileKeys + s;
    product.b = tiles.queries.get() + begin * tiles.padded;
    product.c = tiles.grad_keys.get() + s * tiles.padded;
    multiply(product, width, tiles.padded / kWidth);
  }
}

template <class T>
void write_keys(const AttentionBackward& args, const Head& head, const KeyTile& tile,
                const Tiles& tiles) {
  const AttentionProblem& problem = args.problem;
  const int64_t end = std::min(tile.first + kTileKeys, problem.keys);
  for (int64_t s = tile.first; s < end; ++s) {
    const int64_t place =
        ((head.b * problem.keys + s) * problem.key_heads + head.key_head) * problem.head_size;
    const int64_t from = (s - tile.first) * tiles.padded;
    narrow(tiles.grad_keys.get() + from, problem.scale, static_cast<T*>(args.dk) + place,
           problem.head_size);
    narrow(tiles.grad_values.get() + from, 1.0f, static_cast<T*>(args.dv) + place,
           problem.head_size);
  }
}

template <class T>
void backward_part(const AttentionBackward& args, const Head& head, const Part& part,
                   Tiles& tiles) {
  const Range any = read_rows<T>(args, head, part.rows, tiles);
  const auto panels = static_cast<int64_t>(tiles.panels.size());
  for (int64_t first = part.keys.lo; first < part.keys.hi; first += kTileKeys) {
    const KeyTile tile{first, any.within({first, first + kTileKeys})};
    std::fill_n(tiles.grad_keys.get(), kTileKeys * tiles.padded, 0.0f);
    std::fill_n(tiles.grad_values.get(), kTileKeys * tiles.padded, 0.0f);
    if (!tile.keys.empty()) read_keys<T>(args, head, tile, tiles);
    for (int64_t i = 0; i < panels && !tile.keys.empty(); i += kBlockPanels) {
      const int64_t count = std::min(kBlockPanels, panels - i);
      Range seen{0, 0};
      for (int64_t j = i; j < i + count; ++j)
        seen = seen.with(tiles.panels[j].any.within(tile.keys));
      if (seen.empty()) continue;
      for (int64_t j = i; j < i + count; ++j) add_panel(head, part, tile, tiles, tiles.panels[j]);
      if (part.keys_wanted) add_keys(part, {first, seen}, tiles, &tiles.panels[i], count);
    }
    if (part.keys_wanted) write_keys<T>(args, head, tile, tiles);
  }
  if (!part.rows_wanted) return;
  for (int64_t row = part.rows.lo; row < part.rows.hi; ++row) {
    narrow(tiles.grad_queries.get() + (row - part.rows.lo) * tiles.padded, args.problem.scale,
           static_cast<T*>(args.dq) + head.output(row), args.problem.head_size);
  }
}

// The parts of one head.
std::vector<Part> divide(const AttentionProblem& problem, int64_t rows) {
  const int64_t heads = problem.batch * problem.key_heads;
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  const int64_t turns = (heads + threads - 1) / threads;
  // Threads without work in the last turn cost more than the second pass?
  if (5 * turns * threads <= 7 * heads) return {{{0, rows}, {0, problem.keys}, true, true}};
  const auto pieces = static_cast<int64_t>((2 * threads + heads - 1) / heads);
  std::vector<Part> parts;
  const int64_t row_step = round_up((rows + pieces - 1) / pieces, kBlockRows);
  for (int64_t row = 0; row < rows; row += row_step) {
    parts.push_back({{row, std::min(row + row_step, rows)}, {0, problem.keys}, true, false});
  }
  const int64_t key_step = round_up((problem.keys + pieces - 1) / pieces, kTileKeys);
  for (int64_t key = 0; key < problem.keys; key += key_step) {
    parts.push_back({{0, rows}, {key, std::min(key + key_step, problem.keys)}, false, true});
  }
  return parts;
}

}  // namespace

Status attention_backward(const AttentionBackward& args, Stream) {
  const AttentionProblem& problem = args.problem;
  const int64_t rows = problem.queries * (problem.heads / problem.key_heads);
  const std::vector<Part> parts = divide(problem, rows);
  const auto count = static_cast<int64_t>(parts.size());
  with_dtype(problem.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(problem.batch * problem.key_heads * count, 1, [&](int64_t begin, int64_t end) {
      Tiles tiles(rows, round_up(problem.head_size, kWidth));
      for (int64_t task = begin; task < end; ++task) {
        backward_part<T>(args, Head(problem, task / count), parts[task % count], tiles);
      }
    });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(attention_backward, AttentionBackward)
