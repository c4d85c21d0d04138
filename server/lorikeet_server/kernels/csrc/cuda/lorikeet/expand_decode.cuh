// Expand for few rows: every warp works for itself, strip after strip, without a barrier.
#pragma once

#include "device.cuh"
#include "expand.cuh"
#include "lookup.cuh"
#include "planes.cuh"
#include "tables.h"

namespace lorikeet {

// B of a strip, and which strip that is.
struct ExpandStage {
  ExpandItem item;
  Quad b[kStripPlaces];
};

constexpr int kExpandWarps = 4;
constexpr int kExpandDecodeThreads = 32 * kExpandWarps;
constexpr int kExpandDecodeBlocks = 3;  // of a multiprocessor: 72 KB of B on their way at rank 16, 144 KB above
constexpr int kExpandDecodeShared = kExpandWarps * kStripStages * sizeof(ExpandStage);

// Strips in turn, `stride` apart, counted tile after tile: a division once, not for each.
struct StripCursor {
  int tile, strip;

  __device__ StripCursor(int index, int all) : tile(index / all), strip(index % all) {}

  __device__ void advance(const StripCursor& stride, int all) {
    tile += stride.tile;
    strip += stride.strip;
    if (strip < all) return;
    strip -= all;
    ++tile;
  }
};

// Grid (blocks that share the strips of the live tiles); kExpandDecodeThreads. v: `planes` planes of [rows][slices * max_rank], by
// position. `room`: tiles that there may be.
template <class T>
__global__ void __launch_bounds__(kExpandDecodeThreads, kExpandDecodeBlocks)
    expand_decode(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows, int room, uint16_t* y, int64_t y_stride) {
  constexpr int kSteps = 4;  // of 16 ranks, whose v is read at once: two stages of B
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank, plane = rows * width;
  ExpandStage* const stages = reinterpret_cast<ExpandStage*>(dynamic_shared()) + warp * kStripStages;

  // The first warps of all blocks come before the second ones: few strips are spread over all multiprocessors.
  const int all = strips(tables), blocks = gridDim.x, first = warp * blocks + static_cast<int>(blockIdx.x);
  const StripCursor stride(blocks * kExpandWarps, all);
  const bool live = targeted(tables);

  // What is copied next.
  StripCursor cursor(first, all);
  const auto item_at_cursor = [&] {
    return cursor.tile < room ? ExpandItem::of(tables, tiles, cursor.tile, cursor.strip) : ExpandItem{};
  };
  ExpandItem ahead = item_at_cursor();
  int ahead_chunk = 0;
  const auto copy = [&](int stage) {
    ExpandStage& to = stages[stage % kStripStages];
    if (lane == 0) to.item = ahead;
    copy_strip<32>(to.b, ahead, ahead_chunk, lane);
    ahead_chunk += kStripRanks;
    if (ahead_chunk < ahead.rank()) return;
    ahead_chunk = 0;
    cursor.advance(stride, all);
    ahead = item_at_cursor();
  };
  // Adapters do not change within a step: this need not wait for shrink.
#pragma unroll 1
  for (int stage = 0; stage < kStripStages - 1; ++stage) copy(stage);
  sync_warp();  // the first items
  release_next();
  wait_for_previous();
  const int end = live ? tiles.total[0] * all : 0;
  int stage = 0;
#pragma unroll 1
  for (int at = first; at < end; at += blocks * kExpandWarps) {
    const ExpandItem item = stages[stage % kStripStages].item;
    const int rank = item.rank();
    uint16_t* row[2];
    Quad before[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = rank > 0 ? item.y_at(tiles, 2 * t + i, g, y, y_stride) : nullptr;
      if (row[i] != nullptr) before[i] = load_written(row[i]);
    }
    const float* const from = v + (item.tile.first + g) * width + item.strip.slice * tables.max_rank + 4 * t;
    const bool mine = g < item.tile.count;
    Pair token[kSteps];
    float sum[1][kStripTiles][4] = {};
    int chunk = 0;
    do {
      const int left = rank - chunk, second = chunk % (16 * kSteps);  // not 0: the second stage of `token`
      if (second == 0) {
        switch ((left + 15) / 16) {
          case 0: break;
          case 1: add_planes<T, 1>(token, from + chunk, mine, planes, plane); break;
          case 2: add_planes<T, 2>(token, from + chunk, mine, planes, plane); break;
          case 3: add_planes<T, 3>(token, from + chunk, mine, planes, plane); break;
          default: add_planes<T, kSteps>(token, from + chunk, mine, planes, plane);
        }
      }
      wait_for_copies<kStripStages - 2>();
      sync_warp();  // the copies of all lanes, and their reads of the stage before
      copy(stage + kStripStages - 1);
      const auto take = [&](Pair(&x)[1], int step) { x[0] = second == 0 ? token[step] : token[2 + step]; };
      multiply_strip<T>(sum, stages[stage % kStripStages].b, left, take, g, t);
      ++stage;
      chunk += kStripRanks;
    } while (chunk < rank);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row[i] != nullptr) *reinterpret_cast<Quad*>(row[i]) = added<T>(before[i], sum[0], i, item, g);
    }
  }
}

}  // namespace lorikeet
