// Expand for many rows: a block takes a run of strips for the rows of one tile, 16 rows for each warp, and keeps their v.
#pragma once

#include "device.cuh"
#include "expand.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kExpandPrefillThreads = 128;
constexpr int kExpandPrefillBlocks = 4;  // of a multiprocessor
constexpr int kLongestRun = 16;

// Grid (blocks that share the runs); kExpandPrefillThreads. A run is `run` strips for one tile of 64 rows.
// v: [rows][slices * max_rank], 16-bit, by position.
template <class T>
__global__ void __launch_bounds__(kExpandPrefillThreads, kExpandPrefillBlocks)
    expand_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* v, int run, uint16_t* y, int64_t y_stride) {
  constexpr int kTokenTiles = 2;                // of a warp, 8 rows each
  constexpr int kKeptRanks = 128;               // of v in shared memory
  constexpr int kVStride = kKeptRanks + 16;     // spreads the rows that a half warp reads together over all banks
  alignas(16) __shared__ uint16_t kept[kPrefillTile * kVStride];
  alignas(16) __shared__ Quad stages[kStripStages * kStripPlaces];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  const int all = strips(tables), runs = (all + run - 1) / run, sharing = gridDim.x;

  // Where a block is: run after run, and within a run strip after strip.
  struct Place {
    int at, within;
  };
  const auto after = [&](const Place& place) {
    return place.within + 1 < run ? Place{place.at, place.within + 1} : Place{place.at + sharing, 0};
  };
  const bool live = targeted(tables);
  const int end = live ? tiles.total[0] * runs : 0;
  const auto item_at = [&](const Place& place) {
    const int strip = place.at % runs * run + place.within;
    return place.at < end && strip < all ? ExpandItem::of(tables, tiles, place.at / runs, tiles.total, strip) : ExpandItem{};
  };
  const auto y_of = [&](const ExpandItem& item, int n, int i) {
    return item.rank() > 0 ? item.y_at(tiles, (warp * kTokenTiles + n) * 8 + 2 * t + i, g, y, y_stride) : nullptr;
  };
  Quad before[kTokenTiles][2];
  const auto read_y = [&](const ExpandItem& item) {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint16_t* from = y_of(item, n, i);
        before[n][i] = from != nullptr ? load_written(from) : Quad{};
      }
    }
  };

  // What is copied next.
  Place ahead_place = {static_cast<int>(blockIdx.x), 0};
  ExpandItem ahead = item_at(ahead_place);
  int ahead_chunk = 0;
  const auto copy = [&](int stage) {
    copy_strip<kExpandPrefillThreads>(stages + stage % kStripStages * kStripPlaces, ahead, ahead_chunk, threadIdx.x);
    ahead_chunk += kStripRanks;
    if (ahead_chunk < ahead.rank()) return;
    ahead_chunk = 0;
    ahead_place = after(ahead_place);
    ahead = item_at(ahead_place);
  };
  Place place = ahead_place;
  ExpandItem item = ahead;
  // Adapters do not change within a step: this need not wait for shrink.
#pragma unroll 1
  for (int stage = 0; stage < kStripStages - 1; ++stage) copy(stage);
  release_next();
  wait_for_previous();
  read_y(item);
  int stage = 0, kept_tile = -1, kept_slice = -1;  // whose v is kept, all of it
  while (place.at < end) {
    const int rank = item.rank();
    place = after(place);
    const ExpandItem next = item_at(place);
    float sum[kTokenTiles][kStripTiles][4] = {};
    int chunk = 0;
    do {
      const bool whole = kept_tile == item.tile.first && kept_slice == item.strip.slice;
      if (rank > 0 && chunk % kKeptRanks == 0 && !whole) {
        const int left = rank - chunk < kKeptRanks ? rank - chunk : kKeptRanks;
        const int quads = (left + kRankTile - 1) / kRankTile * (kRankTile / 8);  // of a row, 8 ranks each
        const uint16_t* from = v + item.tile.first * width + item.strip.slice * tables.max_rank + chunk;
        __syncthreads();  // the reads of what was kept
        for (int i = threadIdx.x; i < item.tile.count * quads; i += kExpandPrefillThreads) {
          const int row = i / quads, quad = i % quads;
          *reinterpret_cast<Quad*>(kept + row * kVStride + 8 * quad) = load_written(from + row * width + 8 * quad);
        }
        kept_tile = rank > kKeptRanks ? -1 : item.tile.first;
        kept_slice = item.strip.slice;
      }
      wait_for_copies<kStripStages - 2>();
      __syncthreads();  // what all threads have copied and kept, and their reads of the stage before
      copy(stage + kStripStages - 1);
      const Quad* const b = stages + stage % kStripStages * kStripPlaces;
      const auto take = [&](Pair(&x)[kTokenTiles], int step) {
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          const int row = (warp * kTokenTiles + n) * 8 + g, first = chunk % kKeptRanks + 16 * step + 4 * t;
          x[n] = *reinterpret_cast<const Pair*>(kept + row * kVStride + first);
        }
      };
      multiply_strip<T>(sum, b, rank - chunk, take, g, t);
      ++stage;
      chunk += kStripRanks;
    } while (chunk < rank);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint16_t* to = y_of(item, n, i);
        if (to != nullptr) *reinterpret_cast<Quad*>(to) = added<T>(before[n][i], sum[n], i, item, g);
      }
    }
    item = next;
    read_y(item);
  }
}

}  // namespace lorikeet
