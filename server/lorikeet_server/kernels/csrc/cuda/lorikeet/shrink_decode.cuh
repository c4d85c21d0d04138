// Shrink for few rows: a warp for each unit, weights and tokens straight into registers.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kShrinkThreads = 32 * kUnits;  // one unit for each warp
constexpr int kShrinkBlocks = 2;             // of a multiprocessor: 64 KB in flight, and room for expand to begin

// `end`: of the columns that exist.
__device__ __forceinline__ WeightFragment load_weights(const ShrinkWeights& weights, int in, int column, int end, int g) {
  WeightFragment f = {};
  if (column < end) {
    const uint16_t* at = weights.a + static_cast<int64_t>(g) * in + column;
    if (g < weights.rows) f.low = load_streaming(reinterpret_cast<const Quad*>(at));
    if (g + 8 < weights.rows) f.high = load_streaming(reinterpret_cast<const Quad*>(at + static_cast<int64_t>(8) * in));
  }
  return f;
}

__device__ __forceinline__ Quad load_token(const uint16_t* row, int column, int end) {
  if (row == nullptr || column >= end) return Quad{};
  return load_written(row + column);
}

// What a block computes at a time.
struct ShrinkItem {
  LoraTile tile;
  ShrinkWeights weights;
  const uint16_t* row;  // this thread's token

  // `tile`: the item at `index`, or anything if `live` says that there is none.
  __device__ static ShrinkItem of(const LoraTables& tables, const LoraTiles& tiles, const LoraTile& tile, bool live, int slice, int g,
                                  const uint16_t* x, int64_t x_stride) {
    if (!live) return {};
    return {tile, ShrinkWeights::of(tables, tile.slot, slice, tile.rank), token_row(tiles, tile, g, x, x_stride)};
  }
};

// Grid (chunks, slices, blocks that share the items); kShrinkThreads. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kShrinkThreads, kShrinkBlocks)
    shrink_decode(LoraTables tables, LoraTiles tiles, const uint16_t* x, int64_t x_stride, float* v, int rows) {
  constexpr int kLoads = 4;
  // Two, so that one barrier for each item is enough; rows of 9 values avoid most bank conflicts.
  __shared__ float partial[2][kUnits][kRankTile][kDecodeTile + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = unit_steps(tables.in), slice = blockIdx.y, total = tiles.total[1];
  const int first_column = (blockIdx.x * kUnits + warp) * steps * kStep + t * 8;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;

  WeightFragment w[kLoads];
  const auto load = [&](const ShrinkWeights& weights, int step) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int end = weights.a != nullptr && step + i < steps ? tables.in : 0;
      w[i] = load_weights(weights, tables.in, first_column + (step + i) * kStep, end, g);
    }
  };
  const bool live = targeted(tables);
  int index = blockIdx.z, parity = 0;
  // There are not more blocks than items could be: the first is read beside their number, not after it.
  ShrinkItem item = ShrinkItem::of(tables, tiles, tile_at(tiles.items, index), index < total, slice, g, x, x_stride);
  load(item.weights, 0);
  release_next();
  wait_for_previous();
  if (!live) return;
  for (; index < total; index += gridDim.z) {
    const bool more = index + static_cast<int>(gridDim.z) < total;
    const LoraTile after = more ? tile_at(tiles.items, index + gridDim.z) : LoraTile{};
    const ShrinkItem next = ShrinkItem::of(tables, tiles, after, more, slice, g, x, x_stride);
    if (item.weights.a == nullptr) {
      item = next;
      load(item.weights, 0);
      continue;
    }
    float sum[4] = {};
    for (int step = 0; step < steps; step += kLoads) {
      Quad token[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        token[i] = load_token(item.row, first_column + (step + i) * kStep, step + i < steps ? tables.in : 0);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (step + i < steps) multiply<T>(sum, w[i], token[i]);
      }
      // What comes next is on its way while this item is reduced.
      if (step + kLoads < steps) {
        load(item.weights, step + kLoads);
      } else {
        load(next.weights, 0);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[parity][warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
    __syncthreads();
    // One value for each thread: consecutive threads write consecutive ranks of a row of v.
    const int rank = threadIdx.x % kRankTile, place = threadIdx.x / kRankTile;
    if (place < item.tile.count) {
      float whole = partial[parity][0][rank][place];
#pragma unroll
      for (int unit = 1; unit < kUnits; ++unit) whole += partial[parity][unit][rank][place];
      const int64_t row = static_cast<int64_t>(blockIdx.x) * rows + item.tile.first + place;
      v[row * width + slice * tables.max_rank + item.tile.rank + rank] = whole;
    }
    parity ^= 1;
    item = next;
  }
}

}  // namespace lorikeet
