// attention_rows on a CPU: the few queries of a row and a key head go along their keys, some at a
// time, with an online softmax. Keys and values are read where they are, and once for all query
// heads that share them but from the cache; a query's result depends on nothing but its row.

#include "attention_rows.h"

#include <array>

#include "four_sums.h"

namespace roots {
namespace ROOTS_CAPABILITY {
namespace {

// Keys that are taken at a time: those and their values stay in the first cache while all queries
// of the key head go over them.
constexpr int64_t kKeys = 64;
// Vectors of an output that are kept in registers.
constexpr int kVectors = 4;
// Tokens that are asked for before they are needed.
constexpr int64_t kAhead = 8;

// One key head of one row.
template <class T>
struct RowHead {
  const AttentionRows& args;
  const AttentionRow& row;
  int64_t key_head;
  int64_t groups;

  RowHead(const AttentionRows& args, int64_t task)
      : args(args),
        row(args.rows[task / args.key_heads]),
        key_head(task % args.key_heads),
        groups(args.heads / args.key_heads) {}

  int64_t queries() const { return row.tokens * groups; }
  int64_t head(int64_t query) const { return key_head * groups + query % groups; }
  // Where a query starts in q and o.
  int64_t place(int64_t query) const {
    return ((row.first + query / groups) * args.heads + head(query)) * args.head_size;
  }
  int64_t position(int64_t query) const { return row.length - row.tokens + query / groups; }
  Range visible(int64_t query) const {
    if (!args.causal) return {0, row.length};
    const int64_t hi = position(query) + 1;
    return {args.window > 0 ? std::max<int64_t>(0, hi - args.window) : 0, hi};
  }
  // What is added to the score of key s; null without bias.
  const float* bias(int64_t query) const {
    return args.bias == nullptr ? nullptr : args.bias + head(query) * args.distances;
  }
  const T* key(int64_t s) const { return token(row.keys, s); }
  const T* value(int64_t s) const { return token(row.values, s); }
  const T* token(const RowTokens& tokens, int64_t s) const {
    return static_cast<const T*>(tokens.data) + s * tokens.token_stride +
           key_head * tokens.head_stride;
  }
};

// What a task writes to: of each query itself, widened, its output so far, and the softmax.
struct Room {
  int64_t padded;
  Floats queries, outputs, largest, sums;

  Room(int64_t count, int64_t padded)
      : padded(padded),
        queries(count * padded),
        outputs(count * padded),
        largest(count),
        sums(count) {}
};

inline void ask_for(const void* token, int64_t bytes) {
  const char* first = static_cast<const char*>(token);
  for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(first + at, _MM_HINT_T0);
}

// q k of four keys, the same for each wherever it stands among the four; q is padded with zeros.
template <class T>
inline __m128 products(const float* q, const std::array<const T*, 4>& k, int64_t size) {
  Vec total[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t d = 0;
  for (; d + kWidth <= size; d += kWidth) {
    const Vec left = Vec::loadu(q + d);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) total[j] = at::vec::fmadd(left, load_vector(k[j] + d), total[j]);
  }
  if (d < size) {
    const Vec left = Vec::loadu(q + d);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      total[j] = at::vec::fmadd(left, load_vector(k[j] + d, size - d), total[j]);
    }
  }
  return four_sums(total[0], total[1], total[2], total[3]);
}

// scores[s - first] = scale q k + bias for s in `keys`, times log2(e).
template <class T>
void score(const RowHead<T>& head, const float* q, int64_t query, Range keys, float* scores) {
  const int64_t size = head.args.head_size, bytes = size * static_cast<int64_t>(sizeof(T));
  const float scale = head.args.scale * kLog2E;
  // What stands behind the last key is a key once more, and its score is not used.
  for (int64_t s = keys.lo; s < keys.hi; s += 4) {
    std::array<const T*, 4> k;
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      k[j] = head.key(std::min(s + j, keys.hi - 1));
      ask_for(head.key(std::min(s + j + kAhead, keys.hi - 1)), bytes);
    }
    _mm_storeu_ps(scores + s - keys.lo, _mm_mul_ps(_mm_set1_ps(scale), products(q, k, size)));
  }
  const float* bias = head.bias(query);
  if (bias == nullptr) return;
  const int64_t position = head.position(query);
  for (int64_t s = keys.lo; s < keys.hi; ++s) scores[s - keys.lo] += kLog2E * bias[position - s];
}

// Turns scores into weights and returns what the output so far is to be multiplied by.
float soften(float* scores, int64_t count, float& largest, float& sum_so_far) {
  float top = largest;
  for (int64_t s = 0; s < count; ++s) top = std::max(top, scores[s]);
  for (int64_t s = count; s < round_up(count, kWidth); ++s) scores[s] = -kInfinity;
  const Vec shift(top == -kInfinity ? 0.0f : top);
  Vec total(0.0f);
  for (int64_t s = 0; s < count; s += kWidth) {
    const Vec weight = exp2(Vec::loadu(scores + s) - shift);
    total = total + weight;
    weight.store(scores + s);
  }
  const float decay = largest == -kInfinity ? 0.0f : std::exp2(largest - top);
  largest = top;
  sum_so_far = sum_so_far * decay + sum(total);
  return decay;
}

// output[d] = decay output[d] + sum_s weights[s] v[s, d] for kCount vectors from d on; the last one
// may be partly beyond the head size.
template <int kCount, class T>
void add_values(const RowHead<T>& head, const float* weights, Range keys, float decay, int64_t d,
                float* output) {
  const int64_t size = head.args.head_size;
  const int64_t bytes = kCount * kWidth * static_cast<int64_t>(sizeof(T));
  const int64_t left = std::min(kWidth, size - d - (kCount - 1) * kWidth);
  Vec total[kCount];
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) total[j] = Vec::loadu(output + d + j * kWidth) * Vec(decay);
  for (int64_t s = keys.lo; s < keys.hi; ++s) {
    ask_for(head.value(std::min(s + kAhead, keys.hi - 1)) + d, bytes);
    const T* v = head.value(s) + d;
    const Vec weight(weights[s - keys.lo]);
#pragma GCC unroll 4
    for (int j = 0; j + 1 < kCount; ++j) {
      total[j] = at::vec::fmadd(weight, load_vector(v + j * kWidth), total[j]);
    }
    const T* last = v + (kCount - 1) * kWidth;
    const Vec value = left == kWidth ? load_vector(last) : load_vector(last, left);
    total[kCount - 1] = at::vec::fmadd(weight, value, total[kCount - 1]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) total[j].store(output + d + j * kWidth);
}

template <class T>
void add_all_values(const RowHead<T>& head, const float* weights, Range keys, float decay,
                    float* output) {
  const int64_t size = head.args.head_size;
  for (int64_t d = 0; d < size; d += kVectors * kWidth) {
    switch (std::min<int64_t>(kVectors, (size - d + kWidth - 1) / kWidth)) {
      case 1:
        add_values<1>(head, weights, keys, decay, d, output);
        break;
      case 2:
        add_values<2>(head, weights, keys, decay, d, output);
        break;
      case 3:
        add_values<3>(head, weights, keys, decay, d, output);
        break;
      default:
        add_values<4>(head, weights, keys, decay, d, output);
    }
  }
}

template <class T>
void attend(const RowHead<T>& head, Room& room) {
  const AttentionRows& args = head.args;
  const int64_t queries = head.queries(), size = args.head_size, padded = room.padded;
  for (int64_t i = 0; i < queries; ++i) {
    widen(static_cast<const T*>(args.q) + head.place(i), room.queries.get() + i * padded, size);
  }
  std::fill_n(room.outputs.get(), queries * padded, 0.0f);
  std::fill_n(room.largest.get(), queries, -kInfinity);
  std::fill_n(room.sums.get(), queries, 0.0f);
  alignas(64) float scores[kKeys];
  for (int64_t first = 0; first < head.row.length; first += kKeys) {
    for (int64_t i = 0; i < queries; ++i) {
      const Range keys = head.visible(i).within({first, first + kKeys});
      if (keys.empty()) continue;
      score(head, room.queries.get() + i * padded, i, keys, scores);
      const float decay =
          soften(scores, keys.hi - keys.lo, room.largest.get()[i], room.sums.get()[i]);
      add_all_values(head, scores, keys, decay, room.outputs.get() + i * padded);
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    const float total = room.sums.get()[i];
    // A token without keys gives zeros; a NaN stays one.
    narrow(room.outputs.get() + i * padded, total > 0.0f || total != total ? 1.0f / total : 0.0f,
           static_cast<T*>(args.o) + head.place(i), size);
  }
}

}  // namespace

Status attention_rows(const AttentionRows& args, Stream) {
  const int64_t padded = round_up(args.head_size, kVectors * kWidth);
  int64_t tokens = 0, keys = 0;
  for (int64_t r = 0; r < args.count; ++r) {
    tokens = std::max(tokens, args.rows[r].tokens);
    keys = std::max(keys, args.rows[r].length);
  }
  const int64_t grain = kGrainElements / (keys * args.head_size + 1);
  with_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.count * args.key_heads, grain, [&](int64_t begin, int64_t end) {
      Room room(tokens * (args.heads / args.key_heads), padded);
      for (int64_t task = begin; task < end; ++task) attend(RowHead<T>(args, task), room);
    });
  });
  return 0;
}

}  // namespace ROOTS_CAPABILITY
}  // namespace roots

ROOTS_CPU_LAUNCHER(attention_rows, AttentionRows)
