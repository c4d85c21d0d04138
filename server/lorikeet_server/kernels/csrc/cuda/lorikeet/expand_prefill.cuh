// Expand for many rows: a block takes a run of strips of one slice for the rows of one tile, 16 rows for each warp. What the run has in
// common, the adapter, the addresses of rows and their v, is looked up once: strips are so small that it would be most of the work.
#pragma once

#include "device.cuh"
#include "expand.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kExpandPrefillThreads = 128;
constexpr int kExpandPrefillBlocks = 4;  // of a multiprocessor
constexpr int kLongestRun = 16;

// Grid (blocks that share the runs); kExpandPrefillThreads. A run is up to `run` strips for one tile of 64 rows.
// v: [rows][slices * max_rank], 16-bit, by position. kAlone: as for few rows.
template <class T, bool kAlone>
__global__ void __launch_bounds__(kExpandPrefillThreads, kExpandPrefillBlocks)
    expand_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* v, int run, uint16_t* y, int64_t y_stride) {
  constexpr int kTokenTiles = 2;                // of a warp, 8 rows each
  constexpr int kKeptRanks = 128;               // of v in shared memory
  constexpr int kVStride = kKeptRanks + 16;     // spreads the rows that a half warp reads together over all banks
  alignas(16) __shared__ uint16_t kept[kPrefillTile * kVStride];
  alignas(16) __shared__ Quad stages[kStripStages * kStripPlaces];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  const int runs = runs_of_strips(tables, run), sharing = gridDim.x;
  const int32_t* const total = tiles.total + (kAlone ? 2 : 0);
  const int end = kAlone || targeted(tables) ? *total * runs : 0;

  // The first strip of a run; a rank of 0, and no rows, beyond the last one.
  const auto run_at = [&](int at) {
    return at < end ? ExpandItem::of(tables, tiles, at / runs, total, at % runs, run) : ExpandItem{};
  };
  int at = blockIdx.x;
  ExpandItem item = run_at(at);
  // What is copied next, and where the run ends.
  int ahead_first = 0, ahead_chunk = 0, copied = 0, run_end = 0;
  const auto copy = [&] {
    ExpandItem ahead = item;
    ahead.strip.first = ahead_first;
    if (ahead_first >= run_end) ahead.entry.b = 0;
    copy_strip<kExpandPrefillThreads>(stages + copied++ % kStripStages * kStripPlaces, ahead, ahead_chunk, threadIdx.x);
    ahead_chunk += kStripRanks;
    if (ahead_chunk < item.entry.rank) return;
    ahead_chunk = 0;
    ahead_first += kStripColumns;
  };
  const auto begin = [&] {
    ahead_first = item.strip.first;
    ahead_chunk = copied = 0;
    run_end = item.strip.first + run * kStripColumns;
    if (run_end > item.strip.out) run_end = item.strip.out;
#pragma unroll 1
    for (int stage = 0; stage < kStripStages - 1; ++stage) copy();
  };
  // Adapters do not change within a step: this need not wait for shrink.
  begin();
  release_next();
  wait_for_previous();
#pragma unroll 1
  while (at < end) {
    const int rank = item.rank();
    if (!kAlone && rank == 0) run_end = 0;
    uint16_t* row[kTokenTiles][2];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) row[n][i] = item.row_at(tiles, (warp * kTokenTiles + n) * 8 + 2 * t + i, g, y, y_stride);
    }
    Quad before[kTokenTiles][2] = {};
    const auto read_y = [&](bool live) {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (!kAlone) before[n][i] = live && row[n][i] != nullptr ? load_written(row[n][i]) : Quad{};
        }
      }
    };
    // The last strip of a slice may be narrower.
    const auto here = [&] { return item.strip.first < run_end && item.strip.first + 8 * g < item.strip.out; };
    read_y(here());
    const auto keep = [&](int chunk) {
      const int left = rank - chunk < kKeptRanks ? rank - chunk : kKeptRanks;
      const int quads = (left + kRankTile - 1) / kRankTile * (kRankTile / 8);  // of a row, 8 ranks each
      const uint16_t* from = v + item.tile.first * width + item.strip.slice * tables.max_rank + chunk;
      for (int i = threadIdx.x; i < item.tile.count * quads; i += kExpandPrefillThreads) {
        const int place = i / quads, quad = i % quads;
        *reinterpret_cast<Quad*>(kept + place * kVStride + 8 * quad) = load_written(from + place * width + 8 * quad);
      }
    };
    if (0 < rank && rank <= kKeptRanks) keep(0);
    int stage = 0;
#pragma unroll 1
    while (item.strip.first < run_end) {
      float sum[kTokenTiles][kStripTiles][4] = {};
#pragma unroll 1
      for (int chunk = 0; chunk < rank; chunk += kStripRanks, ++stage) {
        if (rank > kKeptRanks && chunk % kKeptRanks == 0) {
          __syncthreads();  // the reads of what was kept
          keep(chunk);
        }
        wait_for_copies<kStripStages - 2>();
        __syncthreads();  // what all threads have copied and kept, and their reads of the stage before
        copy();
        const Quad* const b = stages + stage % kStripStages * kStripPlaces;
        const auto take = [&](Pair(&x)[kTokenTiles], int step) {
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            const int place = (warp * kTokenTiles + n) * 8 + g, first = chunk % kKeptRanks + 16 * step + 4 * t;
            x[n] = *reinterpret_cast<const Pair*>(kept + place * kVStride + first);
          }
        };
        multiply_strip<T>(sum, b, rank - chunk, take, g, t);
      }
      const bool live = here();
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (row[n][i] == nullptr) continue;
          if (live) *reinterpret_cast<Quad*>(row[n][i]) = added<T, kAlone>(before[n][i], sum[n], i, item, g);
          row[n][i] += kStripColumns;
        }
      }
      item.strip.first += kStripColumns;
      read_y(here());
    }
    at += sharing;
    item = run_at(at);
    __syncthreads();  // the reads of the last stages, and of what was kept
    begin();
  }
}

}  // namespace lorikeet
