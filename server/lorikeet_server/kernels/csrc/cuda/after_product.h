// The C interface of the kernels that take a base product together with what adapters add to it, which was computed beside it. As in
// sgmv.h: raw device addresses and a stream, and the same structures in lorikeet_server/kernels/cuda/abi.py.
#pragma once

#include <cstdint>

namespace lorikeet {

// Their part of lorikeet_load.
const char* load_after_product();

}  // namespace lorikeet

extern "C" {

enum LorikeetActivation { kLorikeetSilu = 0, kLorikeetGelu = 1 };

// out = act(gate) * up, where gate and up are the halves of y + delta.
struct LorikeetGated {
  const uint16_t* y;      // [rows][2 * width]
  const uint16_t* delta;  // as y
  uint16_t* out;          // [rows][width]
  int32_t rows;
  int32_t width;       // a multiple of 8
  int32_t format;      // LorikeetFormat of sgmv.h
  int32_t activation;  // LorikeetActivation
};

// residual += y + delta; y = rms_norm(residual) * (weight + offset).
struct LorikeetAddNorm {
  uint16_t* y;             // [rows][width]
  const uint16_t* delta;   // as y
  uint16_t* residual;      // as y
  const uint16_t* weight;  // [width]
  int32_t rows;
  int32_t width;  // a multiple of 8, at most 16,384
  int32_t format;  // LorikeetFormat of sgmv.h
  float eps;
  float offset;
};

// Each enqueues one kernel. Null, or what is wrong with the call, before anything was launched; or the error of the launch.
const char* lorikeet_gated(const LorikeetGated* call, void* stream);
const char* lorikeet_add_norm(const LorikeetAddNorm* call, void* stream);

}  // extern "C"
