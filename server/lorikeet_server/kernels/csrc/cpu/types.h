// Plain data shared by every translation unit. No torch, no Python, no instruction set.
#pragma once
#include <cstdint>
#include <type_traits>

namespace lorikeet {

// How numbers are stored; blocks are for packed weights only, kInt16 for keys and values.
enum class DType : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kBlock4 = 3,
  kBlock8 = 4,
  kInt16 = 5,
};

struct half_t {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

// Quantised weights share a scale among this many successive k of a column, as in GGUF files.
constexpr int kBlockDepth = 32;

template <int kColumns>
struct Block4 {  // weight = step * code + low
  half_t step[kColumns], low[kColumns];
  uint32_t codes[kBlockDepth / 8][kColumns];  // eight k of a column per word, the lowest first
};

// Of every eight k the pairs (k, k + 4) lie side by side, as they do in the words of a Block4.
constexpr int pair_of(int k) { return k / 8 * 4 + k % 4; }
constexpr int place_in_pair(int k) { return k / 4 % 2; }

template <int kColumns>
struct Block8 {  // weight = step * code
  half_t step[kColumns];
  int8_t codes[kBlockDepth / 2][kColumns][2];  // [pair_of(k)][column][place_in_pair(k)]
};

// 32 values of a row as 16-bit integers: value = scale * code. An outlier is kept apart and has code
// 0, so that no value is large beside the others, which share its scale.
struct BlockOfRow {
  float scale, sum;   // the sum is that of the values, not rounded
  int32_t code_sum;
  int32_t outlier;    // its place among the 32, or -1
  float outlying;     // its value
};

struct RowsOfIntegers {
  const int16_t* codes;      // [rows][stride], of k at 2 * pair_of(k) + place_in_pair(k)
  const BlockOfRow* blocks;  // [rows][stride / kBlockDepth]
  int64_t stride;            // a multiple of kBlockDepth

  RowsOfIntegers from(int64_t row) const {
    return {codes + row * stride, blocks + row * (stride / kBlockDepth), stride};
  }
  RowsOfIntegers from_block(int64_t index) const {
    return {codes + index * kBlockDepth, blocks + index, stride};
  }
  const BlockOfRow& block(int64_t row) const { return blocks[row * (stride / kBlockDepth)]; }
};

// Keys of a cache block are stored in tiles of this many positions, transposed, so that scores need
// no horizontal sum.
constexpr int kKeyTile = 16;

// Softmax is merged over chunks of this many keys, whatever the thread count: results do not depend
// on the split.
constexpr int kKeyChunk = 256;

constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

// All structures below are filled by Python through ctypes; abi.py mirrors them field by field.

// Output columns are grouped in panels, as wide as the instruction set likes them
// (KernelTable::panel), so that every kernel streams through memory.
struct Linear {
  // float and half: [panels][k][columns], bfloat16: [panels][k / 2][columns][2],
  // blocks: [panels][k / kBlockDepth]
  const void* data;
  int32_t in, out;
  DType dtype;
  int32_t integers;  // 1: x may be rounded to RowsOfIntegers; only with blocks
};

struct LoraEntry {  // one slice of one adapter
  int64_t a;        // address of A [rank][in], 0 = absent
  int64_t b;        // address of B, in panels of its columns: [panels][rank][columns of a panel]
  int64_t g;        // address of DoRA's scale [columns], 0 = none
  int32_t rank;
  float scale;
};

struct LoraTable {
  const LoraEntry* entries;  // [slots][stride], the first `slices` of each slot are this module's
  const int32_t* columns;    // [slices], output width of each slice
  int32_t stride, slices, slots, in, out;
  int32_t panel;  // columns of a panel of B; a slice's last may have fewer
  DType dtype;    // of A and B
};

struct LoraBatch {
  const int32_t* permutation;  // [rows]
  const int32_t* starts;       // [segments + 1]
  const int32_t* slots;        // [segments]
  int32_t segments, rows;      // rows with an adapter
};

// Of 16-bit integers, behind the elements of a tile of kKeyTile keys or values: the float by which
// each of these is scaled.
template <typename T>
constexpr int kTileScales = 0;  // in elements
template <>
inline constexpr int kTileScales<int16_t> = kKeyTile * int(sizeof(float) / sizeof(int16_t));

// Tile `index` of a cache whose keys or values have so many elements.
template <typename T>
T* tile_at(T* cache, int64_t index, int width) {
  return cache + index * (kKeyTile * width + kTileScales<std::remove_const_t<T>>);
}

// Of a tile whose keys or values have so many elements.
inline float* scales_of(int16_t* tile, int width) {
  return reinterpret_cast<float*>(tile + kKeyTile * width);
}
inline const float* scales_of(const int16_t* tile, int width) {
  return reinterpret_cast<const float*>(tile + kKeyTile * width);
}

struct KvCache {
  void* k;  // [blocks][kv_heads][block_size / kKeyTile]([head_dim][kKeyTile] and scales)
  void* v;  // the same, ([kKeyTile][round_up(head_dim, 16)] and scales)
  DType dtype;
  int32_t block_size, blocks, pad_;
};

struct Heads {
  int32_t query, kv, dim;
  float scale;
  int32_t window;  // keys that a query sees, its own included; 0 = all before it
  float soft_cap;  // a score s becomes soft_cap * tanh(s / soft_cap); 0 = it stays
};

// The first key that the query at `position` sees.
constexpr int first_key(int position, int window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// The attention of a layer, the same for every step.
struct Attention {
  Heads heads;
  KvCache cache;
  const float* cos_sin;  // [max_position][head_dim]
  int32_t max_position, pad_;
};

struct Places {
  const int64_t* positions;     // [rows]
  const int64_t* slot_mapping;  // [rows], negative = do not write
};

struct Sequences {
  const int32_t* block_tables;  // [count][max_blocks]
  const int32_t* query_start;   // [count + 1]
  const int32_t* context_len;   // [count]
  int32_t count, max_blocks;
};

struct DecoderLayer {
  const float *input_norm, *post_norm, *qkv_bias, *q_norm, *k_norm;  // the last three may be null
  Linear qkv, o, gate_up, down;
  const LoraTable *qkv_lora, *o_lora, *gate_up_lora, *down_lora;  // may be null
  Attention attention;
};

struct Decoder {
  const DecoderLayer* layers;
  const float* final_norm;
  int32_t count, hidden, ffn;
  float eps;
};

struct GreedyResult {
  int64_t* tokens;
  float* logprobs;
  float* logsumexp;
};

}  // namespace lorikeet
