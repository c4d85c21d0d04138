// The C interface of the SGMV library: what Python calls, with raw device addresses and a stream. No framework is needed to
// build it or to load it.
#pragma once

#include <cstdint>

#include "lorikeet/tables.h"

extern "C" {

enum LorikeetFormat { kLorikeetBf16 = 0, kLorikeetFp16 = 1 };

// y += scale * (x A^T) B^T, each row under its own adapter; all arrays on the device of the stream.
struct LorikeetSgmv {
  lorikeet::LoraTables tables;
  lorikeet::LoraTiles tiles;  // cut for `prefill` (64 rows) or not (8 rows)
  const uint16_t* x;          // [rows][in], rows x_stride values apart
  uint16_t* y;                // [rows][sum of the slices' columns], rows y_stride values apart
  float* v;                   // scratch of lorikeet_sgmv_scratch values
  int64_t x_stride;
  int64_t y_stride;
  int rows;        // positions that v has room for, at least the rows that have an adapter
  int max_tiles;   // the grid's bound; live tiles are counted on the device
  int out;         // sum of the slices' columns
  int format;      // LorikeetFormat
  int prefill;     // 0: tiles of 8 rows
  int dependent;   // 1: launch so that each kernel may begin while the one before it ends (sm_90)
};

// Values of fp32 scratch that a call with these fields needs.
int64_t lorikeet_sgmv_scratch(const LorikeetSgmv* call);

// Enqueues both kernels. Returns null, or what is wrong with the call, before anything was launched; or the error of a launch.
const char* lorikeet_sgmv(const LorikeetSgmv* call, void* stream);

}  // extern "C"
