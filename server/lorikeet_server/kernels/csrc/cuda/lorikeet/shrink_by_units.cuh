// Shrink of many rows for few rank tiles: a warp for each unit, as for few rows. No two threads read the same bytes of shared memory:
// each brings what its own matrix instructions take, and waits for nobody until the units are added.
#pragma once

#include "device.cuh"
#include "shrink.cuh"
#include "shrink_places.cuh"
#include "tables.h"

namespace lorikeet {

static_assert(kPrefillThreads == 32 * kUnits, "one unit for each warp");

// One step of kTokens times 8 rows and kTiles rank tiles takes so much of each thread; as many at a time as there is room for.
template <int kTiles, int kTokens>
struct UnitStages {
  static constexpr int kQuads = kTokens + 2 * kTiles;
  static constexpr int kCount = kShrinkPrefillShared / (kQuads * kPrefillThreads * static_cast<int>(sizeof(Quad)));
};

// The units of some rows, before they are added: [unit][row][rank]. So wide a row keeps what a warp writes at once in different banks.
template <int kTiles, int kTokens>
struct UnitSums {
  static constexpr int kRow = kTiles * kRankTile + 4, kUnit = kTokens * 8 * kRow;  // values
  static_assert(kUnits * kUnit * static_cast<int>(sizeof(float)) <= kShrinkPrefillShared, "in place of the stages");
};

// v of the rows [first_row, + 8 kTokens) of a tile in one chunk, for kTiles rank tiles. All threads of the block.
template <class T, int kTiles, int kTokens>
__device__ __forceinline__ void shrink_by_units(const LoraTables& tables, int first_row, const ShrinkPlaces& places) {
  using Stages = UnitStages<kTiles, kTokens>;
  using Sums = UnitSums<kTiles, kTokens>;
  constexpr int kStages = Stages::kCount;
  static_assert(kStages >= 2, "or a thread waits for every step");
  const int thread = this_thread(), unit = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int steps = unit_steps(tables.in), first_column = (blockIdx.x * kUnits + unit) * steps * kStep + t * 8;
  Quad* const stages = reinterpret_cast<Quad*>(dynamic_shared()) + thread;
  const auto place = [&](int step, int quad) { return stages + (step % kStages * Stages::kQuads + quad) * kPrefillThreads; };
  const auto copy = [&](int step) {
    if (step >= steps) return commit_copies();
    const int column = first_column + step * kStep;
    const auto bring = [&](int quad, int64_t from) {
      copy_async(place(step, quad), reinterpret_cast<const void*>(from + 2 * column), from != 0 && column < tables.in);
    };
#pragma unroll
    for (int n = 0; n < kTokens; ++n) bring(n, places.x[first_row + n * 8 + g]);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) bring(kTokens + i, places.a[i * 8 + g]);
    commit_copies();
  };

  float sum[kTiles][kTokens][4] = {};
  __syncthreads();  // the reads of the sums before
#pragma unroll 1
  for (int step = 0; step < kStages; ++step) copy(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 1>();
    Quad token[kTokens];
#pragma unroll
    for (int n = 0; n < kTokens; ++n) token[n] = *place(step, n);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const WeightFragment w = {*place(step, kTokens + 2 * m), *place(step, kTokens + 2 * m + 1)};
#pragma unroll
      for (int n = 0; n < kTokens; ++n) multiply<T>(sum[m][n], w, token[n]);
    }
    copy(step + kStages);  // into what was just read
  }

  __syncthreads();  // all reads of the stages
  float* const sums = reinterpret_cast<float*>(dynamic_shared());
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[unit * Sums::kUnit + (n * 8 + 2 * t + i % 2) * Sums::kRow + m * kRankTile + g + i / 2 * 8] = sum[m][n][i];
      }
    }
  }
  __syncthreads();
  // Four ranks of a row for each thread.
  constexpr int kFours = kTiles * kRankTile / 4;
  for (int i = thread; i < kTokens * 8 * kFours; i += kPrefillThreads) {
    const int row = i / kFours, rank = i % kFours * 4;
    float* const to = places.v[first_row + row];
    if (to == nullptr) continue;
    const auto of_unit = [&](int which) { return *reinterpret_cast<const Quad*>(sums + which * Sums::kUnit + row * Sums::kRow + rank); };
    const Quad first = of_unit(0);
    float whole[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) whole[j] = as_float(first.word[j]);
#pragma unroll
    for (int which = 1; which < kUnits; ++which) {
      const Quad next = of_unit(which);
#pragma unroll
      for (int j = 0; j < 4; ++j) whole[j] += as_float(next.word[j]);
    }
    float* const ranks = to + places.column[rank / kRankTile] + rank % kRankTile;
#pragma unroll
    for (int j = 0; j < 4; ++j) ranks[j] = whole[j];
  }
}

}  // namespace lorikeet
