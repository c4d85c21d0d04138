// Rotates the queries and keys of every row in place, and writes its keys and values to their place in the cache.
//
// A thread has 8 columns of the first half of a head, and those 8 of the second half that turn with them. It reads and writes
// each once, 16 bytes at a time; of a value it copies the same columns. What an adapter adds is read beside them. The rest is waiting for memory: what can be read while
// the kernel before this one ends is read then.
#pragma once

#include "cached_layer.h"
#include "device.cuh"
#include "eight.cuh"

namespace lorikeet {

constexpr int kRopeThreads = 128;
constexpr int kRopeColumns = 8;  // of each half, of one thread

// Threads for one row.
__host__ __device__ inline int64_t rope_threads(const CachedLayer& layer) {
  return (layer.heads + 2 * static_cast<int64_t>(layer.kv_heads)) * (layer.width / (2 * kRopeColumns));
}

// By how much the columns of a thread turn.
struct Turn {
  Quad cos[2], sin[2];

  __device__ static Turn of(const CachedLayer& layer, int64_t position, int column) {
    const auto* at = reinterpret_cast<const Quad*>(layer.cos_sin + position * layer.width + column);
    const int half = layer.width / 2 / 4;
    return {{load_cached(at), load_cached(at + 1)}, {load_cached(at + half), load_cached(at + half + 1)}};
  }

  __device__ static Turn nowhere() {
    return {{kNans, kNans}, {kNans, kNans}};
  }
};

// Rotates 8 columns of each half in fp32.
template <class T>
__device__ __forceinline__ void rotate(Eight<T>& first, Eight<T>& second, const Turn& turn) {
#pragma unroll
  for (int column = 0; column < 8; ++column) {
    const float x = first.value[column], y = second.value[column];
    const float cos = as_float(turn.cos[column / 4].word[column % 4]);
    const float sin = as_float(turn.sin[column / 4].word[column % 4]);
    first.value[column] = x * cos - y * sin;
    second.value[column] = y * cos + x * sin;
  }
}

// Grid (rows, blocks that share the threads of a row); kRopeThreads. `delta`: [rows][all heads' columns] to be added first, or
// null. `positions` and `places` are copied to the device before a
// step, so they are there before any kernel of the step begins. A row whose position or place is out of range touches no other
// row's memory: its queries and keys turn into NaN, by which its sequence alone is found out.
template <class T>
__global__ void __launch_bounds__(kRopeThreads)
    rope_and_cache(CachedLayer layer, uint16_t* qkv, int64_t qkv_stride, const uint16_t* delta, const int64_t* positions,
                   const int64_t* places) {
  const int row = blockIdx.x, thread = blockIdx.y * kRopeThreads + threadIdx.x;
  const int half = layer.width / 2, of_head = half / kRopeColumns;
  const int head = thread / of_head, column = thread % of_head * kRopeColumns;
  const int keys = layer.heads, values = keys + layer.kv_heads, end = values + layer.kv_heads;  // where they begin
  const int64_t position = positions[row], place = places[row];
  const bool known = position >= 0 && position < layer.positions && place >= 0 && place < layer.places;
  Turn turn = Turn::nowhere();
  if (known && head < values) turn = Turn::of(layer, position, column);
  release_next();
  wait_for_previous();
  if (head >= end) return;

  uint16_t* at = qkv + row * qkv_stride + static_cast<int64_t>(head) * layer.width + column;
  Quad first = load_written(at), second = load_written(at + half);
  if (head < values || delta != nullptr) {
    Eight<T> low = Eight<T>::of(first), high = Eight<T>::of(second);
    if (delta != nullptr) {
      const uint16_t* more = delta + (static_cast<int64_t>(row) * end + head) * layer.width + column;
      const Quad more_first = load_written(more), more_second = load_written(more + half);
      low.add(more_first);
      high.add(more_second);
    }
    if (head < values) rotate<T>(low, high, turn);
    *reinterpret_cast<Quad*>(at) = first = low.packed();
    *reinterpret_cast<Quad*>(at + half) = second = high.packed();
  }
  if (head < keys || !known) return;
  const int64_t cached = place * layer.kv_heads + head - (head < values ? keys : values);
  uint16_t* to = (head < values ? layer.k_cache : layer.v_cache) + cached * layer.width + column;
  *reinterpret_cast<Quad*>(to) = first;
  *reinterpret_cast<Quad*>(to + half) = second;
}

}  // namespace lorikeet
