// Shrink for few rows: a warp for each unit. Weights come through shared memory, where each warp has stages of its own: what is on its
// way takes neither registers nor L1, of which little is left where the kernels around this one need shared memory.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kShrinkThreads = 32 * kUnits;  // one unit for each warp
// Of a multiprocessor: 96 KB on their way. Registers leave no room for expand beside two of them: where its blocks came sooner, and
// waited there, both kernels together took a fifth to a half longer.
constexpr int kShrinkBlocks = 2;
constexpr int kShrinkStages = 4;             // of a warp
constexpr int kShrinkStage = kRankTile * kStageColumns;                   // values
constexpr int kShrinkShared = kUnits * kShrinkStages * kShrinkStage * 2;  // bytes

// What a block computes at a time: an item of its slice.
struct ShrinkItem {
  LoraTile tile;
  ShrinkWeights weights;

  // Nothing to do if its adapter does not target the slice in these ranks.
  __device__ static ShrinkItem of(const LoraTables& tables, const LoraTile& tile, int slice) {
    return {tile, ShrinkWeights::of(tables, tile.slot, slice, tile.rank)};
  }

  // The same if there is none at `index`.
  __device__ static ShrinkItem of(const LoraTables& tables, const LoraTiles& tiles, int index, int total, int slice) {
    return index < total ? of(tables, tile_at(tiles.items, index), slice) : ShrinkItem{};
  }
};

// Weights at [column, +kStageColumns) on their way to a stage, zeros where there are none. One group of copies, even if there is
// nothing to copy.
__device__ __forceinline__ void copy_weights(uint16_t* stage, const ShrinkWeights& weights, int in, int column, int lane) {
  constexpr int kQuads = kStageColumns / 8, kRowsAtOnce = 32 / kQuads;
  const int first = lane / kQuads, within = lane % kQuads * 8;
  if (weights.a != nullptr) {
    const uint16_t* from = weights.a + static_cast<int64_t>(first) * in + column + within;
#pragma unroll
    for (int i = 0; i < kRankTile / kRowsAtOnce; ++i) {
      const int row = i * kRowsAtOnce + first;
      const bool live = row < weights.rows && column + within < in;
      copy_async(stage + stage_place(row, within), from + static_cast<int64_t>(i * kRowsAtOnce) * in, live);
    }
  }
  commit_copies();
}

// Grid (chunks, slices, blocks that share the items); kShrinkThreads. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kShrinkThreads, kShrinkBlocks)
    shrink_decode(LoraTables tables, LoraTiles tiles, const uint16_t* x, int64_t x_stride, float* v, int rows) {
  // Two, so that one barrier for each item is enough; rows of 9 values avoid most bank conflicts.
  __shared__ float partial[2][kUnits][kRankTile][kDecodeTile + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint16_t* const stages = dynamic_shared() + warp * kShrinkStages * kShrinkStage;
  const int item_stages = unit_steps(tables.in) / kStageSteps, slice = blockIdx.y, sharing = gridDim.z;
  const int first_column = (blockIdx.x * kUnits + warp) * item_stages * kStageColumns;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  // Reads that do not depend on each other, one beside the other: there is room for as many items as blocks, live or not.
  const LoraTile first = tile_at(tiles.items, blockIdx.z);
  const int items = tiles.total[1], total = targeted(tables) ? items : 0;
  const bool any = static_cast<int>(blockIdx.z) < total;
  const auto row_of = [&](const LoraTile& tile) { return token_row(tiles, tile, g, x, x_stride); };
  const uint16_t* row = any ? row_of(first) : nullptr;

  // What is copied next.
  int ahead_index = blockIdx.z, ahead_stage = 0;
  ShrinkItem ahead = any ? ShrinkItem::of(tables, first, slice) : ShrinkItem{};
  const auto copy = [&](int stage) {
    uint16_t* const to = stages + stage % kShrinkStages * kShrinkStage;
    copy_weights(to, ahead.weights, tables.in, first_column + ahead_stage * kStageColumns, lane);
    if (++ahead_stage < item_stages) return;
    ahead_stage = 0;
    ahead_index += sharing;
    ahead = ShrinkItem::of(tables, tiles, ahead_index, total, slice);
  };
  ShrinkItem item = ahead;
  // Adapters do not change within a step: this need not wait for what writes x.
#pragma unroll 1
  for (int stage = 0; stage < kShrinkStages - 1; ++stage) copy(stage);
  release_next();
  wait_for_previous();

  const auto load_tokens = [&](Quad(&token)[kStageSteps], const uint16_t* row, int stage) {
#pragma unroll
    for (int i = 0; i < kStageSteps; ++i) {
      const int column = first_column + stage * kStageColumns + i * kStep + t * 8;
      token[i] = row != nullptr && column < tables.in ? load_written(row + column) : Quad{};
    }
  };
  Quad token[kStageSteps];
  load_tokens(token, row, 0);
  int stage = 0, parity = 0;
#pragma unroll 1
  for (int index = blockIdx.z; index < total; index += sharing) {
    const ShrinkItem next = ShrinkItem::of(tables, tiles, index + sharing, total, slice);
    const uint16_t* const next_row = row_of(next.tile);
    float sum[4] = {};
#pragma unroll 1
    for (int within = 1; within <= item_stages; ++within, ++stage) {
      Quad coming[kStageSteps];
      load_tokens(coming, within < item_stages ? row : next_row, within < item_stages ? within : 0);
      wait_for_copies<kShrinkStages - 2>();
      sync_warp();  // the copies of all lanes, and their reads of the stage before
      copy(stage + kShrinkStages - 1);
      const uint16_t* const from = stages + stage % kShrinkStages * kShrinkStage;
#pragma unroll
      for (int i = 0; i < kStageSteps; ++i) {
        const auto read = [&](int rank) {
          return *reinterpret_cast<const Quad*>(from + stage_place(rank, i * kStep + t * 8));
        };
        multiply<T>(sum, {read(g), read(g + 8)}, token[i]);
      }
#pragma unroll
      for (int i = 0; i < kStageSteps; ++i) token[i] = coming[i];
    }
    if (item.weights.a != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[parity][warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
      __syncthreads();
      // One value for each thread: consecutive threads write consecutive ranks of a row of v.
      const int rank = threadIdx.x % kRankTile, place = threadIdx.x / kRankTile;
      if (place < item.tile.count) {
        float whole = partial[parity][0][rank][place];
#pragma unroll
        for (int unit = 1; unit < kUnits; ++unit) whole += partial[parity][unit][rank][place];
        const int64_t at = static_cast<int64_t>(blockIdx.x) * rows + item.tile.first + place;
        v[at * width + slice * tables.max_rank + item.tile.rank + rank] = whole;
      }
      parity ^= 1;
    }
    item = next;
    row = next_row;
  }
}

}  // namespace lorikeet
