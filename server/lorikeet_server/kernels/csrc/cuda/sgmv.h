// The C interface of the SGMV library: what Python calls, with raw device addresses and a stream. No framework is needed to
// build it or to load it. lorikeet_server/kernels/cuda/abi.py has the same structures.
#pragma once

#include <cstdint>

#include "lorikeet/schedule.h"
#include "lorikeet/tables.h"

extern "C" {

enum LorikeetFormat { kLorikeetBf16 = 0, kLorikeetFp16 = 1 };

// Shrink needs x alone, so it can run on another stream beside the base's own product. Bits of `phases`.
enum LorikeetPhase { kLorikeetShrink = 1, kLorikeetExpand = 2 };

// y = g (y + scale * (x A^T) B^T), each row under its own adapter; all arrays on the device of the stream. Alone:
// y = scale * (x A^T) B^T, zeros for what no adapter targets, and NaN for DoRA, for whoever adds it to the base's product.
struct LorikeetSgmv {
  lorikeet::LoraTables tables;
  lorikeet::LoraTiles tiles;
  const uint16_t* x;  // [rows][in], rows x_stride values apart
  uint16_t* y;        // [rows][sum of the slices' columns], rows y_stride values apart
  float* v;           // scratch of lorikeet_sgmv_scratch values, 16-byte aligned
  int64_t x_stride;
  int64_t y_stride;
  int32_t rows;
  int32_t tile_rows;  // what the tiles were cut for: 8 or 64
  int32_t format;     // LorikeetFormat
  int32_t dependent;  // 1: each kernel may begin while the one before it ends (sm_90); of few rows alone, the second of two
  int32_t phases;     // LorikeetPhase; x is read by shrink only, y by expand only
  int32_t most_tiles; // of the steps for which this launch is to do, with those of rows without adapter if alone
  int32_t alone;      // 1: y is written and not added to
};

// Bytes of LoraEntry, LoraTile, TileLayout, LorikeetSgmv, LorikeetRopeAndCache, LorikeetGated, LorikeetAddNorm, by index; 0 beyond.
// To be compared before anything is called.
int lorikeet_struct_bytes(int index);

// Brings all kernels of the library to the current device, so that their first launch may be captured in a graph. Null, or what CUDA says.
const char* lorikeet_load(void);

// Values of fp32 scratch that a call on so many rows of such a module needs.
int64_t lorikeet_sgmv_scratch(const lorikeet::LoraTables* tables, int rows);

// Enqueues the kernels of the phases. Returns null, or what is wrong with the call, before anything was launched; or the error of a launch.
const char* lorikeet_sgmv(const LorikeetSgmv* call, void* stream);

// Where the tiles of a step of at most `rows` rows lie in its buffer.
void lorikeet_tile_layout(int rows, int slots, int tile_rows, int max_rank, lorikeet::TileLayout* layout);

// See schedule_tiles: fills `buffer` and returns the words of it to copy, or -1 if a row's slot is not below `slots` or there are
// more rows than the layout has room for. Host code: `slot_rank` [slots], `row_slots` [rows].
int lorikeet_schedule(const int32_t* row_slots, int rows, int slots, const int32_t* slot_rank,
                      const lorikeet::TileLayout* layout, int32_t* buffer);

}  // extern "C"
