// v = x A^T for every row, under its own adapter: the first half of the LoRA product, all slices of a fused module.
//
// Operands are swapped, as a decode has few rows and a low rank: the weights are the 16-row side of the matrix
// instruction, the tokens its 8-column side. Each thread reads 16 consecutive bytes of a weight row and the same columns of
// a token, which permutes k equally on both sides and leaves the product as it is: no transposition,
// and a rank of 8 moves no padding.
//
// A sum over k is defined once, whatever the batch: the columns are cut into chunks, a chunk into kUnits units of equal width.
// A unit is summed in steps of 32 columns, a chunk is the sum of its units in order, and expand adds the chunks in order (the
// planes of v). Their widths depend on the width of x alone. So a row has the same bits in both kernels.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kStep = 32;  // columns per load: 4 threads of a quad, 8 columns each
constexpr int kUnits = 8;

// Steps of a unit. Up to 8 chunks, of 1,024 columns as long as that is enough of them: what expand reads of v stays small, and a
// decode has enough blocks.
__host__ __device__ constexpr int unit_steps(int in) { return 4 * ((in + 8191) / 8192); }
__host__ __device__ constexpr int chunk_columns(int in) { return unit_steps(in) * kUnits * kStep; }
__host__ __device__ constexpr int planes_of(int in) { return (in + chunk_columns(in) - 1) / chunk_columns(in); }

// Columns that are brought to shared memory at a time.
constexpr int kStageSteps = 2, kStageColumns = kStageSteps * kStep;

// Place of 8 columns of a row in a stage. Odd rows have their halves exchanged: the rows that a quarter of a warp reads together
// would otherwise lie in the same banks.
__device__ __forceinline__ int stage_place(int row, int column) {
  return row * kStageColumns + (column ^ (row & 1) * (kStageColumns / 2));
}

// The rank rows [first, +16) of A of one slice, for one adapter.
struct ShrinkWeights {
  const uint16_t* a;  // null: nothing to do
  int rows;           // live rows from `a`, at most 16

  __device__ static ShrinkWeights of(const LoraTables& tables, int slot, int slice, int first) {
    const LoraEntry entry = entry_of(tables, slot, slice);
    if (entry.a == 0 || first >= entry.rank) return {nullptr, 0};
    const int left = entry.rank - first;
    return {reinterpret_cast<const uint16_t*>(entry.a) + static_cast<int64_t>(first) * tables.in, left < kRankTile ? left : kRankTile};
  }
};

// Rows g and g + 8 of the weights at this thread's columns of a step, zero where there are none.
struct WeightFragment {
  Quad low, high;
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

// Row of x at a position of the tile, null beyond its end.
__device__ __forceinline__ const uint16_t* token_row(const LoraTiles& tiles, const LoraTile& tile, int index, const uint16_t* x,
                                                     int64_t x_stride) {
  return index < tile.count ? x + tiles.permutation[tile.first + index] * x_stride : nullptr;
}

}  // namespace lorikeet
