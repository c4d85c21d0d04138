// v = x A^T for every row, under its own adapter: the first half of the LoRA product, all slices of a fused module.
//
// Operands are swapped, as a decode has few rows and a low rank: the weights are the 16-row side of the matrix
// instruction, the tokens its 8-column side. Each thread reads 16 consecutive bytes of a weight row and the same columns of
// a token, which permutes k equally on both sides and leaves the product as it is: no shared memory, no transposition,
// and a rank of 8 moves no padding.
//
// A sum over k is defined once, whatever the batch: chunks of kChunk columns; in a chunk, steps of 32 columns are dealt to four
// partial sums in turn; the partial sums are added in order, then the chunks in order. The decode kernel gives a partial sum
// to each warp and a chunk to each block (planes of v, added by expand); the prefill kernel walks them all. So a row has the same
// bits in both.
#pragma once

#include "device.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kStep = 32;                       // columns per load: 4 threads of a quad, 8 columns each
constexpr int kPartials = 4;                    // partial sums in a chunk
constexpr int kChunkSteps = 16;
constexpr int kChunk = kStep * kChunkSteps;     // 512
constexpr int kThreads = 32 * kPartials;
constexpr int kDecodeTile = 8;                  // rows of a tile
constexpr int kPrefillTile = 64;

__host__ __device__ constexpr int chunks_of(int in) { return (in + kChunk - 1) / kChunk; }

// The rank rows [rank_tile, +16) of one slice, for one adapter.
struct ShrinkWeights {
  const uint16_t* a;  // null: nothing to do
  int rows;           // live rows from `a`, at most 16
  int row_of_v;       // where they go in a row of v

  __device__ static ShrinkWeights of(const LoraTables& tables, int slot, int rank_tile_of_all) {
    const int tiles_per_slice = tables.max_rank / kRankTile;
    const int slice = rank_tile_of_all / tiles_per_slice;
    const int first = rank_tile_of_all % tiles_per_slice * kRankTile;
    const int where = slice * tables.slots + slot;
    const int rank = tables.rank[where];
    const auto* a = reinterpret_cast<const uint16_t*>(tables.a[where]);
    if (a == nullptr || first >= rank) return {nullptr, 0, 0};
    const int left = rank - first;
    return {a + static_cast<int64_t>(first) * tables.in, left < kRankTile ? left : kRankTile,
            slice * tables.max_rank + first};
  }
};

// Rows g and g + 8 of the weights at this thread's columns of a step, zero where there are none.
struct WeightFragment {
  Quad low, high;

  __device__ static WeightFragment load(const ShrinkWeights& weights, int in, int column, int g) {
    WeightFragment f = {};
    if (column < in) {
      const uint16_t* at = weights.a + static_cast<int64_t>(g) * in + column;
      if (g < weights.rows) f.low = load_streaming(reinterpret_cast<const Quad*>(at));
      if (g + 8 < weights.rows) f.high = load_streaming(reinterpret_cast<const Quad*>(at + static_cast<int64_t>(8) * in));
    }
    return f;
  }
};

// sum += the product over one step of 32 columns, two instructions of 16.
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], const WeightFragment& w, const Quad& x) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t a[4] = {w.low.word[2 * half], w.high.word[2 * half], w.low.word[2 * half + 1], w.high.word[2 * half + 1]};
    const uint32_t b[2] = {x.word[2 * half], x.word[2 * half + 1]};
    T::mma(sum, a, b);
  }
}

__device__ __forceinline__ Quad load_token(const uint16_t* row, int in, int column) {
  if (row == nullptr || column >= in) return Quad{};
  return *reinterpret_cast<const Quad*>(row + column);
}

// Row of x at a position of the tile, null beyond its end.
__device__ __forceinline__ const uint16_t* token_row(const LoraTiles& tiles, int tile, int index, const uint16_t* x,
                                                     int64_t x_stride) {
  if (index >= tiles.count[tile]) return nullptr;
  return x + tiles.permutation[tiles.first[tile] + index] * x_stride;
}

// Grid (chunks, slices * max_rank / 16, tiles of 8 rows); kThreads. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kThreads) shrink_decode(LoraTables tables, LoraTiles tiles, const uint16_t* x,
                                                          int64_t x_stride, float* v, int rows) {
  __shared__ float partial[kPartials][kRankTile][kDecodeTile];
  const int tile = blockIdx.z, chunk = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (tile >= *tiles.total) return;
  const auto weights = ShrinkWeights::of(tables, tiles.slot[tile], blockIdx.y);
  if (weights.a == nullptr) return;

  constexpr int kLoads = kChunkSteps / kPartials;
  const int first_column = chunk * kChunk + warp * kStep + t * 8;
  WeightFragment w[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    w[i] = WeightFragment::load(weights, tables.in, first_column + i * kPartials * kStep, g);
  }
  wait_for_previous();
  const uint16_t* row = token_row(tiles, tile, g, x, x_stride);
  Quad token[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) token[i] = load_token(row, tables.in, first_column + i * kPartials * kStep);
  float sum[4] = {};
#pragma unroll
  for (int i = 0; i < kLoads; ++i) multiply<T>(sum, w[i], token[i]);
  release_next();

#pragma unroll
  for (int i = 0; i < 4; ++i) partial[warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
  __syncthreads();
  // One value for each thread: consecutive threads write consecutive ranks of a row of v.
  const int rank = threadIdx.x % kRankTile, index = threadIdx.x / kRankTile;
  if (index < tiles.count[tile]) {
    float total = partial[0][rank][index];
#pragma unroll
    for (int p = 1; p < kPartials; ++p) total += partial[p][rank][index];
    const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
    v[(static_cast<int64_t>(chunk) * rows + tiles.first[tile] + index) * width + weights.row_of_v + rank] = total;
  }
}

// Grid (slices * max_rank / 16, tiles of 64 rows); kThreads: 16 rows for each warp. v: one plane [rows][slices * max_rank].
template <class T>
__global__ void __launch_bounds__(kThreads) shrink_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* x,
                                                           int64_t x_stride, float* v) {
  constexpr int kColumns = 2;  // 8-row tiles of a warp
  const int tile = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (tile >= *tiles.total) return;
  const auto weights = ShrinkWeights::of(tables, tiles.slot[tile], blockIdx.x);
  if (weights.a == nullptr) return;
  wait_for_previous();
  const uint16_t* row[kColumns];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) row[n] = token_row(tiles, tile, warp * 16 + n * 8 + g, x, x_stride);

  float total[kColumns][4] = {};
  for (int chunk = 0; chunk < chunks_of(tables.in); ++chunk) {
    float sum[kPartials][kColumns][4] = {};
#pragma unroll 2
    for (int deal = 0; deal < kChunkSteps / kPartials; ++deal) {
#pragma unroll
      for (int p = 0; p < kPartials; ++p) {
        const int column = chunk * kChunk + (deal * kPartials + p) * kStep + t * 8;
        const auto w = WeightFragment::load(weights, tables.in, column, g);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) multiply<T>(sum[p][n], w, load_token(row[n], tables.in, column));
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float whole = sum[0][n][i];
#pragma unroll
        for (int p = 1; p < kPartials; ++p) whole += sum[p][n][i];
        total[n][i] = chunk == 0 ? whole : total[n][i] + whole;
      }
    }
  }
  release_next();

  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int index = warp * 16 + n * 8 + 2 * t + i % 2, rank = g + i / 2 * 8;
      if (index < tiles.count[tile]) v[(tiles.first[tile] + index) * width + weights.row_of_v + rank] = total[n][i];
    }
  }
}

}  // namespace lorikeet
