// The planes of v, one for each chunk of columns: added in order, in one place, so that a row has the same bits whoever adds.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

// The 16-bit operand of kCount matrix instructions: four ranks for each at `from`, 16 ranks apart; zeros if not `live`. `plane` values
// from plane to plane. Planes are read four at a time, all at once.
template <class T, int kCount>
__device__ __forceinline__ void add_planes(Pair* whole, const float* from, bool live, int planes, int64_t plane) {
  constexpr int kAtOnce = 4;
  float value[kCount][4] = {};
  for (int first = 0; first < planes; first += kAtOnce) {
    Quad read[kAtOnce][kCount] = {};
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (first + p < planes && live) read[p][i] = load_written(from + (first + p) * plane + i * kRankTile);
      }
    }
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) value[i][j] += as_float(read[p][i].word[j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) whole[i] = {T::pack(value[i][0], value[i][1]), T::pack(value[i][2], value[i][3])};
}

constexpr int kAddThreads = 128;
constexpr int kAddParts = 4;  // blocks that share a tile of rows

// Grid (tiles of 64 rows, slices, kAddParts); kAddThreads. For many rows: `whole` [rows][slices * max_rank], 16-bit, from the planes
// of v, which every block of expand would have to add again.
template <class T>
__global__ void __launch_bounds__(kAddThreads)
    add_planes_of_tiles(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows, uint16_t* whole) {
  release_next();
  wait_for_previous();
  if (static_cast<int>(blockIdx.x) >= tiles.total[0]) return;
  const LoraTile tile = tile_at(tiles.tiles, blockIdx.x);
  const LoraEntry entry = entry_of(tables, tile.slot, blockIdx.y);
  if (entry.a == 0) return;
  const int quads = (entry.rank + kRankTile - 1) / kRankTile * (kRankTile / 4);  // of a row, four ranks each
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  for (int i = blockIdx.z * kAddThreads + threadIdx.x; i < tile.count * quads; i += kAddParts * kAddThreads) {
    const int64_t at = (tile.first + i / quads) * width + static_cast<int>(blockIdx.y) * tables.max_rank + i % quads * 4;
    Pair sum;
    add_planes<T, 1>(&sum, v + at, true, planes, rows * width);
    *reinterpret_cast<Pair*>(whole + at) = sum;
  }
}

}  // namespace lorikeet
