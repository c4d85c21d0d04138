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
constexpr int kExpandDecodeBlocks = 4;  // of a multiprocessor: 64 KB of B on their way at rank 16, 128 KB above
constexpr int kExpandStages = 3;        // of a warp
constexpr int kExpandItems = 8, kItemsAtOnce = kExpandItems / 2;
constexpr int kExpandLongestRun = 4;

// What a warp has in shared memory: B of its next stages, and its next strips in a ring. Those are looked up several at once, each by
// a lane: the reads that wait for each other are waited for once.
struct ExpandAhead {
  Quad b[kExpandStages][kStripPlaces];
  ExpandItem items[kExpandItems];
};

static_assert(kExpandStages <= kItemsAtOnce, "a lookup must not overwrite what is still to be computed");

constexpr int kExpandDecodeShared = kExpandWarps * sizeof(ExpandAhead);

// Grid (blocks that share the runs); kExpandDecodeThreads. A run is `run` strips for one tile, which read v once. v: `planes` planes
// of [rows][slices * max_rank], by position. `room`: tiles that there may be. kAlone: y is written and not added to, for all rows of
// the step and all columns.
template <class T, bool kAlone>
__global__ void __launch_bounds__(kExpandDecodeThreads, kExpandDecodeBlocks)
    expand_decode(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows, int room, int run, uint16_t* y,
                  int64_t y_stride) {
  constexpr int kSteps = 4, kKeptRanks = 16 * kSteps;  // of v that are read at once: two stages of B
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank, plane = rows * width;
  ExpandAhead& ahead = reinterpret_cast<ExpandAhead*>(dynamic_shared())[warp];

  // The first warps of all blocks come before the second ones: few strips are spread over all multiprocessors.
  const int blocks = gridDim.x, first = warp * blocks + static_cast<int>(blockIdx.x), stride = blocks * kExpandWarps;
  const int all = strips(tables), runs = (all + run - 1) / run;
  const bool live = kAlone || targeted(tables);
  const int32_t* const total = tiles.total + (kAlone ? 2 : 0);
  const auto look_up = [&](int from, int items) {
    if (lane < items) {
      const int index = from + lane, at = first + index / run * stride;
      const int tile = at / runs, strip = at % runs * run + index % run;
      const bool there = live && tile < room && strip < all;
      ahead.items[index % kExpandItems] = there ? ExpandItem::of(tables, tiles, tile, total, strip) : ExpandItem{};
    }
    sync_warp();
  };
  // What is copied next.
  int copied = 0, copied_chunk = 0;
  const auto copy = [&](int stage) {
    const ExpandItem& item = ahead.items[copied % kExpandItems];
    copy_strip<32>(ahead.b[stage % kExpandStages], item, copied_chunk, lane);
    copied_chunk += kStripRanks;
    if (copied_chunk < item.rank()) return;
    copied_chunk = 0;
    if (++copied % kItemsAtOnce == 0 && copied >= kExpandItems) look_up(copied, kItemsAtOnce);
  };
  // Adapters do not change within a step: this need not wait for shrink.
  look_up(0, kExpandItems);
#pragma unroll 1
  for (int stage = 0; stage < kExpandStages - 1; ++stage) copy(stage);
  release_next();
  wait_for_previous();
  const int end = live ? *total * runs : 0;
  Pair token[kSteps];
  int stage = 0, kept_tile = -1, kept_slice = -1;
#pragma unroll 1
  for (int index = 0; first + index / run * stride < end; ++index) {
    const ExpandItem item = ahead.items[index % kExpandItems];
    const int rank = item.rank();
    uint16_t* row[2];
    Quad before[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = kAlone || rank > 0 ? item.y_at(tiles, 2 * t + i, g, y, y_stride) : nullptr;
      if (!kAlone && row[i] != nullptr) before[i] = load_written(row[i]);
    }
    const float* const from = v + (item.tile.first + g) * width + item.strip.slice * tables.max_rank + 4 * t;
    const bool mine = g < item.tile.count, kept = kept_tile == item.tile.first && kept_slice == item.strip.slice;
    float sum[1][kStripTiles][4] = {};
    int chunk = 0;
    do {
      const int left = rank - chunk, second = chunk % kKeptRanks;  // not 0: the second stage of `token`
      if (second == 0 && !kept) {
        switch ((left + 15) / 16) {
          case 0: break;
          case 1: add_planes<T, 1>(token, from + chunk, mine, planes, plane); break;
          case 2: add_planes<T, 2>(token, from + chunk, mine, planes, plane); break;
          case 3: add_planes<T, 3>(token, from + chunk, mine, planes, plane); break;
          default: add_planes<T, kSteps>(token, from + chunk, mine, planes, plane);
        }
      }
      wait_for_copies<kExpandStages - 2>();
      sync_warp();  // the copies of all lanes, and their reads of the stage before
      copy(stage + kExpandStages - 1);
      const auto take = [&](Pair(&x)[1], int step) { x[0] = second == 0 ? token[step] : token[2 + step]; };
      multiply_strip<T>(sum, ahead.b[stage % kExpandStages], left, take, g, t);
      ++stage;
      chunk += kStripRanks;
    } while (chunk < rank);
    kept_tile = 0 < rank && rank <= kKeptRanks ? item.tile.first : -1;
    kept_slice = item.strip.slice;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row[i] != nullptr) *reinterpret_cast<Quad*>(row[i]) = added<T, kAlone>(before[i], sum[0], i, item, g);
    }
  }
}

}  // namespace lorikeet
