// What a launch is told: where the adapters of one fused module are, and which rows want which of them.
#pragma once

#include <cstdint>

namespace lorikeet {

// Ranks are stored padded with zero rows to this multiple, so that every row of B begins on 16 bytes.
constexpr int kRankUnit = 8;
// v keeps each slice's rank padded to the height of one matrix instruction.
constexpr int kRankTile = 16;
// Modules fused into one: q, k and v are three.
constexpr int kMaxSlices = 4;

constexpr int kDecodeTile = 8;  // rows of a tile
constexpr int kPrefillTile = 64;

// One adapter slot of one slice: all that a kernel must know of it, in one sector of memory.
struct alignas(16) LoraEntry {
  int64_t a;     // address of A [rank][in], 0: the slot does not target the slice
  int64_t b;     // address of B [out of the slice][rank]
  int64_t g;     // address of DoRA's fp32 scale per column, 0: none
  int32_t rank;  // as stored: a multiple of kRankUnit
  float scale;   // alpha / r, or as the adapter says
};

// The slots of one fused module. Entries live on the device at addresses that never change. After the last slot follows a
// summary with the largest rank of each slice in any slot: many modules are targeted by no adapter at all.
struct LoraTables {
  const LoraEntry* entries;        // of slot 0; [slots + 1][stride], of which `slices` are this module's
  int32_t stride;                  // entries of one slot over all modules
  int32_t column[kMaxSlices + 1];  // first output column of each slice, and their end; multiples of 8
  int32_t slices;
  int32_t slots;
  int32_t in;        // a multiple of 8
  int32_t max_rank;  // no slot exceeds it; a multiple of kRankTile
};

// Rows of equal adapter slot.
struct alignas(16) LoraTile {
  int32_t first;  // position of the first row
  int32_t count;  // rows, at most the tile height of the launch
  int32_t slot;   // negative: of rows without adapter
  int32_t rank;   // of a tile: the slot's largest rank over all modules; of an item: the first rank row
};

// The rows of a step by adapter slot, cut into tiles. Built once per step for all modules and layers.
struct LoraTiles {
  const int32_t* total;        // [3] live tiles, live items, and live tiles with those of rows without adapter, which come after them
  const int32_t* permutation;  // [rows] row of x and y at each position
  const LoraTile* tiles;
  const LoraTile* items;       // tiles of kDecodeTile rows only: one for each kRankTile rank rows of each tile
};

}  // namespace lorikeet
