#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "pool.h"
#include "simd/portable.h"

namespace lorikeet {
namespace {

using portable::from_float;
using portable::to_float;

// `pair`: successive k of a column that lie side by side.
template <typename T>
void pack(const T* weight, int out, int in, int pair, int panel_columns, T* packed) {
  const int depth = round_up(in, pair);
  Pool::instance().run(ceil_div(out, panel_columns), [&](int panel) {
    T* target = packed + int64_t{panel} * depth * panel_columns;
    for (int c = 0; c < panel_columns; ++c) {
      const int column = panel * panel_columns + c;
      for (int k = 0; k < depth; ++k) {
        target[(int64_t{k / pair} * panel_columns + c) * pair + k % pair] =
            column < out && k < in ? weight[int64_t{column} * in + k] : T{};
      }
    }
  });
}

half_t nearest_half(float value) {
  half_t result;
  from_float(value, &result);
  return result;
}

// 32 values of column c. A quantiser puts the smallest at code 0 and the largest at code 15.
template <int kColumns>
bool pack_column(const float* values, int c, Block4<kColumns>* block) {
  const auto [low, high] = std::minmax_element(values, values + kBlockDepth);
  block->low[c] = nearest_half(*low);
  block->step[c] = nearest_half((*high - *low) / 15.0f);
  const float offset = to_float(block->low[c]), step = to_float(block->step[c]);
  for (int k = 0; k < kBlockDepth; ++k) {
    const float code = step == 0.0f ? 0.0f : std::nearbyintf((values[k] - offset) / step);
    if (!(code >= 0.0f && code <= 15.0f) || step * code + offset != values[k]) return false;
    block->codes[k / 8][c] |= uint32_t(code) << (4 * (k % 8));
  }
  return true;
}

// The largest magnitude is at code 127 or -127.
template <int kColumns>
bool pack_column(const float* values, int c, Block8<kColumns>* block) {
  float largest = 0.0f;
  for (int k = 0; k < kBlockDepth; ++k) largest = std::max(largest, std::fabs(values[k]));
  block->step[c] = nearest_half(largest / 127.0f);
  const float step = to_float(block->step[c]);
  for (int k = 0; k < kBlockDepth; ++k) {
    const float code = step == 0.0f ? 0.0f : std::nearbyintf(values[k] / step);
    if (!(std::fabs(code) <= 127.0f) || step * code != values[k]) return false;
    block->codes[pair_of(k)][c][place_in_pair(k)] = int8_t(code);
  }
  return true;
}

template <int kColumns, template <int> typename Block>
bool pack_blocks_as(const float* weight, int out, int in, void* packed) {
  const int depth = in / kBlockDepth;
  std::atomic<bool> exact{true};
  Pool::instance().run(ceil_div(out, kColumns), [&](int panel) {
    for (int i = 0; i < depth; ++i) {
      Block<kColumns>& block = static_cast<Block<kColumns>*>(packed)[int64_t{panel} * depth + i];
      block = {};
      for (int c = 0; c < kColumns && panel * kColumns + c < out; ++c) {
        if (!exact.load(std::memory_order_relaxed)) return;
        const float* values = weight + int64_t{panel * kColumns + c} * in + i * kBlockDepth;
        if (!pack_column(values, c, &block)) exact.store(false, std::memory_order_relaxed);
      }
    }
  });
  return exact;
}

}  // namespace

int64_t packed_bytes(int out, int in, int panel, DType dtype) {
  const int64_t columns = round_up(out, panel);
  switch (dtype) {
    case DType::kFloat32:
      return columns * in * 4;
    case DType::kFloat16:
      return columns * in * 2;
    case DType::kBFloat16:
      return columns * round_up(in, 2) * 2;
    case DType::kBlock4:
      return columns * (in / kBlockDepth) * int64_t{sizeof(Block4<1>)};
    case DType::kBlock8:
      return columns * (in / kBlockDepth) * int64_t{sizeof(Block8<1>)};
  }
  return 0;
}

void pack_linear(const void* weight, int out, int in, int panel, DType dtype, void* packed) {
  if (dtype == DType::kFloat32) {
    pack(static_cast<const float*>(weight), out, in, 1, panel, static_cast<float*>(packed));
  } else {
    pack(static_cast<const uint16_t*>(weight), out, in, dtype == DType::kBFloat16 ? 2 : 1, panel,
         static_cast<uint16_t*>(packed));
  }
}

bool pack_blocks(const float* weight, int out, int in, int panel, DType dtype, void* packed) {
  if (in % kBlockDepth != 0) return false;
  if (dtype == DType::kBlock4) {
    return panel == 16 ? pack_blocks_as<16, Block4>(weight, out, in, packed)
                       : pack_blocks_as<32, Block4>(weight, out, in, packed);
  }
  return panel == 16 ? pack_blocks_as<16, Block8>(weight, out, in, packed)
                     : pack_blocks_as<32, Block8>(weight, out, in, packed);
}

}  // namespace lorikeet
