#include "ops.h"

#include <algorithm>
#include <cmath>

#include "pack.h"

namespace lorikeet {
namespace {

// Elementwise work below this many floats is not worth another thread.
constexpr int kElementsPerTile = 8192;

// Rows of a linear tile: enough to reuse the panel, few enough that their slice of x stays in
// cache.
constexpr int kLinearRows = 96;

// Columns of a tile of a LoRA product alone.
constexpr int kExpandColumns = 128;

constexpr int kQueriesPerTile = 8;
constexpr int kGreedyColumns = 8192;

int rows_per_tile(int elements_per_row) {
  return std::max(1, kElementsPerTile / std::max(1, elements_per_row));
}

// Rows in even tiles, as many for each thread, so that a thread finds in its cache what it wrote of
// a row before: another's cache may be hundreds of nanoseconds away.
struct RowTiles {
  int rows, count;

  RowTiles(const Pool& pool, int rows, int elements_per_row)
      : rows(rows), count(ceil_div(rows, rows_per_tile(elements_per_row))) {
    if (count > 1) count = std::min(rows, round_up(count, pool.threads()));
  }
  int first(int tile) const { return int(int64_t{rows} * tile / count); }
};

// Calls work(first, count) for every tile.
template <typename Work>
void over_rows(Pool& pool, int rows, int elements_per_row, const Work& work) {
  const RowTiles tiles(pool, rows, elements_per_row);
  pool.run(tiles.count, [&](int tile) {
    work(tiles.first(tile), tiles.first(tile + 1) - tiles.first(tile));
  });
}

}  // namespace

void Ops::linear(const float* x, int rows, const Linear& linear, float* y) {
  linear_lora(x, rows, linear, {}, y);
}

void Ops::linear_lora(const float* x, int rows, const Linear& linear, const LoraPart& part,
                      float* y) {
  if (rows == 0) return;
  const std::lock_guard lock(pool_.mutex());
  product_.clear();
  next_lines_.clear();
  if (part.any() && part.table) product_.prepare(*part.table, *part.batch);
  const int width = kernels_.panel, panels = ceil_div(linear.out, width);
  const int row_tiles = ceil_div(rows, kLinearRows);
  const int64_t bytes = packed_bytes(width, linear.in, width, linear.dtype);
  const bool in_integers = linear.integers && kernels_.to_integers;
  const RowsOfIntegers integers = convert_and_shrink(x, rows, linear.in, in_integers, part);
  pool_.run(panels * row_tiles, [&](int tile) {
    const int panel = tile / row_tiles, row_tile = tile % row_tiles, row = row_tile * kLinearRows;
    const int first = panel * width, end = std::min(first + width, linear.out);
    const int count = std::min(kLinearRows, rows - row);
    Fetching fetching;
    if (part.any()) {
      fetching = {product_.expand_lines(first), next_lines_.part(tile, panels * row_tiles)};
    }
    const char* weights = static_cast<const char*>(linear.data) + panel * bytes;
    float* target = y + int64_t{row} * linear.out + first;
    if (in_integers) {
      kernels_.linear_panel_of_integers(integers.from(row), count, weights, linear.dtype, linear.in,
                                        target, linear.out, end - first, &fetching);
    } else {
      kernels_.linear_panel(x + int64_t{row} * linear.in, linear.in, count, weights, linear.dtype,
                            linear.in, target, linear.out, end - first, &fetching);
    }
    if (part.any()) product_.expand(kernels_, row_tile, first, end, y);
  });
}

void Ops::prepare_expansions(int rows, const LoraPart& part) {
  if (part.table) {
    product_.cut_expansions(rows, kLinearRows);
    product_.list_expand_lines(kernels_.panel);
  }
  if (part.next) add_shrink_lines(*part.next, *part.batch, &next_lines_);
}

RowsOfIntegers Ops::convert_and_shrink(const float* x, int rows, int in, bool in_integers,
                                       const LoraPart& part) {
  const int64_t blocks = in / kBlockDepth;
  if (in_integers) {
    codes_.resize(std::max(codes_.size(), size_t(rows) * size_t(in)));
    code_blocks_.resize(std::max(code_blocks_.size(), size_t(rows * blocks)));
  }
  const RowTiles tiles(pool_, rows, in);
  const int64_t conversions = in_integers ? tiles.count : 0;
  const int64_t count = conversions + product_.shrink_count();
  pool_.run(int(count) + int(part.any()), [&](int tile) {
    if (tile == count) return prepare_expansions(rows, part);
    // Mixed evenly, so that a thread has the same rows of either.
    const auto conversion = int(conversions * tile / count);
    const bool shrinks = conversion == conversions * (tile + 1) / count;
    if (shrinks) return product_.shrink(kernels_, tile - conversion, x);
    for (int64_t row = tiles.first(conversion); row < tiles.first(conversion + 1); ++row) {
      kernels_.to_integers(x + row * in, in, codes_.data() + row * in,
                           code_blocks_.data() + row * blocks);
    }
  });
  return {codes_.data(), code_blocks_.data(), in};
}

void Ops::lora(float* y, const float* x, const LoraTable& table, const LoraBatch& batch) {
  if (batch.segments == 0) return;
  const std::lock_guard lock(pool_.mutex());
  const int rows = 1 + *std::max_element(batch.permutation, batch.permutation + batch.rows);
  const int width = kExpandColumns, row_tiles = ceil_div(rows, kLinearRows);
  product_.prepare(table, batch);
  product_.cut_expansions(rows, kLinearRows);
  pool_.run(product_.shrink_count(), [&](int tile) { product_.shrink(kernels_, tile, x); });
  pool_.run(ceil_div(table.out, width) * row_tiles, [&](int tile) {
    const int first = tile / row_tiles * width;
    product_.expand(kernels_, tile % row_tiles, first, std::min(first + width, table.out), y);
  });
}

void Ops::rms_norm(const float* x, float* residual, const float* weight, int rows, int n, float eps,
                   float* out) {
  over_rows(pool_, rows, n, [&](int first, int count) {
    for (int64_t row = first; row < first + count; ++row) {
      kernels_.rms_norm(x + row * n, residual ? residual + row * n : nullptr, weight, n, eps,
                        out + row * n);
    }
  });
}

void Ops::silu_mul(const float* gate_up, int rows, int n, float* out) {
  over_rows(pool_, rows, 2 * n, [&](int first, int count) {
    for (int64_t row = first; row < first + count; ++row) {
      kernels_.silu_mul(gate_up + row * 2 * n, gate_up + row * 2 * n + n, n, out + row * n);
    }
  });
}

void Ops::rope_and_cache(float* qkv, int rows, const Places& places, const Attention& layer,
                         const HeadPrologue& prologue) {
  const Heads& heads = layer.heads;
  const int dim = heads.dim, width = (heads.query + 2 * heads.kv) * dim;
  // A key's elements go to as many lines of the cache, which takes as long as the rotation.
  over_rows(pool_, rows, 2 * width, [&](int first, int count) {
    for (int64_t row = first; row < first + count; ++row) {
      float* head = qkv + row * width;
      if (prologue.bias) kernels_.add(prologue.bias, head, width);
      const float* cos_sin = layer.cos_sin + places.positions[row] * dim;
      for (int h = 0; h < heads.query + heads.kv; ++h, head += dim) {
        const float* norm = h < heads.query ? prologue.q_norm : prologue.k_norm;
        if (norm) kernels_.rms_norm(head, nullptr, norm, dim, prologue.eps, head);
        kernels_.rope(head, cos_sin, dim);
      }
      const int64_t slot = places.slot_mapping[row];
      if (slot < 0) continue;
      const float *k = qkv + row * width + heads.query * dim, *v = k + heads.kv * dim;
      for (int h = 0; h < heads.kv; ++h) {
        kernels_.write_kv(k + h * dim, v + h * dim, layer.cache, slot, h, heads.kv, dim);
      }
    }
  });
}

void Ops::attend(const AttentionPart& part, const float* q, int64_t q_stride,
                 const Attention& layer, const Sequences& sequences, float* out) {
  const Heads& heads = layer.heads;
  const int s = part.sequence, group = heads.query / heads.kv;
  const int first_row = sequences.query_start[s],
            queries = sequences.query_start[s + 1] - first_row;
  const int64_t row = first_row + part.first_query;
  const int column = part.kv_head * group * heads.dim;
  AttentionTile tile{q + row * q_stride + column,
                     q_stride,
                     part.queries,
                     group,
                     sequences.context_len[s] - queries + part.first_query,
                     heads.window,
                     part.key_begin,
                     part.key_end,
                     sequences.block_tables + int64_t{s} * sequences.max_blocks,
                     layer.cache,
                     part.kv_head,
                     heads.kv,
                     heads.dim,
                     heads.scale,
                     heads.soft_cap,
                     out + row * heads.query * heads.dim + column,
                     int64_t{heads.query} * heads.dim,
                     nullptr};
  if (part.partial >= 0) {
    tile.out = partial_sums_.data() + int64_t{part.partial} * group * heads.dim;
    tile.out_stride = int64_t{group} * heads.dim;
    tile.partial = partial_stats_.data() + int64_t{part.partial} * group * 2;
  }
  kernels_.attention(tile);
}

void Ops::attention(const float* q, int64_t q_stride, const Attention& layer,
                    const Sequences& sequences, float* out) {
  const Heads& heads = layer.heads;
  const std::lock_guard lock(pool_.mutex());
  const int group = heads.query / heads.kv;
  parts_.clear();
  split_.clear();
  int partials = 0;
  const bool few = sequences.count * heads.kv < 4 * pool_.threads();
  for (int s = 0; s < sequences.count; ++s) {
    const int queries = sequences.query_start[s + 1] - sequences.query_start[s],
              context = sequences.context_len[s];
    const int chunk = first_key(context - 1, heads.window) / kKeyChunk * kKeyChunk;
    const bool split = few && queries == 1 && context - chunk > kKeyChunk;
    for (int head = 0; head < heads.kv && queries > 0; ++head) {
      if (split) {
        split_.push_back({s, head, 0, 1, chunk, context, partials});
        for (int begin = chunk; begin < context; begin += kKeyChunk) {
          parts_.push_back(
              {s, head, 0, 1, begin, std::min(begin + kKeyChunk, context), partials++});
        }
        continue;
      }
      for (int first = 0; first < queries; first += kQueriesPerTile) {
        parts_.push_back(
            {s, head, first, std::min(kQueriesPerTile, queries - first), 0, context, -1});
      }
    }
  }
  const size_t rows = size_t(partials) * size_t(group);
  if (partial_stats_.size() < rows * 2) partial_stats_.resize(rows * 2);
  if (partial_sums_.size() < rows * size_t(heads.dim))
    partial_sums_.resize(rows * size_t(heads.dim));
  pool_.run(int(parts_.size()),
            [&](int i) { attend(parts_[size_t(i)], q, q_stride, layer, sequences, out); });

  for (const AttentionPart& part : split_) {
    const int64_t row = sequences.query_start[part.sequence];
    for (int g = 0; g < group; ++g) {
      float* target = out + (row * heads.query + part.kv_head * group + g) * heads.dim;
      float stats[2];
      for (int chunk = 0; part.key_begin + chunk * kKeyChunk < part.key_end; ++chunk) {
        const int64_t index = int64_t{part.partial + chunk} * group + g;
        const float* sums = partial_sums_.data() + index * heads.dim;
        const float* chunk_stats = partial_stats_.data() + index * 2;
        if (chunk == 0) {
          std::copy(sums, sums + heads.dim, target);
          std::copy(chunk_stats, chunk_stats + 2, stats);
        } else {
          kernels_.merge(target, stats, sums, chunk_stats, heads.dim);
        }
      }
      const float factor = 1.0f / stats[1];
      for (int d = 0; d < heads.dim; ++d) target[d] *= factor;
    }
  }
}

void Ops::weigh(const float* scores, int rows, int columns, const float* temperature,
                float* weights) {
  pool_.run(rows, [&](int row) {
    const int64_t offset = int64_t{row} * columns;
    kernels_.weigh(scores + offset, columns, temperature[row], weights + offset);
  });
}

void Ops::greedy(const float* logits, int rows, int columns, const GreedyResult& result) {
  struct Part {
    float maximum, sum;
    int index;
  };
  const int chunks = ceil_div(columns, kGreedyColumns);
  std::vector<Part> parts(size_t(rows) * size_t(chunks));
  pool_.run(rows * chunks, [&](int tile) {
    const int first = tile % chunks * kGreedyColumns;
    Part& part = parts[size_t(tile)];
    kernels_.greedy(logits + int64_t{tile / chunks} * columns + first,
                    std::min(kGreedyColumns, columns - first), &part.maximum, &part.index,
                    &part.sum);
  });
  for (int row = 0; row < rows; ++row) {
    const Part* part = parts.data() + size_t(row) * size_t(chunks);
    float maximum = part[0].maximum;
    int64_t token = part[0].index;
    for (int c = 1; c < chunks; ++c) {
      if (part[c].maximum > maximum)
        maximum = part[c].maximum, token = int64_t{c} * kGreedyColumns + part[c].index;
    }
    float sum = 0.0f;
    for (int c = 0; c < chunks; ++c) {
      sum += part[c].maximum == maximum ? part[c].sum
                                        : part[c].sum * std::exp(part[c].maximum - maximum);
    }
    const float logsumexp = maximum + std::log(sum);
    result.tokens[row] = token;
    result.logprobs[row] = maximum - logsumexp;
    result.logsumexp[row] = logsumexp;
  }
}

}  // namespace lorikeet
