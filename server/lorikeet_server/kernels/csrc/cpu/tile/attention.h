// Softmax attention of a few query rows over the cached keys of one head, chunk by chunk. A row's arithmetic is the same
// alone (decode) and among others (prefill): chunks have a fixed size and masked keys add exactly zero.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kTileVectors = kKeyTile / kWidth;
constexpr int kMaxQueryRows = kWidth == 16 ? 8 : 4;

template <int kRows>
struct ChunkState {
  const float* q[kRows];
  int limit[kRows];  // keys before this position are visible
  float scores[kRows][kKeyChunk];
  float maximum[kRows], sum[kRows];
};

template <int kRows, typename T>
inline void score_tile(ChunkState<kRows>& s, const T* keys, int head_dim, float scale, int column, int position) {
  Vec sum[kRows][kTileVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTileVectors; ++c) sum[r][c] = Vec::zero();
  }
  for (int d = 0; d < head_dim; ++d) {
    Vec key[kTileVectors];
    for (int c = 0; c < kTileVectors; ++c) key[c] = Vec::load(keys + d * kKeyTile + c * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const Vec qd = Vec::set(s.q[r][d]);
      for (int c = 0; c < kTileVectors; ++c) sum[r][c] = fma(qd, key[c], sum[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTileVectors; ++c) (sum[r][c] * Vec::set(scale)).store(&s.scores[r][column + c * kWidth]);
    for (int i = s.limit[r] > position ? s.limit[r] - position : 0; i < kKeyTile; ++i) {
      s.scores[r][column + i] = -__builtin_inff();
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

template <int kRows, typename T>
inline void mix_values(const ChunkState<kRows>& s, const T* const* values, int tiles, int key_count, int head_dim,
                       float* out) {
  const int stride = round_up(head_dim, 16);
  for (int d = 0; d < stride; d += kWidth) {
    Vec sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = Vec::zero();
    for (int tile = 0; tile < tiles; ++tile) {
      const int keys = key_count - tile * kKeyTile < kKeyTile ? key_count - tile * kKeyTile : kKeyTile;
      for (int i = 0; i < keys; ++i) {
        const Vec value = Vec::load(values[tile] + i * stride + d);
        for (int r = 0; r < kRows; ++r) sum[r] = fma(Vec::set(s.scores[r][tile * kKeyTile + i]), value, sum[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) sum[r].store(out + r * stride + d);
  }
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
  constexpr int kTiles = kKeyChunk / kKeyTile;
  constexpr int kMaxDim = 512;
  const int stride = round_up(t.head_dim, 16);
  ChunkState<kRows> s;
  float chunk[kRows * kMaxDim], running[kRows * kMaxDim], stats[kRows][2];
  int end = 0;
  for (int r = 0; r < kRows; ++r) {
    const int query = (first_row + r) / t.group, head = (first_row + r) % t.group;
    s.q[r] = t.q + query * t.q_stride + head * t.head_dim;
    s.limit[r] = t.first_position + query + 1;
    end = s.limit[r] > end ? s.limit[r] : end;
  }
  end = end < t.key_end ? end : t.key_end;
  for (int begin = t.key_begin; begin < end; begin += kKeyChunk) {
    const int count = end - begin < kKeyChunk ? end - begin : kKeyChunk;
    const int tiles = ceil_div(count, kKeyTile);
    const T* values[kTiles];
    for (int tile = 0; tile < tiles; ++tile) {
      const int position = begin + tile * kKeyTile;
      const int64_t head = int64_t{t.blocks[position / t.cache.block_size]} * t.kv_heads + t.kv_head;
      const int64_t offset = head * t.cache.block_size + position % t.cache.block_size;
      values[tile] = static_cast<const T*>(t.cache.v) + offset * stride;
      score_tile<kRows>(s, static_cast<const T*>(t.cache.k) + offset * t.head_dim, t.head_dim, t.scale,
                        tile * kKeyTile, position);
    }
    weigh<kRows>(s, tiles * kKeyTile);
    float* target = begin == t.key_begin ? running : chunk;
    mix_values<kRows, T>(s, values, tiles, count, t.head_dim, target);
    for (int r = 0; r < kRows; ++r) {
      const float chunk_stats[2] = {s.maximum[r], s.sum[r]};
      if (begin == t.key_begin) {
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
    for_vectors(t.head_dim, [&](int i, int n) { store_up_to(load_up_to(running + r * stride + i, n) * factor, out + i, n); });
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
  }
}

}  // namespace lorikeet::LORIKEET_ISA
