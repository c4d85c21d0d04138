// What a launch is told: where the adapters of one fused module are, and which rows want which of them.
#pragma once

#include <cstdint>

namespace lorikeet {

// Ranks are stored padded with zero rows to this multiple, so that every row of B begins on 16 bytes.
constexpr int kRankUnit = 8;
// v keeps each slice's rank padded to the height of one matrix instruction.
constexpr int kRankTile = 16;

// Adapter slots of one fused module. Arrays live on the device at addresses that never change; entry [slice][slot].
struct LoraTables {
  const int64_t* a;      // address of A [rank][in], 0: the slot does not target the slice
  const int64_t* b;      // address of B [out of the slice][rank]
  const int64_t* g;      // address of DoRA's fp32 scale per column, 0: none
  const int32_t* rank;   // a multiple of kRankUnit
  const float* scale;    // alpha / r, or as the adapter says
  const int32_t* column; // [slices + 1] first output column of each slice, multiples of 8
  int slices;
  int slots;
  int in;                // a multiple of 8
  int max_rank;          // no slot exceeds it; a multiple of kRankTile
};

// Rows of the step in runs of equal adapter slot, cut into tiles. Built once per step for all modules and layers.
struct LoraTiles {
  const int32_t* permutation;  // [rows] row of x and y at each position
  const int32_t* first;        // [tiles] position of the tile's first row
  const int32_t* count;        // [tiles] its rows, at most the tile height of the launch
  const int32_t* slot;         // [tiles]
  const int32_t* total;        // [1] live tiles; a grid may be larger
};

}  // namespace lorikeet
