// y = g (y + scale * v B^T) for every row, under its own adapter: the second half of the LoRA product, all slices in one
// launch; g is DoRA's scale, 1 without it. Or y = scale * v B^T, and zeros for rows without adapter.
//
// Output columns are the 16-row side of the matrix instruction, tokens its 8-column side, the rank is k. The unit of work is
// a strip: 64 columns of one slice for the rows of one tile. B of a strip comes through shared memory, 32 ranks at a time, some
// stages ahead. Which column is which row of an instruction is free, so a thread is given 8 neighbours of a row of y: it reads and
// writes them in one piece, once, and no two threads have to exchange a sum.
#pragma once

#include "device.cuh"
#include "lookup.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kStripColumns = 64;
constexpr int kStripRanks = 32;             // of a stage
constexpr int kStripTiles = kStripColumns / 16;  // matrix instructions side by side
constexpr int kStripStages = 4;
constexpr int kStripPlaces = kStripColumns / 8 * 9 * (kStripRanks / 8);  // of a stage, 16 bytes each

__host__ __device__ constexpr int strips(int out) { return (out + kStripColumns - 1) / kStripColumns; }

__host__ __device__ inline int strips(const LoraTables& tables) {
  int all = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice < tables.slices) all += strips(tables.column[slice + 1] - tables.column[slice]);
  }
  return all;
}

// Runs of up to `run` strips of one slice.
__host__ __device__ inline int runs_of_strips(const LoraTables& tables, int run) {
  int all = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice < tables.slices) all += (strips(tables.column[slice + 1] - tables.column[slice]) + run - 1) / run;
  }
  return all;
}

// Slices are cut into strips one after the other.
struct Strip {
  int slice, base;  // the slice, and where it begins in a row of y
  int first, out;   // the strip's first column within the slice, and the slice's width

  // The first strip of the run `index`.
  __device__ static Strip of(const LoraTables& tables, int index, int run) {
    Strip found = {};
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice) {
      const int base = tables.column[slice], out = slice < tables.slices ? tables.column[slice + 1] - base : 0;
      const int runs = (strips(out) + run - 1) / run;
      if (index >= 0 && index < runs) found = {slice, base, index * run * kStripColumns, out};
      index -= runs;
    }
    return found;
  }
};

// A strip for the rows of a tile.
struct ExpandItem {
  LoraTile tile;
  Strip strip;
  LoraEntry entry;

  // The first strip of run `index` for the tile at `tile`, for which there must be room among the tiles, but which need not be live:
  // below `*live`.
  __device__ static ExpandItem of(const LoraTables& tables, const LoraTiles& tiles, int tile, const int32_t* live, int index,
                                  int run = 1) {
    const LoraTile found = tile_at(tiles.tiles, tile);  // read beside their number, not after it
    if (tile >= *live) return {};
    const Strip strip = Strip::of(tables, index, run);
    return {found, strip, found.slot < 0 ? LoraEntry{} : entry_of(tables, found.slot, strip.slice)};
  }

  // Null beyond the tile's rows and the slice's columns. `g`: whose 8 columns.
  __device__ uint16_t* y_at(const LoraTiles& tiles, int place, int g, uint16_t* y, int64_t y_stride) const {
    return strip.first + 8 * g < strip.out ? row_at(tiles, place, g, y, y_stride) : nullptr;
  }

  // The same, null only beyond the tile's rows.
  __device__ uint16_t* row_at(const LoraTiles& tiles, int place, int g, uint16_t* y, int64_t y_stride) const {
    if (place >= tile.count) return nullptr;
    return y + tiles.permutation[tile.first + place] * y_stride + strip.base + strip.first + 8 * g;
  }

  // 0: nothing to add
  __device__ int rank() const { return entry.b != 0 ? entry.rank : 0; }
};

// Where ranks [8 quad, +8) of a column lie in a stage of kPlaces places of 16 bytes for each column, free of bank conflicts for the
// copies and for the reads of a half warp: column 8 g + j is row g of group j; a group is followed by a row of padding; and with four
// places to a row, every other two rows have their pairs exchanged.
template <int kPlaces>
__device__ __forceinline__ int strip_place(int column, int quad) {
  const int g = column / 8, j = column % 8, exchanged = kPlaces == 4 ? (g & 2) : 0;
  return (j * 9 + g) * kPlaces + (quad ^ exchanged);
}

template <int kThreads, int kPlaces>
__device__ __forceinline__ void copy_strip_of(Quad* stage, const ExpandItem& item, int chunk, int thread) {
  constexpr int kAtOnce = kThreads / kPlaces;  // columns
  const int first = thread / kPlaces, quad = thread % kPlaces, rank = item.entry.rank;
  const bool live = chunk + 8 * quad < rank;
  const int64_t from = item.entry.b + 2 * (static_cast<int64_t>(item.strip.first + first) * rank + chunk + 8 * quad);
  const int left = item.strip.out - item.strip.first;
#pragma unroll
  for (int i = 0; i < kStripColumns / kAtOnce; ++i) {
    if (i * kAtOnce + first >= left) continue;
    const auto* values = reinterpret_cast<const void*>(from + static_cast<int64_t>(2 * kAtOnce * i) * rank);
    copy_async(stage + strip_place<kPlaces>(i * kAtOnce + first, quad), values, live);
  }
}

// B of a strip at ranks [chunk, +kStripRanks) on its way to a stage, copied by kThreads threads. One group of copies, even if there is
// nothing to copy. Ranks are zero up to a multiple of 16; columns that do not exist are left as they were, since nobody looks
// at their sums.
template <int kThreads>
__device__ __forceinline__ void copy_strip(Quad* stage, const ExpandItem& item, int chunk, int thread) {
  const int left = item.rank() - chunk;
  if (left > 16) {
    copy_strip_of<kThreads, 4>(stage, item, chunk, thread);
  } else if (left > 0) {
    copy_strip_of<kThreads, 2>(stage, item, chunk, thread);
  }
  commit_copies();
}

// sum += B of 16 ranks of a stage, the `step`th, times v of kTokenTiles times 8 rows. Row g and g + 8 of instruction m are columns
// 8 g + 2 m and 8 g + 2 m + 1. This thread's four ranks are 4 t and on, of B as of v.
template <class T, int kPlaces, int kTokenTiles>
__device__ __forceinline__ void multiply_ranks(float (&sum)[kTokenTiles][kStripTiles][4], const Quad* stage, int step,
                                               const Pair (&token)[kTokenTiles], int g, int t) {
#pragma unroll
  for (int m = 0; m < kStripTiles; ++m) {
    Pair w[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      w[h] = reinterpret_cast<const Pair*>(stage + strip_place<kPlaces>(8 * g + 2 * m + h, 2 * step + t / 2))[t % 2];
    }
    const uint32_t a[4] = {w[0].word[0], w[1].word[0], w[0].word[1], w[1].word[1]};
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const uint32_t x[2] = {token[n].word[0], token[n].word[1]};
      T::mma(sum[n][m], a, x);
    }
  }
}

// All ranks of a stage, of which `left` are still to come; `token(step)` is v at 16 of them.
template <class T, int kTokenTiles, class Token>
__device__ __forceinline__ void multiply_strip(float (&sum)[kTokenTiles][kStripTiles][4], const Quad* stage, int left, Token token,
                                               int g, int t) {
  Pair x[kTokenTiles];
  if (left > 16) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      token(x, step);
      multiply_ranks<T, 4>(sum, stage, step, x, g, t);
    }
  } else if (left > 0) {
    token(x, 0);
    multiply_ranks<T, 2>(sum, stage, 0, x, g, t);
  }
}

// Eight columns of row 2 t + `row` of a token tile: y before becomes y after. kAlone: nothing was there before, and DoRA, which
// would have to scale what was, gives NaN.
template <class T, bool kAlone>
__device__ __forceinline__ Quad added(const Quad& before, const float (&sum)[kStripTiles][4], int row, const ExpandItem& item, int g) {
  const auto* dora = reinterpret_cast<const Quad*>(item.entry.g != 0 ? item.entry.g + 4 * (item.strip.first + 8 * g) : 0);
  Quad factor[2] = {};
  if (dora != nullptr) {
    factor[0] = kAlone ? kNans : load_cached(dora);
    factor[1] = kAlone ? kNans : load_cached(dora + 1);
  }
  Quad after;
#pragma unroll
  for (int m = 0; m < kStripTiles; ++m) {
    float low = T::to_float(static_cast<uint16_t>(before.word[m])) + item.entry.scale * sum[m][row];
    float high = T::to_float(static_cast<uint16_t>(before.word[m] >> 16)) + item.entry.scale * sum[m][2 + row];
    if (dora != nullptr) {
      low *= as_float(factor[m / 2].word[m % 2 * 2]);
      high *= as_float(factor[m / 2].word[m % 2 * 2 + 1]);
    }
    after.word[m] = T::pack(low, high);
  }
  return after;
}

}  // namespace lorikeet
