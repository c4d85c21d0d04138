// Shrink of many rows for many rank tiles: a warp for 16 rows and half of the rank tiles. Warps read the same stages of x and A, so
// that each byte is brought once for 64 rows and 128 ranks; each unit is summed before the next.
#pragma once

#include "device.cuh"
#include "shrink.cuh"
#include "shrink_places.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kStageOfX = kPrefillTile * kStageColumns;  // values

// Stages for two times kTiles rank tiles: as many as there is room for.
template <int kTiles>
struct TileStages {
  static constexpr int kOfA = 2 * kTiles * kRankTile * kStageColumns;  // values
  static constexpr int kCount = kShrinkPrefillShared / 2 / (kStageOfX + kOfA);
};
static_assert(TileStages<kMostRankTiles / 2>::kCount >= 4, "or a block waits for every stage");

// v of the rows of a tile in one chunk, for at most 2 kTiles rank tiles: what is beyond is computed from zeros and not kept.
// All threads of the block.
template <class T, int kTiles>
__device__ __forceinline__ void shrink_by_tiles(const LoraTables& tables, const ShrinkPlaces& places) {
  const int live = places.live();
  constexpr int kTokenTiles = 2;  // of a warp, 8 rows each
  constexpr int kQuads = kStageColumns / 8, kRowsAtOnce = kPrefillThreads / kQuads, kCopies = kPrefillTile / kRowsAtOnce;
  static_assert(kRowsAtOnce == 2 * kRankTile, "all threads copy two rank tiles");
  constexpr int kStages = TileStages<kTiles>::kCount, kStageOfA = TileStages<kTiles>::kOfA;
  uint16_t* const x_stages = dynamic_shared();
  uint16_t* const a_stages = x_stages + kStages * kStageOfX;
  const int thread = this_thread(), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int my_row = warp % 4 * 8 * kTokenTiles, my_tile = warp / 4 * kTiles;
  const int unit_stages = unit_steps(tables.in) / kStageSteps, stages = unit_stages * kUnits;
  // What this thread copies of a stage: 8 columns of some rows of x, and of a row of every other rank tile.
  const int copied_row = thread / kQuads, copied_column = thread % kQuads * 8;
  const int first_column = blockIdx.x * stages * kStageColumns + copied_column;

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
      // One step of three rank tiles or more has enough to read ahead of the matrix instructions; for two there are not enough registers.
#pragma unroll 1
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

}  // namespace lorikeet
