// Softmax attention of a few query rows over the cached keys of one head, chunk by chunk. A row's
// arithmetic is the same alone (decode) and among others (prefill): chunks end at fixed positions
// and masked keys add exactly zero, so that tiles which no row sees may be left out.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kTileVectors = kKeyTile / kWidth;
constexpr int kMaxQueryRows = kWidth == 16 ? 8 : 4;

template <int kRows>
struct ChunkState {
  const float* q[kRows];
  int first[kRows], limit[kRows];  // keys from `first` to before `limit` are visible
  float scores[kRows][kKeyChunk];
  float maximum[kRows], sum[kRows];
};

// Accumulators in flight hide the latency of a multiply-add: with few rows, several tiles or
// vectors go at once. How many never changes a result, since every sum keeps its own order.
constexpr int kAccumulators = kWidth == 16 ? 16 : 8;
constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

// Keys are asked for the tiles that are read next, and at least this many tiles before they are
// read (measured from memory, Zen 3, one core, contexts of 42 to 117: a quarter faster than
// without; one tile ahead gains less, the first tiles all at once lose).
constexpr int kTilesAhead = 2;
constexpr int tiles_ahead(int at_once) { return at_once > kTilesAhead ? at_once : kTilesAhead; }

template <typename T>
struct ChunkTiles {
  static constexpr int kMost = kKeyChunk / kKeyTile;
  static constexpr int kBeyond = tiles_ahead(kAccumulators / kTileVectors);
  const T* keys[kMost + kBeyond];  // behind the last tile: the last tile
  const T* values[kMost];
};

template <int kRows, int kTiles, typename T>
inline void score_tiles(ChunkState<kRows>& s, const ChunkTiles<T>& tiles, int head_dim, float scale,
                        int tile) {
  Vec sum[kRows][kTiles][kTileVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTiles; ++t) {
      for (int c = 0; c < kTileVectors; ++c) sum[r][t][c] = Vec::zero();
    }
  }
  for (int d = 0; d < head_dim; ++d) {
    Vec key[kTiles][kTileVectors];
    for (int t = 0; t < kTiles; ++t) {
      __builtin_prefetch(tiles.keys[tile + t + tiles_ahead(kTiles)] + d * kKeyTile);
      __builtin_prefetch(tiles.values[tile + t] + d * kKeyTile, 0, 2);
      for (int c = 0; c < kTileVectors; ++c)
        key[t][c] = Vec::load(tiles.keys[tile + t] + d * kKeyTile + c * kWidth);
    }
    for (int r = 0; r < kRows; ++r) {
      const Vec qd = Vec::set(s.q[r][d]);
      for (int t = 0; t < kTiles; ++t) {
        for (int c = 0; c < kTileVectors; ++c) sum[r][t][c] = fma(qd, key[t][c], sum[r][t][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTiles; ++t) {
      for (int c = 0; c < kTileVectors; ++c) {
        Vec score = sum[r][t][c] * Vec::set(scale);
        if constexpr (kTileScales<T> > 0) {
          score = score * Vec::load(scales_of(tiles.keys[tile + t], head_dim) + c * kWidth);
        }
        score.store(&s.scores[r][(tile + t) * kKeyTile + c * kWidth]);
      }
    }
  }
}

template <int kRows, typename T>
inline void score(ChunkState<kRows>& s, const ChunkTiles<T>& tiles, int count, int head_dim,
                  float scale, float soft_cap, int begin) {
  constexpr int kTiles = at_least_one(kAccumulators / (kRows * kTileVectors));
  int tile = 0;
  for (; tile + kTiles <= count; tile += kTiles)
    score_tiles<kRows, kTiles>(s, tiles, head_dim, scale, tile);
  for (; tile < count; ++tile) score_tiles<kRows, 1>(s, tiles, head_dim, scale, tile);
  for (int r = 0; r < kRows; ++r) {
    const int columns = count * kKeyTile;
    for (int i = 0; soft_cap > 0.0f && i < columns; i += kWidth) {
      const Vec capped = tanh_of(Vec::load(&s.scores[r][i]) * Vec::set(1.0f / soft_cap));
      (capped * Vec::set(soft_cap)).store(&s.scores[r][i]);
    }
    for (int i = 0; i < s.first[r] - begin && i < columns; ++i) s.scores[r][i] = -__builtin_inff();
    for (int i = s.limit[r] > begin ? s.limit[r] - begin : 0; i < columns; ++i) {
      s.scores[r][i] = -__builtin_inff();
    }
  }
}

// Turns scores into weights exp(score - maximum).
template <int kRows>
inline void weigh(ChunkState<kRows>& s, int columns) {
  for (int r = 0; r < kRows; ++r) {
    Vec largest = Vec::set(-__builtin_inff());
    for (int i = 0; i < columns; i += kWidth) largest = max_of(Vec::load(&s.scores[r][i]), largest);
    s.maximum[r] = max_lanes(largest);
    const Vec shift = Vec::set(s.maximum[r] == -__builtin_inff() ? 0.0f : s.maximum[r]);
    Vec sum = Vec::zero();
    for (int i = 0; i < columns; i += kWidth) {
      const Vec weight = exp_of(Vec::load(&s.scores[r][i]) - shift);
      weight.store(&s.scores[r][i]);
      sum = sum + weight;
    }
    s.sum[r] = sum_lanes(sum);
  }
}

// The scales of values become part of their weights.
template <int kRows>
inline void scale_weights(ChunkState<kRows>& s, const int16_t* const* values, int columns,
                          int stride) {
  for (int i = 0; i < columns; i += kWidth) {
    const Vec scale = Vec::load(scales_of(values[i / kKeyTile], stride) + i % kKeyTile);
    for (int r = 0; r < kRows; ++r) {
      (Vec::load(&s.scores[r][i]) * scale).store(&s.scores[r][i]);
    }
  }
}

template <int kRows, int kColumns, typename T>
inline void mix_columns(const ChunkState<kRows>& s, const T* const* values, int key_count,
                        int stride, int column, float* out) {
  Vec sum[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sum[r][c] = Vec::zero();
  }
  for (int first = 0; first < key_count; first += kKeyTile) {
    const T* value = values[first / kKeyTile] + column;
    const int end = key_count - first < kKeyTile ? key_count : first + kKeyTile;
    for (int i = first; i < end; ++i, value += stride) {
      Vec v[kColumns];
      for (int c = 0; c < kColumns; ++c) v[c] = Vec::load(value + c * kWidth);
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = Vec::set(s.scores[r][i]);
        for (int c = 0; c < kColumns; ++c) sum[r][c] = fma(weight, v[c], sum[r][c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) sum[r][c].store(out + r * stride + column + c * kWidth);
  }
}

template <int kRows, typename T>
inline void mix(const ChunkState<kRows>& s, const T* const* values, int key_count, int head_dim,
                float* out) {
  constexpr int kMost = kAccumulators / kRows, kColumns = kMost >= 8   ? 8
                                                          : kMost >= 4 ? 4
                                                          : kMost >= 2 ? 2
                                                                       : 1;
  const int stride = round_up(head_dim, 16);
  int column = 0;
  for (; column + kColumns * kWidth <= stride; column += kColumns * kWidth) {
    mix_columns<kRows, kColumns>(s, values, key_count, stride, column, out);
  }
  for (; column < stride; column += kWidth)
    mix_columns<kRows, 1>(s, values, key_count, stride, column, out);
}

void merge(float* to, float* to_stats, const float* from, const float* from_stats, int head_dim) {
  const float larger = from_stats[0] > to_stats[0] ? from_stats[0] : to_stats[0];
  const float shift = larger == -__builtin_inff() ? 0.0f : larger;
  const float keep = exp_of(to_stats[0] - shift), gain = exp_of(from_stats[0] - shift);
  for_vectors(head_dim, [&](int i, int count) {
    const Vec kept = load_up_to(to + i, count) * Vec::set(keep);
    store_up_to(fma(load_up_to(from + i, count), Vec::set(gain), kept), to + i, count);
  });
  to_stats[0] = larger;
  to_stats[1] = to_stats[1] * keep + from_stats[1] * gain;
}

template <int kRows, typename T>
void attend_rows(const AttentionTile& t, int first_row) {
  constexpr int kMaxDim = 512;
  const int stride = round_up(t.head_dim, 16);
  ChunkState<kRows> s;
  float chunk[kRows * kMaxDim], running[kRows * kMaxDim], stats[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    const int query = (first_row + r) / t.group, head = (first_row + r) % t.group;
    s.q[r] = t.q + query * t.q_stride + head * t.head_dim;
    s.first[r] = first_key(t.first_position + query, t.window);
    s.limit[r] = t.first_position + query + 1;
  }
  // Rows are in the order of their positions.
  const int seen = s.first[0] / kKeyTile * kKeyTile, limit = s.limit[kRows - 1];
  const int start = seen > t.key_begin ? seen : t.key_begin;
  const int end = limit < t.key_end ? limit : t.key_end;
  for (int begin = start, next; begin < end; begin = next) {
    next = (begin / kKeyChunk + 1) * kKeyChunk;
    const int count = (next < end ? next : end) - begin;
    const int tile_count = ceil_div(count, kKeyTile);
    ChunkTiles<T> tiles;
    for (int tile = 0; tile < tile_count; ++tile) {
      const int position = begin + tile * kKeyTile;
      const int64_t head =
          int64_t{t.blocks[position / t.cache.block_size]} * t.kv_heads + t.kv_head;
      const int64_t index =
          (head * t.cache.block_size + position % t.cache.block_size) / kKeyTile;
      tiles.keys[tile] = tile_at(static_cast<const T*>(t.cache.k), index, t.head_dim);
      tiles.values[tile] = tile_at(static_cast<const T*>(t.cache.v), index, stride);
    }
    for (int i = 0; i < ChunkTiles<T>::kBeyond; ++i)
      tiles.keys[tile_count + i] = tiles.keys[tile_count - 1];
    score<kRows>(s, tiles, tile_count, t.head_dim, t.scale, t.soft_cap, begin);
    weigh<kRows>(s, tile_count * kKeyTile);
    if constexpr (kTileScales<T> > 0) {
      scale_weights<kRows>(s, tiles.values, tile_count * kKeyTile, stride);
    }
    float* target = begin == start ? running : chunk;
    mix<kRows>(s, tiles.values, count, t.head_dim, target);
    for (int r = 0; r < kRows; ++r) {
      const float chunk_stats[2] = {s.maximum[r], s.sum[r]};
      if (begin == start) {
        stats[r][0] = chunk_stats[0], stats[r][1] = chunk_stats[1];
      } else {
        merge(running + r * stride, stats[r], chunk + r * stride, chunk_stats, t.head_dim);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int query = (first_row + r) / t.group, head = (first_row + r) % t.group;
    float* out = t.out + query * t.out_stride + head * t.head_dim;
    const Vec factor = Vec::set(t.partial ? 1.0f : 1.0f / stats[r][1]);
    for_vectors(t.head_dim, [&](int i, int n) {
      store_up_to(load_up_to(running + r * stride + i, n) * factor, out + i, n);
    });
    if (t.partial) {
      t.partial[2 * (first_row + r)] = stats[r][0];
      t.partial[2 * (first_row + r) + 1] = stats[r][1];
    }
  }
}

template <int kRows, typename T>
inline void attend_up_to(const AttentionTile& t, int first_row, int rows) {
  if (rows == kRows) {
    attend_rows<kRows, T>(t, first_row);
  } else if constexpr (kRows > 1) {
    attend_up_to<kRows - 1, T>(t, first_row, rows);
  }
}

template <typename T>
void attention_as(const AttentionTile& t) {
  const int rows = t.query_count * t.group;
  for (int row = 0; row < rows; row += kMaxQueryRows) {
    attend_up_to<kMaxQueryRows, T>(t, row, rows - row < kMaxQueryRows ? rows - row : kMaxQueryRows);
  }
}

void attention(const AttentionTile& t) {
  switch (t.cache.dtype) {
    case DType::kFloat32:
      return attention_as<float>(t);
    case DType::kFloat16:
      return attention_as<half_t>(t);
    case DType::kBFloat16:
      return attention_as<bfloat16_t>(t);
    case DType::kInt16:
      return attention_as<int16_t>(t);
    default:
      return;  // packed weights only
  }
}

}  // namespace lorikeet::LORIKEET_ISA
