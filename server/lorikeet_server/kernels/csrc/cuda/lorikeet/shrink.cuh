// v = x A^T for every row, under its own adapter: the first half of the LoRA product, all slices of a fused module.
//
// Operands are swapped, as a decode has few rows and a low rank: the weights are the 16-row side of the matrix
// instruction, the tokens its 8-column side. Each thread reads 16 consecutive bytes of a weight row and the same columns of
// a token, which permutes k equally on both sides and leaves the product as it is: no shared memory, no transposition,
// and a rank of 8 moves no padding.
//
// A sum over k is defined once, whatever the batch: the columns are cut into chunks, a chunk into kUnits units of equal width.
// A unit is summed in steps of 32 columns, a chunk is the sum of its units in order, and expand adds the chunks in order (the
// planes of v). Their widths depend on the width of x alone. So a row has the same bits in both kernels.
#pragma once

#include "device.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kStep = 32;  // columns per load: 4 threads of a quad, 8 columns each
constexpr int kUnits = 8;

// Steps of a unit. Up to 8 chunks, of 1,024 columns as long as that is enough of them: what expand reads of v stays small, and a
// decode has enough blocks.
__host__ __device__ constexpr int unit_steps(int in) {
  return in > kUnits * kStep * 4 ? 4 * ((in + 8191) / 8192) : (in + kUnits * kStep - 1) / (kUnits * kStep);
}
__host__ __device__ constexpr int chunk_columns(int in) { return unit_steps(in) * kUnits * kStep; }
__host__ __device__ constexpr int planes_of(int in) { return (in + chunk_columns(in) - 1) / chunk_columns(in); }

constexpr int kShrinkThreads = 32 * kUnits;  // decode: one unit for each warp
constexpr int kShrinkBlocks = 2;             // of a multiprocessor: 64 KB in flight, and room for expand to begin
constexpr int kPrefillThreads = 128;
constexpr int kPrefillBlocks = 2;  // 96 KB in flight

__device__ __forceinline__ LoraEntry entry_of(const LoraTables& tables, int slot, int slice) {
  const auto* at = reinterpret_cast<const Quad*>(tables.entries + static_cast<int64_t>(slot) * tables.stride + slice);
  const Quad low = load_cached(at), high = load_cached(at + 1);
  const auto wide = [](uint32_t lower, uint32_t upper) { return static_cast<int64_t>(static_cast<uint64_t>(upper) << 32 | lower); };
  return {wide(low.word[0], low.word[1]), wide(low.word[2], low.word[3]), wide(high.word[0], high.word[1]),
          static_cast<int32_t>(high.word[2]), as_float(high.word[3])};
}

// Whether any adapter targets the module.
__device__ __forceinline__ bool targeted(const LoraTables& tables) {
  int32_t rank = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice < tables.slices) rank |= entry_of(tables, tables.slots, slice).rank;
  }
  return rank != 0;
}

__device__ __forceinline__ LoraTile tile_at(const LoraTile* tiles, int index) {
  const Quad q = load_cached(reinterpret_cast<const Quad*>(tiles + index));
  return {static_cast<int32_t>(q.word[0]), static_cast<int32_t>(q.word[1]), static_cast<int32_t>(q.word[2]),
          static_cast<int32_t>(q.word[3])};
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

// `end`: of the columns that exist.
__device__ __forceinline__ WeightFragment load_weights(const ShrinkWeights& weights, int in, int column, int end, int g) {
  WeightFragment f = {};
  if (column < end) {
    const uint16_t* at = weights.a + static_cast<int64_t>(g) * in + column;
    if (g < weights.rows) f.low = load_streaming(reinterpret_cast<const Quad*>(at));
    if (g + 8 < weights.rows) f.high = load_streaming(reinterpret_cast<const Quad*>(at + static_cast<int64_t>(8) * in));
  }
  return f;
}

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

__device__ __forceinline__ Quad load_token(const uint16_t* row, int column, int end) {
  if (row == nullptr || column >= end) return Quad{};
  return load_written(row + column);
}

// Row of x at a position of the tile, null beyond its end.
__device__ __forceinline__ const uint16_t* token_row(const LoraTiles& tiles, const LoraTile& tile, int index, const uint16_t* x,
                                                     int64_t x_stride) {
  return index < tile.count ? x + tiles.permutation[tile.first + index] * x_stride : nullptr;
}

// What a block of the decode kernel computes at a time.
struct ShrinkItem {
  LoraTile tile;
  ShrinkWeights weights;
  const uint16_t* row;  // this thread's token

  // `tile`: the item at `index`, or anything if `live` says that there is none.
  __device__ static ShrinkItem of(const LoraTables& tables, const LoraTiles& tiles, const LoraTile& tile, bool live, int slice, int g,
                                  const uint16_t* x, int64_t x_stride) {
    if (!live) return {};
    return {tile, ShrinkWeights::of(tables, tile.slot, slice, tile.rank), token_row(tiles, tile, g, x, x_stride)};
  }
};

// Grid (chunks, slices, blocks that share the items); kShrinkThreads. v: [chunks][rows][slices * max_rank], by position.
template <class T>
__global__ void __launch_bounds__(kShrinkThreads, kShrinkBlocks)
    shrink_decode(LoraTables tables, LoraTiles tiles, const uint16_t* x, int64_t x_stride, float* v, int rows) {
  constexpr int kLoads = 4;
  // Two, so that one barrier for each item is enough; rows of 9 values avoid most bank conflicts.
  __shared__ float partial[2][kUnits][kRankTile][kDecodeTile + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = unit_steps(tables.in), slice = blockIdx.y, total = tiles.total[1];
  const int first_column = (blockIdx.x * kUnits + warp) * steps * kStep + t * 8;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;

  WeightFragment w[kLoads];
  const auto load = [&](const ShrinkWeights& weights, int step) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int end = weights.a != nullptr && step + i < steps ? tables.in : 0;
      w[i] = load_weights(weights, tables.in, first_column + (step + i) * kStep, end, g);
    }
  };
  const bool live = targeted(tables);
  int index = blockIdx.z, parity = 0;
  // There are not more blocks than items could be: the first is read beside their number, not after it.
  ShrinkItem item = ShrinkItem::of(tables, tiles, tile_at(tiles.items, index), index < total, slice, g, x, x_stride);
  load(item.weights, 0);
  release_next();
  wait_for_previous();
  if (!live) return;
  for (; index < total; index += gridDim.z) {
    const bool more = index + static_cast<int>(gridDim.z) < total;
    const LoraTile after = more ? tile_at(tiles.items, index + gridDim.z) : LoraTile{};
    const ShrinkItem next = ShrinkItem::of(tables, tiles, after, more, slice, g, x, x_stride);
    if (item.weights.a == nullptr) {
      item = next;
      load(item.weights, 0);
      continue;
    }
    float sum[4] = {};
    for (int step = 0; step < steps; step += kLoads) {
      Quad token[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        token[i] = load_token(item.row, first_column + (step + i) * kStep, step + i < steps ? tables.in : 0);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (step + i < steps) multiply<T>(sum, w[i], token[i]);
      }
      // What comes next is on its way while this item is reduced.
      if (step + kLoads < steps) {
        load(item.weights, step + kLoads);
      } else {
        load(next.weights, 0);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[parity][warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
    __syncthreads();
    // One value for each thread: consecutive threads write consecutive ranks of a row of v.
    const int rank = threadIdx.x % kRankTile, place = threadIdx.x / kRankTile;
    if (place < item.tile.count) {
      float whole = partial[parity][0][rank][place];
#pragma unroll
      for (int unit = 1; unit < kUnits; ++unit) whole += partial[parity][unit][rank][place];
      const int64_t row = static_cast<int64_t>(blockIdx.x) * rows + item.tile.first + place;
      v[row * width + slice * tables.max_rank + item.tile.rank + rank] = whole;
    }
    parity ^= 1;
    item = next;
  }
}

// Columns that the prefill kernel brings to shared memory at a time, and how many such stages there is room for.
constexpr int kStageSteps = 2, kStageColumns = kStageSteps * kStep, kStages = 6;

constexpr int kStageRankTiles = 4;  // of all slices, that a block takes at a time
constexpr int kStageOfX = kPrefillTile * kStageColumns, kStageOfA = kStageRankTiles * kRankTile * kStageColumns;  // values
constexpr int kPrefillShared = kStages * (kStageOfX + kStageOfA) * 2;  // bytes

// Place of 8 columns of a row in a stage. Odd rows have their halves exchanged: the rows that a quarter of a warp reads together
// would otherwise lie in the same banks.
__device__ __forceinline__ int stage_place(int row, int column) {
  return row * kStageColumns + (column ^ (row & 1) * (kStageColumns / 2));
}

// Grid (chunks, blocks that share the ranks of a tile, tiles of 64 rows); kPrefillThreads: 16 rows for each warp. A block takes
// up to kStageRankTiles rank tiles at a time, so that a low rank reads x once. v as above.
template <class T>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocks) shrink_prefill(LoraTables tables, LoraTiles tiles, const uint16_t* x,
                                                                  int64_t x_stride, float* v, int rows) {
  constexpr int kMTiles = kStageRankTiles;
  constexpr int kNTiles = 2;  // 8-row tiles of a warp
  constexpr int kQuads = kStageColumns / 8, kRowsAtOnce = kPrefillThreads / kQuads, kCopies = kPrefillTile / kRowsAtOnce;
  static_assert(kRowsAtOnce == kRankTile, "a rank tile is one copy for each thread");
  uint16_t* const x_stages = dynamic_shared();
  uint16_t* const a_stages = x_stages + kStages * kStageOfX;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = unit_steps(tables.in), all_steps = steps * kUnits;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;
  release_next();
  wait_for_previous();
  if (static_cast<int>(blockIdx.z) >= tiles.total[0] || !targeted(tables)) return;
  const LoraTile tile = tile_at(tiles.tiles, blockIdx.z);
  // What this thread copies of a stage: 8 columns of some rows of x, and of a row of each rank tile.
  const int copied_row = threadIdx.x / kQuads, copied_column = threadIdx.x % kQuads * 8;
  const int first_column = blockIdx.x * all_steps * kStep + copied_column;
  const uint16_t* row[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) row[i] = token_row(tiles, tile, i * kRowsAtOnce + copied_row, x, x_stride);

  const int depth = kMTiles / tables.slices * kRankTile;  // rank rows of each slice at a time
  for (int first = blockIdx.y * depth; first < tile.rank; first += gridDim.y * depth) {
    ShrinkWeights weights[kMTiles];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      const int slice = m * kRankTile / depth, rank = first + m * kRankTile % depth;
      weights[m] = slice < tables.slices ? ShrinkWeights::of(tables, tile.slot, slice, rank) : ShrinkWeights{nullptr, 0};
    }
    const auto copy = [&](int stage) {
      const int column = first_column + stage * kStageColumns;
      uint16_t *const x_to = x_stages + stage % kStages * kStageOfX, *const a_to = a_stages + stage % kStages * kStageOfA;
      const bool there = stage * kStageSteps < all_steps && column < tables.in;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const bool live = there && row[i] != nullptr;
        copy_async(x_to + stage_place(i * kRowsAtOnce + copied_row, copied_column), live ? row[i] + column : x, live);
      }
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (weights[m].a == nullptr) continue;
        const bool live = there && copied_row < weights[m].rows;
        const uint16_t* from = weights[m].a + (live ? static_cast<int64_t>(copied_row) * tables.in + column : 0);
        copy_async(a_to + stage_place(m * kRankTile + copied_row, copied_column), from, live);
      }
      commit_copies();
    };
    float total[kMTiles][kNTiles][4] = {}, sum[kMTiles][kNTiles][4] = {};
    __syncthreads();  // the reads of the ranks before
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) copy(stage);
    int of_unit = 0;
    for (int stage = 0; stage * kStageSteps < all_steps; ++stage) {
      wait_for_copies<kStages - 2>();
      __syncthreads();  // all copies of this stage, and all reads of the one before
      copy(stage + kStages - 1);
      const uint16_t *const x_from = x_stages + stage % kStages * kStageOfX, *const a_from = a_stages + stage % kStages * kStageOfA;
#pragma unroll
      for (int i = 0; i < kStageSteps; ++i) {
        if (warp * 16 < tile.count) {
          const auto read = [&](const uint16_t* from, int at) {
            return *reinterpret_cast<const Quad*>(from + stage_place(at + g, i * kStep + t * 8));
          };
          Quad token[kNTiles];
#pragma unroll
          for (int n = 0; n < kNTiles; ++n) token[n] = read(x_from, warp * 16 + n * 8);
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
            if (weights[m].a == nullptr) continue;
            const WeightFragment w = {read(a_from, m * kRankTile), read(a_from, m * kRankTile + 8)};
#pragma unroll
            for (int n = 0; n < kNTiles; ++n) multiply<T>(sum[m][n], w, token[n]);
          }
        }
        if (++of_unit == steps) {
          of_unit = 0;
#pragma unroll
          for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
            for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                total[m][n][j] = stage * kStageSteps + i < steps ? sum[m][n][j] : total[m][n][j] + sum[m][n][j];
                sum[m][n][j] = 0.0f;
              }
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      if (weights[m].a == nullptr) continue;
      const int column = m * kRankTile / depth * tables.max_rank + first + m * kRankTile % depth;
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int index = warp * 16 + n * 8 + 2 * t + j % 2, rank = g + j / 2 * 8;
          if (index < tile.count) {
            const int64_t at = static_cast<int64_t>(blockIdx.x) * rows + tile.first + index;
            v[at * width + column + rank] = total[m][n][j];
          }
        }
      }
    }
  }
}

}  // namespace lorikeet
