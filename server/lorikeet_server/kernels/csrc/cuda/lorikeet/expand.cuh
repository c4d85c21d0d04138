// y = g (y + scale * v B^T) for every row, under its own adapter: the second half of the LoRA product, all slices in one
// launch; g is DoRA's scale, 1 without it.
//
// Output columns are the 16-row side of the matrix instruction, tokens its 8-column side, the rank is k. A block takes
// some columns of one slice for the rows of one tile at a time, and a run of such column tiles one after the other. Every
// element of y is read and written by one thread, once.
#pragma once

#include "device.cuh"
#include "shrink.cuh"
#include "tables.h"

namespace lorikeet {

constexpr int kExpandThreads = 128;

// What differs between few and many rows: output columns at a time, ranks of v in shared memory at a time, instructions of B on
// their way, blocks of a multiprocessor, and column tiles of a run. A decode is bound by the bytes of B in flight: 8 KB for each block at rank 16.
template <int kRows>
struct ExpandShape;
template <>
struct ExpandShape<kDecodeTile> {
  static constexpr int kColumns = 256, kRankChunk = 128, kAhead = 1, kBlocks = 5, kLongestRun = 1;
};
template <>
struct ExpandShape<kPrefillTile> {
  static constexpr int kColumns = 64, kRankChunk = 64, kAhead = 2, kBlocks = 4, kLongestRun = 4;
};

template <int kRows>
__host__ __device__ constexpr int column_tiles(int out) {
  return (out + ExpandShape<kRows>::kColumns - 1) / ExpandShape<kRows>::kColumns;
}

template <int kRows>
__host__ __device__ inline int column_tiles(const LoraTables& tables) {
  int all = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice < tables.slices) all += column_tiles<kRows>(tables.column[slice + 1] - tables.column[slice]);
  }
  return all;
}

// Which slice a column tile is in: slices are cut into tiles one after the other.
struct ColumnTile {
  int slice, base;  // the slice, and where it begins in a row of y
  int first, out;   // the tile's first column within the slice, and the slice's width

  template <int kRows>
  __device__ static ColumnTile of(const LoraTables& tables, int index) {
    ColumnTile found = {};
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice) {
      const int base = tables.column[slice], out = slice < tables.slices ? tables.column[slice + 1] - base : 0;
      if (index >= 0 && index < column_tiles<kRows>(out)) found = {slice, base, index * ExpandShape<kRows>::kColumns, out};
      index -= column_tiles<kRows>(out);
    }
    return found;
  }
};

// What a block computes at a time.
struct ExpandItem {
  LoraTile tile;
  ColumnTile columns;
  LoraEntry entry;  // b 0: nothing to do

  // `index` counts column tiles, those of one tile of rows after those of another.
  // There must be room for so many tiles, but need not be such a tile.
  template <int kRows>
  __device__ static ExpandItem of(const LoraTables& tables, const LoraTiles& tiles, int index, int all_columns) {
    const int at = index / all_columns;
    const LoraTile tile = tile_at(tiles.tiles, at);  // read beside their number, not after it
    if (at >= tiles.total[0]) return {};
    const ColumnTile columns = ColumnTile::of<kRows>(tables, index - at * all_columns);
    return {tile, columns, entry_of(tables, tile.slot, columns.slice)};
  }
};

// Grid (blocks that share the runs); kExpandThreads. A run is `run` column tiles for one tile of kRows rows. v: `planes` planes of
// [rows][slices * max_rank], by position.
template <class T, int kRows>
__global__ void __launch_bounds__(kExpandThreads, ExpandShape<kRows>::kBlocks)
    expand(LoraTables tables, LoraTiles tiles, const float* v, int planes, int rows, int run, uint16_t* y, int64_t y_stride) {
  using Shape = ExpandShape<kRows>;
  constexpr int kColumns = Shape::kColumns, kRankChunk = Shape::kRankChunk, kAhead = Shape::kAhead;
  constexpr int kTokenTiles = kRows / 8, kMTiles = kColumns / 64;  // of a warp, 8 rows and 16 columns each
  // Strides that spread the 8 rows which a warp reads together over all banks.
  constexpr int kVStride = kRankChunk + 16;    // 16-bit
  constexpr int kOutStride = kColumns + 4;  // fp32
  constexpr int kVectors = kColumns / 8, kMine = kRows * kVectors / kExpandThreads;
  alignas(16) __shared__ uint16_t v_chunk[kRows * kVStride];
  alignas(16) __shared__ float out_tile[kRows * kOutStride];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int all_columns = column_tiles<kRows>(tables), runs = (all_columns + run - 1) / run;
  const int64_t width = static_cast<int64_t>(tables.slices) * tables.max_rank;

  // Columns 16 (kMTiles warp + m) + 8 h + g of the tile, at four ranks of this thread.
  Pair w[kAhead][kMTiles][2];
  const auto load = [&](const ExpandItem& item, int ahead, int k) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = item.columns.first + (warp * kMTiles + m) * 16 + h * 8 + g, rank = k + t * 4;
        w[ahead][m][h] = Pair{};
        if (item.entry.b != 0 && column < item.columns.out && rank < item.entry.rank) {
          const auto* b = reinterpret_cast<const uint16_t*>(item.entry.b) + static_cast<int64_t>(column) * item.entry.rank + rank;
          w[ahead][m][h] = load_streaming(reinterpret_cast<const Pair*>(b));
        }
      }
    }
  };
  const auto load_first = [&](const ExpandItem& item) {
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) load(item, ahead, ahead * 16);
  };
  const auto y_at = [&](const ExpandItem& item, int i) -> uint16_t* {
    const int place = i / kVectors, column = item.columns.first + i % kVectors * 8;
    if (place >= item.tile.count || column >= item.columns.out) return nullptr;
    return y + tiles.permutation[item.tile.first + place] * y_stride + item.columns.base + column;
  };

  // Where this block is: run after run, and within a run column tile after column tile.
  int at = blockIdx.x, within = 0;
  const auto item_at = [&](int r, int c) {
    const int column = r % runs * run + c;
    return column < all_columns ? ExpandItem::of<kRows>(tables, tiles, r / runs * all_columns + column, all_columns) : ExpandItem{};
  };
  const bool live = targeted(tables);
  const int end = tiles.total[0] * runs;
  ExpandItem item = item_at(at, 0);  // there are not more blocks than runs could be
  load_first(item);  // adapters do not change within a step: this need not wait for shrink
  release_next();
  wait_for_previous();
  if (!live) return;

  int staged_tile = -1, staged_slice = -1;  // whose v is in shared memory, all of it
  while (at < end) {
    if (++within == run) {
      within = 0;
      at += gridDim.x;
    }
    const ExpandItem next = at < end ? item_at(at, within) : ExpandItem{};
    if (item.entry.b == 0) {
      item = next;
      load_first(item);
      continue;
    }
    Quad before[kMine];  // y, on its way while the product is computed
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const uint16_t* from = y_at(item, threadIdx.x + i * kExpandThreads);
      before[i] = from != nullptr ? load_written(from) : Quad{};
    }

    const int rank = item.entry.rank;
    float sum[kMTiles][kTokenTiles][4] = {};
    for (int chunk = 0; chunk < rank; chunk += kRankChunk) {
      if (staged_tile != item.tile.first || staged_slice != item.columns.slice || rank > kRankChunk) {
        const int live = rank - chunk < kRankChunk ? rank - chunk : kRankChunk;
        const int quads = (live + kRankTile - 1) / kRankTile * (kRankTile / 4);  // of v, 4 ranks each
        __syncthreads();
        for (int i = threadIdx.x; i < kRows * quads; i += kExpandThreads) {
          const int place = i / quads, k = i % quads * 4;
          float value[4] = {};
          if (place < item.tile.count) {
            const float* from = v + (item.tile.first + place) * width + item.columns.slice * tables.max_rank + chunk + k;
            const int64_t plane = static_cast<int64_t>(rows) * width;
            const Quad first = load_written(from);
#pragma unroll
            for (int j = 0; j < 4; ++j) value[j] = as_float(first.word[j]);
#pragma unroll 4
            for (int p = 1; p < planes; ++p) {
              const Quad more = load_written(from + p * plane);
#pragma unroll
              for (int j = 0; j < 4; ++j) value[j] += as_float(more.word[j]);
            }
          }
          Pair bits;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            bits.word[j] = T::from_float(value[2 * j]) | static_cast<uint32_t>(T::from_float(value[2 * j + 1])) << 16;
          }
          *reinterpret_cast<Pair*>(v_chunk + place * kVStride + k) = bits;
        }
        __syncthreads();
        staged_tile = rank > kRankChunk ? -1 : item.tile.first;
        staged_slice = item.columns.slice;
      }
      for (int k0 = 0; k0 < kRankChunk && chunk + k0 < rank; k0 += 16 * kAhead) {
#pragma unroll
        for (int ahead = 0; ahead < kAhead; ++ahead) {
          const int k = k0 + 16 * ahead;
          if (chunk + k < rank) {
            Pair now[kMTiles][2];
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
              now[m][0] = w[ahead][m][0];
              now[m][1] = w[ahead][m][1];
            }
            load(item, ahead, chunk + k + 16 * kAhead);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n) {
              if (n * 8 < item.tile.count) {
                const auto token = *reinterpret_cast<const Pair*>(v_chunk + (n * 8 + g) * kVStride + k + t * 4);
                const uint32_t x[2] = {token.word[0], token.word[1]};
#pragma unroll
                for (int m = 0; m < kMTiles; ++m) {
                  const uint32_t a[4] = {now[m][0].word[0], now[m][1].word[0], now[m][0].word[1], now[m][1].word[1]};
                  T::mma(sum[m][n], a, x);
                }
              }
            }
          }
        }
      }
    }
    load_first(next);

    __syncthreads();  // the reads of the item before
    const float scale = item.entry.scale;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          out_tile[(n * 8 + 2 * t + i % 2) * kOutStride + (warp * kMTiles + m) * 16 + i / 2 * 8 + g] = scale * sum[m][n][i];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int vector = threadIdx.x + i * kExpandThreads, column = vector % kVectors * 8;
      uint16_t* to = y_at(item, vector);
      if (to == nullptr) continue;
      const auto* added = reinterpret_cast<const Quad*>(out_tile + vector / kVectors * kOutStride + column);
      const auto* dora = reinterpret_cast<const Quad*>(item.entry.g != 0 ? item.entry.g + 4 * (item.columns.first + column) : 0);
      Quad after;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Quad more = added[half];
        const Quad factor = dora != nullptr ? load_cached(dora + half) : Quad{};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t was = before[i].word[2 * half + j];
          float low = T::to_float(static_cast<uint16_t>(was)) + as_float(more.word[2 * j]);
          float high = T::to_float(static_cast<uint16_t>(was >> 16)) + as_float(more.word[2 * j + 1]);
          if (dora != nullptr) {
            low *= as_float(factor.word[2 * j]);
            high *= as_float(factor.word[2 * j + 1]);
          }
          after.word[2 * half + j] = T::from_float(low) | static_cast<uint32_t>(T::from_float(high)) << 16;
        }
      }
      *reinterpret_cast<Quad*>(to) = after;
    }
    item = next;
  }
}

}  // namespace lorikeet
