// y += scale * v B^T for every row, under its own adapter: the second half of the LoRA product, all slices in one launch.
//
// Output columns are the 16-row side of the matrix instruction, tokens its 8-column side, the rank is k. A block takes
// 128 columns of one slice for the rows of one tile. Every element of y is read and written by one thread, once.
#pragma once

#include "device.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kColumnTile = 128;   // output columns of a block, 32 for each warp
constexpr int kRankChunk = 128;    // ranks of v in shared memory at a time

__host__ __device__ constexpr int column_tiles(int out) { return (out + kColumnTile - 1) / kColumnTile; }

// Which slice a block's columns are in: slices are cut into tiles one after the other.
struct ColumnTile {
  int slice, first, out;  // first column within the slice, and the slice's width

  __device__ static ColumnTile of(const LoraTables& tables, int index) {
    int slice = 0;
    for (; slice < tables.slices; ++slice) {
      const int out = tables.column[slice + 1] - tables.column[slice];
      if (index < column_tiles(out)) return {slice, index * kColumnTile, out};
      index -= column_tiles(out);
    }
    return {slice, 0, 0};
  }
};

// Grid (column tiles of all slices, tiles of kRows rows); kThreads. v: `planes` planes of [rows][slices * max_rank], by position.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads) expand(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows,
                                                   uint16_t* y, int64_t y_stride) {
  constexpr int kTokenTiles = kRows / 8;
  constexpr int kVStride = kRankChunk + 8;       // 16-bit; breaks the bank conflict of rows that are 256 bytes apart
  constexpr int kOutStride = kColumnTile + 4;    // fp32, likewise
  constexpr int kBytes = kRows * kOutStride * 4 > kRows * kVStride * 2 ? kRows * kOutStride * 4 : kRows * kVStride * 2;
  alignas(16) __shared__ unsigned char shared[kBytes];
  auto* v_chunk = reinterpret_cast<uint16_t*>(shared);
  auto* out_tile = reinterpret_cast<float*>(shared);

  const int tile = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (tile >= *tiles.total) return;
  const auto columns = ColumnTile::of(tables, blockIdx.x);
  if (columns.out == 0) return;  // the grid is sized without reading the slices' widths
  const int where = columns.slice * tables.slots + tiles.slot[tile];
  const auto* b = reinterpret_cast<const uint16_t*>(tables.b[where]);
  if (b == nullptr) return;
  const int rank = tables.rank[where], first = tiles.first[tile], count = tiles.count[tile];
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;

  // Columns 32 warp + 16 m + 8 h + g of the tile, at ranks k .. k + 3.
  const auto weight = [&](int m, int h, int k) {
    const int column = columns.first + warp * 32 + m * 16 + h * 8 + g;
    if (column >= columns.out || k >= rank) return Pair{};
    return load_streaming(reinterpret_cast<const Pair*>(b + static_cast<int64_t>(column) * rank + k));
  };
  Pair w[2][2];
  const auto load = [&](int k) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) w[m][h] = weight(m, h, k + t * 4);
    }
  };
  load(0);  // adapters do not change within a step: this need not wait for shrink
  wait_for_previous();

  float sum[2][kTokenTiles][4] = {};
  for (int chunk = 0; chunk < rank; chunk += kRankChunk) {
    if (chunk > 0) __syncthreads();
    for (int i = threadIdx.x; i < kRows * kRankChunk; i += kThreads) {
      const int index = i / kRankChunk, k = chunk + i % kRankChunk;
      float value = 0.0f;
      if (index < count && k < rank) {
        const float* at = v + (first + index) * width + columns.slice * tables.max_rank + k;
        value = at[0];
        for (int plane = 1; plane < planes; ++plane) value += at[plane * rows * width];
      }
      v_chunk[index * kVStride + i % kRankChunk] = T::from_float(value);
    }
    __syncthreads();
    for (int k = 0; k < kRankChunk && chunk + k < rank; k += 16) {
      const Pair now[2][2] = {{w[0][0], w[0][1]}, {w[1][0], w[1][1]}};
      load(chunk + k + 16);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        const auto token = *reinterpret_cast<const Pair*>(v_chunk + (n * 8 + g) * kVStride + k + t * 4);
        const uint32_t x[2] = {token.word[0], token.word[1]};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint32_t a[4] = {now[m][0].word[0], now[m][1].word[0], now[m][0].word[1], now[m][1].word[1]};
          T::mma(sum[m][n], a, x);
        }
      }
    }
  }
  release_next();

  __syncthreads();
  const float scale = tables.scale[where];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out_tile[(n * 8 + 2 * t + i % 2) * kOutStride + warp * 32 + m * 16 + i / 2 * 8 + g] = scale * sum[m][n][i];
      }
    }
  }
  __syncthreads();
  const auto* dora = reinterpret_cast<const float*>(tables.g[where]);
  constexpr int kVectors = kColumnTile / 8;
  for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
    const int index = i / kVectors, column = columns.first + i % kVectors * 8;
    if (index >= count || column >= columns.out) continue;
    uint16_t* at = y + tiles.permutation[first + index] * y_stride + tables.column[columns.slice] + column;
    Quad bits = *reinterpret_cast<Quad*>(at);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t word = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = i % kVectors * 8 + 2 * j + half;
        float value = T::to_float(static_cast<uint16_t>(bits.word[j] >> (16 * half))) + out_tile[index * kOutStride + c];
        if (dora != nullptr) value *= dora[columns.first + c];
        word |= static_cast<uint32_t>(T::from_float(value)) << (16 * half);
      }
      bits.word[j] = word;
    }
    *reinterpret_cast<Quad*>(at) = bits;
  }
}

}  // namespace lorikeet
