// The planes of v, one for each chunk of columns: added in order, in one place, so that a row has the same bits whoever adds.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

// Four ranks of v as the 16-bit operand of a matrix instruction.
template <class T>
__device__ __forceinline__ Pair to_operand(const float (&value)[4]) {
  Pair bits;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    bits.word[j] = T::from_float(value[2 * j]) | static_cast<uint32_t>(T::from_float(value[2 * j + 1])) << 16;
  }
  return bits;
}

// kCount times four ranks at `from`, `apart` values apart, the first `live` of them; `plane` values from plane to plane. Planes are
// read four at a time, all at once.
template <class T, int kCount>
__device__ __forceinline__ void add_planes(Pair (&whole)[kCount], const float* from, int apart, int live, int planes, int64_t plane) {
  constexpr int kAtOnce = 4;
  float value[kCount][4] = {};
  for (int first = 0; first < planes; first += kAtOnce) {
    Quad read[kAtOnce][kCount] = {};
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (first + p < planes && i < live) read[p][i] = load_written(from + (first + p) * plane + i * apart);
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
  for (int i = 0; i < kCount; ++i) whole[i] = to_operand<T>(value[i]);
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
    Pair sum[1];
    add_planes<T>(sum, v + at, 0, 1, planes, rows * width);
    *reinterpret_cast<Pair*>(whole + at) = sum[0];
  }
}

}  // namespace lorikeet
