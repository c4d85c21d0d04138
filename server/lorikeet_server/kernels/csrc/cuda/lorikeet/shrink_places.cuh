// Shrink for many rows: what its blocks share out, and where it is.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kPrefillThreads = 256;
constexpr int kPrefillBlocks = 2;               // of a multiprocessor
constexpr int kShrinkPrefillShared = 96 << 10;  // bytes
constexpr int kMostRankTiles = 8;               // of all slices, that a block takes at a time

// The rank tiles that an adapter has in a module, slice after slice.
struct RankTile {
  ShrinkWeights weights;
  int column;  // of v

  __device__ static RankTile of(const LoraTables& tables, int slot, int index) {
    RankTile found = {};
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice) {
      if (slice >= tables.slices) continue;
      const int here = count(tables, slot, slice), first = index * kRankTile;
      if (index >= 0 && index < here) found = {ShrinkWeights::of(tables, slot, slice, first), slice * tables.max_rank + first};
      index -= here;
    }
    return found;
  }

  __device__ static int count(const LoraTables& tables, int slot) {
    int all = 0;
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice) {
      if (slice < tables.slices) all += count(tables, slot, slice);
    }
    return all;
  }

 private:
  __device__ static int count(const LoraTables& tables, int slot, int slice) {
    const LoraEntry entry = entry_of(tables, slot, slice);
    return entry.a != 0 ? (entry.rank + kRankTile - 1) / kRankTile : 0;
  }
};

// What a block computes at a time: some rank tiles of the adapter of a tile of rows. Kept where it takes no registers; looked up by one
// thread for each place. All threads of the block make each call.
struct ShrinkPlaces {
  LoraTile tile;
  int all;    // rank tiles of the adapter
  int group;  // of them at a time
  int first;  // of this time
  int64_t x[kPrefillTile];                // addresses of rows; 0 beyond those of the tile
  int64_t a[kMostRankTiles * kRankTile];  // addresses of rank rows; 0 beyond the rank
  float* v[kPrefillTile];                 // rows of the block's plane; null as x
  int column[kMostRankTiles];             // of v

  // How many rank tiles; none: the block is done.
  __device__ int live() const { return all - first < group ? all - first : group; }

  __device__ void begin(const LoraTables& tables, const LoraTiles& tiles) {
    if (threadIdx.x == 0) {
      const int sharing = gridDim.y;
      tile = tile_at(tiles.tiles, blockIdx.z);
      all = RankTile::count(tables, tile.slot);
      const int fair = (all + sharing - 1) / sharing;
      group = fair < kMostRankTiles ? fair : kMostRankTiles;
      first = blockIdx.y * group;
    }
    __syncthreads();
  }

  // Reads nothing that a kernel writes.
  __device__ void look_up(const LoraTables& tables, const LoraTiles& tiles, const uint16_t* x_rows, int64_t x_stride, float* v_rows,
                          int rows) {
    const int thread = this_thread();
    if (thread < kPrefillTile) {
      const int64_t at = static_cast<int64_t>(blockIdx.x) * rows + tile.first + thread;
      x[thread] = reinterpret_cast<int64_t>(token_row(tiles, tile, thread, x_rows, x_stride));
      v[thread] = thread < tile.count ? v_rows + at * tables.slices * tables.max_rank : nullptr;
    }
    if (thread < kMostRankTiles * kRankTile) {
      const int m = thread / kRankTile, rank = thread % kRankTile;
      const RankTile found = m < group ? RankTile::of(tables, tile.slot, first + m) : RankTile{};
      a[thread] = rank < found.weights.rows ? reinterpret_cast<int64_t>(found.weights.a + static_cast<int64_t>(rank) * tables.in) : 0;
      if (rank == 0) column[m] = found.column;
    }
    __syncthreads();
  }

  __device__ void advance() {
    __syncthreads();  // all reads
    if (threadIdx.x == 0) first += static_cast<int>(gridDim.y) * group;
    __syncthreads();
  }
};
static_assert(kPrefillThreads >= kMostRankTiles * kRankTile && kPrefillThreads >= kPrefillTile, "one thread for each place");

}  // namespace lorikeet
