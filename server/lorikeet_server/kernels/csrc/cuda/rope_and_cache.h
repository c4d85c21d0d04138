// The C interface of the kernel between a layer's qkv product and its attention. As in sgmv.h: raw device addresses and a
// stream, and the same structures in lorikeet_server/kernels/cuda/abi.py.
#pragma once

#include <cstdint>

#include "lorikeet/cached_layer.h"

namespace lorikeet {

// Its part of lorikeet_load.
const char* load_rope_and_cache();

}  // namespace lorikeet

extern "C" {

// Adds the delta to qkv, rotates q and k in it, and writes k and v to the cache; all arrays on the device of the stream.
struct LorikeetRopeAndCache {
  lorikeet::CachedLayer layer;
  uint16_t* qkv;             // [rows][(heads + 2 kv_heads) * width], rows qkv_stride values apart
  const uint16_t* delta;     // [rows][(heads + 2 kv_heads) * width] without gaps, or null: none
  const int64_t* positions;  // [rows] rows of cos_sin
  const int64_t* places;     // [rows] rows of the cache, no two the same but for the spare one
  int64_t qkv_stride;
  int32_t rows;
  int32_t format;     // LorikeetFormat of sgmv.h, of the cache too
  int32_t dependent;  // 1: the kernel may begin while the one before it ends, which must not write positions or places (sm_90)
};

// Enqueues one kernel. Returns null, or what is wrong with the call, before anything was launched; or the error of the launch.
const char* lorikeet_rope_and_cache(const LorikeetRopeAndCache* call, void* stream);

}  // extern "C"
