// Expand for few rows: every warp works for itself, strip after strip, without a barrier.
#pragma once

#include "device.cuh"
#include "expand.cuh"
#include "lookup.cuh"
#include "planes.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kExpandWarps = 4;
constexpr int kExpandDecodeThreads = 32 * kExpandWarps;
constexpr int kExpandDecodeBlocks = 3;  // of a multiprocessor: 72 KB of B on their way at rank 16, 144 KB above
constexpr int kExpandDecodeShared = kExpandWarps * kStripStages * kStripPlaces * 16;  // bytes

// Grid (blocks that share the strips of the live tiles); kExpandDecodeThreads. v: `planes` planes of [rows][slices * max_rank], by
// position. `room`: tiles that there may be.
template <class T>
__global__ void __launch_bounds__(kExpandDecodeThreads, kExpandDecodeBlocks)
    expand_decode(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows, int room, uint16_t* y, int64_t y_stride) {
  constexpr int kSteps = 4;  // whose v is read at once: 16 ranks each, two stages of B
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  Quad* const stages = reinterpret_cast<Quad*>(dynamic_shared()) + warp * kStripStages * kStripPlaces;

  // The first warps of all blocks come before the second ones: few strips are spread over all multiprocessors.
  const int all = strips(tables), warps = static_cast<int>(gridDim.x) * kExpandWarps;
  const int mine = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x), limit = room * all;
  const auto item_at = [&](int index) {
    return index < limit ? ExpandItem::of(tables, tiles, index / all, index % all) : ExpandItem{};
  };
  const bool live = targeted(tables);

  // What is copied next.
  ExpandItem ahead = item_at(mine);
  int ahead_at = mine, ahead_chunk = 0;
  const auto copy = [&](int stage) {
    copy_strip<32>(stages + stage % kStripStages * kStripPlaces, ahead, ahead_chunk, lane);
    ahead_chunk += kStripRanks;
    if (ahead_chunk < ahead.rank()) return;
    ahead_chunk = 0;
    ahead_at += warps;
    ahead = item_at(ahead_at);
  };
  // Adapters do not change within a step: this need not wait for shrink.
#pragma unroll 1
  for (int stage = 0; stage < kStripStages - 1; ++stage) copy(stage);
  release_next();
  wait_for_previous();
  const int end = live ? tiles.total[0] * all : 0;
  int stage = 0;
  for (int at = mine; at < end; at += warps) {
    const ExpandItem item = item_at(at);  // read before, when its copies began
    const int rank = item.rank();
    uint16_t* row[2];
    Quad before[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = rank > 0 ? item.y_at(tiles, 2 * t + i, g, y, y_stride) : nullptr;
      if (row[i] != nullptr) before[i] = load_written(row[i]);
    }
    const float* const from = v + (item.tile.first + g) * width + item.strip.slice * tables.max_rank + 4 * t;
    Pair token[kSteps];
    float sum[1][kStripTiles][4] = {};
    int chunk = 0;
    do {
      const int first = chunk / kStripRanks % 2 * 2;  // of the steps in `token`
      if (first == 0) {
        const int steps = g < item.tile.count ? (rank - chunk + 15) / 16 : 0;
        add_planes<T>(token, from + chunk, 16, steps, planes, rows * width);
      }
      wait_for_copies<kStripStages - 2>();
      sync_warp();  // the copies of all lanes, and their reads of the stage before
      copy(stage + kStripStages - 1);
      const Quad* const b = stages + stage % kStripStages * kStripPlaces;
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        if (chunk + 16 * step >= rank) continue;
        const Pair x[1] = {first == 0 ? token[step] : token[2 + step]};
        multiply_strip<T>(sum, b, places_of_column(rank, chunk), step, x, g, t);
      }
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
