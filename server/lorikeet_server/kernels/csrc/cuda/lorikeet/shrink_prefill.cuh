// Shrink for many rows: x and A through shared memory, ahead of the matrix instructions.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "shrink_by_tiles.cuh"
#include "shrink_by_units.cuh"
#include "shrink_places.cuh"
#include "tables.h"

namespace lorikeet {

// v of the rows of a tile in one chunk. All threads of the block.
template <class T>
__device__ __forceinline__ void shrink_places(const LoraTables& tables, const ShrinkPlaces& places) {
  constexpr int kAll = kPrefillTile / 8, kHalf = kAll / 2;
  const auto all_rows = [&](auto rank_tiles) { shrink_by_units<T, decltype(rank_tiles)::value, kAll>(tables, 0, places); };
  const auto halves = [&](auto rank_tiles) {
#pragma unroll 1
    for (int first = 0; first < places.tile.count; first += kHalf * 8) {
      shrink_by_units<T, decltype(rank_tiles)::value, kHalf>(tables, first, places);
    }
  };
  const auto fewest = [&](auto rank_tiles) { places.tile.count <= kHalf * 8 ? halves(rank_tiles) : all_rows(rank_tiles); };
  switch (places.live()) {
    case 1: return fewest(std::integral_constant<int, 1>());
    case 2: return fewest(std::integral_constant<int, 2>());
    // Sums of more rank tiles for all rows do not fit into registers.
    case 3: return halves(std::integral_constant<int, 3>());
    case 4: return halves(std::integral_constant<int, 4>());
    case 5:
    case 6: return shrink_by_tiles<T, 3>(tables, places);
    default: return shrink_by_tiles<T, kMostRankTiles / 2>(tables, places);
  }
}

// Grid (chunks, blocks that share the rank tiles of a tile of rows, tiles of 64 rows); kPrefillThreads. A block takes several rank
// tiles at a time, since each time it reads x again. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocks)
    shrink_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* x, int64_t x_stride, float* v, int rows) {
  __shared__ ShrinkPlaces places;
  release_next();
  if (static_cast<int>(blockIdx.z) >= tiles.total[0]) return wait_for_previous();
  places.begin(tables, tiles);
#pragma unroll 1
  for (; places.live() > 0; places.advance()) {
    places.look_up(tables, tiles, x, x_stride, v, rows);
    wait_for_previous();
    shrink_places<T>(tables, places);
  }
  wait_for_previous();  // blocks without a rank tile too
}

}  // namespace lorikeet
