// Shrink for many rows: x and A through shared memory, some stages ahead of the matrix instructions.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "lookup.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kPrefillThreads = 256;  // four times 16 rows, for each half of the rank tiles
constexpr int kPrefillBlocks = 2;     // of a multiprocessor

constexpr int kMostRankTiles = 8;  // of all slices, that a block takes at a time
constexpr int kShrinkPrefillShared = 96 << 10;  // bytes
constexpr int kStageOfX = kPrefillTile * kStageColumns;  // values

// Stages for two times kTiles rank tiles: as many as there is room for, so that much is on its way where a block does little with it.
template <int kTiles>
struct PrefillStages {
  static constexpr int kOfA = 2 * kTiles * kRankTile * kStageColumns;  // values
  static constexpr int kCount = kShrinkPrefillShared / 2 / (kStageOfX + kOfA);
};
static_assert(PrefillStages<kMostRankTiles / 2>::kCount >= 4, "or a block waits for every stage");

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

// Where a block finds what it computes: looked up once by one thread each, and read where it is needed.
struct ShrinkPlaces {
  int64_t x[kPrefillTile];                // addresses of rows; 0 beyond those of the tile
  int64_t a[kMostRankTiles * kRankTile];  // addresses of rank rows; 0 beyond the rank
  float* v[kPrefillTile];                 // rows of the block's plane; null as x
  int column[kMostRankTiles];             // of v
};

// v of the rows of a tile in one chunk, for the rank tiles [first, first + live) of its adapter, live <= 2 kTiles: what is beyond is
// computed from anything and not kept. All threads of the block.
template <class T, int kTiles>
__device__ __forceinline__ void shrink_rank_tiles(const LoraTables& tables, const LoraTiles& tiles, int first, int live,
                                                  const uint16_t* x, int64_t x_stride, float* v, int rows, ShrinkPlaces& places) {
  constexpr int kTokenTiles = 2;  // of a warp, 8 rows each
  constexpr int kQuads = kStageColumns / 8, kRowsAtOnce = kPrefillThreads / kQuads, kCopies = kPrefillTile / kRowsAtOnce;
  static_assert(kRowsAtOnce == 2 * kRankTile, "all threads copy two rank tiles");
  constexpr int kStages = PrefillStages<kTiles>::kCount, kStageOfA = PrefillStages<kTiles>::kOfA;
  uint16_t* const x_stages = dynamic_shared();
  uint16_t* const a_stages = x_stages + kStages * kStageOfX;
  const int thread = this_thread(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int my_row = warp % 4 * 8 * kTokenTiles, my_tile = warp / 4 * kTiles;
  // Of few rank tiles half the warps may have none. Of many they have some, and no register to ask with.
  const bool any = kTiles > 2 || my_tile < live;
  const int unit_stages = unit_steps(tables.in) / kStageSteps, stages = unit_stages * kUnits;
  // What this thread copies of a stage: 8 columns of some rows of x, and of a row of every other rank tile.
  const int copied_row = thread / kQuads, copied_column = thread % kQuads * 8;
  const int first_column = blockIdx.x * stages * kStageColumns + copied_column;
  const LoraTile tile = tile_at(tiles.tiles, blockIdx.z);
  __syncthreads();  // the reads of the rank tiles before
  if (thread < kPrefillTile) {
    const int place = thread;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * rows + tile.first + place;
    places.x[place] = reinterpret_cast<int64_t>(token_row(tiles, tile, place, x, x_stride));
    places.v[place] = place < tile.count ? v + at * tables.slices * tables.max_rank : nullptr;
  }
  if (thread < 2 * kTiles * kRankTile) {
    const int m = thread / kRankTile, rank = thread % kRankTile;
    const RankTile found = RankTile::of(tables, tile.slot, first + m);
    const bool there = m < live && rank < found.weights.rows;
    places.a[thread] = there ? reinterpret_cast<int64_t>(found.weights.a + static_cast<int64_t>(rank) * tables.in) : 0;
    if (rank == 0) places.column[m] = found.column;
  }
  __syncthreads();

  int64_t row[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) row[i] = places.x[i * kRowsAtOnce + copied_row];
  const auto copy = [&](int stage) {
    if (stage >= stages) return commit_copies();
    const int column = first_column + stage * kStageColumns;
    uint16_t *const x_to = x_stages + stage % kStages * kStageOfX, *const a_to = a_stages + stage % kStages * kStageOfA;
    const auto bring = [&](uint16_t* to, int at, int64_t from) {
      const auto* values = reinterpret_cast<const void*>(from + 2 * column);
      copy_async(to + stage_place(at * kRowsAtOnce + copied_row, copied_column), values, from != 0 && column < tables.in);
    };
#pragma unroll
    for (int i = 0; i < kCopies; ++i) bring(x_to, i, row[i]);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) bring(a_to, i, places.a[i * kRowsAtOnce + copied_row]);
    commit_copies();
  };

  float total[kTiles][kTokenTiles][4];
  const auto each = [&](auto what) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) what(m, n, j);
      }
    }
  };
  each([&](int m, int n, int j) { total[m][n][j] = -0.0f; });  // adding to it changes no bit
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) copy(stage);
#pragma unroll 1
  for (int unit = 0; unit < kUnits; ++unit) {
    float sum[kTiles][kTokenTiles][4] = {};
#pragma unroll 1
    for (int stage = unit * unit_stages; stage < (unit + 1) * unit_stages; ++stage) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // all copies of this stage, and all reads of the one before
      copy(stage + kStages - 1);
      const uint16_t *const x_from = x_stages + stage % kStages * kStageOfX, *const a_from = a_stages + stage % kStages * kStageOfA;
      if (!any) continue;
      // Without a branch between them, so that reads run ahead of the matrix instructions; but one step of three rank tiles
      // or more has enough of both, and for two of them there are not enough registers.
#pragma unroll kTiles < 3 ? kStageSteps : 1
      for (int i = 0; i < kStageSteps; ++i) {
        const auto read = [&](const uint16_t* from, int at) {
          return *reinterpret_cast<const Quad*>(from + stage_place(at + g, i * kStep + t * 8));
        };
        Quad token[kTokenTiles];
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) token[n] = read(x_from, my_row + n * 8);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const int at = (my_tile + m) * kRankTile;
          const WeightFragment w = {read(a_from, at), read(a_from, at + 8)};
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) multiply<T>(sum[m][n], w, token[n]);
        }
      }
    }
    each([&](int m, int n, int j) { total[m][n][j] += sum[m][n][j]; });
  }

#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* const to = places.v[my_row + n * 8 + 2 * t + i];
      if (to == nullptr) continue;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (my_tile + m >= live) continue;
        float* const ranks = to + places.column[my_tile + m];
        ranks[g] = total[m][n][i];
        ranks[g + 8] = total[m][n][2 + i];
      }
    }
  }
}

// Grid (chunks, blocks that share the rank tiles of a tile of rows, tiles of 64 rows); kPrefillThreads. A block takes several rank
// tiles at a time, since each time it reads x again. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocks)
    shrink_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* x, int64_t x_stride, float* v, int rows) {
  __shared__ ShrinkPlaces places;
  release_next();
  wait_for_previous();
  if (static_cast<int>(blockIdx.z) >= tiles.total[0]) return;
  const int all = RankTile::count(tables, tile_at(tiles.tiles, blockIdx.z).slot), sharing = gridDim.y;
  const int fair = (all + sharing - 1) / sharing, group = fair < kMostRankTiles ? fair : kMostRankTiles;
  for (int first = blockIdx.y * group; first < all; first += sharing * group) {
    const int live = all - first < group ? all - first : group;
    const auto shrink = [&](auto most) {
      shrink_rank_tiles<T, decltype(most)::value>(tables, tiles, first, live, x, x_stride, v, rows, places);
    };
    switch ((live + 1) / 2) {
      case 1: shrink(std::integral_constant<int, 1>()); break;
      case 2: shrink(std::integral_constant<int, 2>()); break;
      case 3: shrink(std::integral_constant<int, 3>()); break;
      default: shrink(std::integral_constant<int, kMostRankTiles / 2>());
    }
  }
}

}  // namespace lorikeet
