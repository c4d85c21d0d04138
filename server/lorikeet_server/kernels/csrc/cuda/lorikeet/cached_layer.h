// What a launch is told of one layer's attention: its heads, its cache and its rotary table. None of it ever moves.
#pragma once

#include <cstdint>

namespace lorikeet {

struct CachedLayer {
  uint16_t* k_cache;     // [places][kv_heads][width]
  uint16_t* v_cache;     // [places][kv_heads][width]
  const float* cos_sin;  // [positions][width]: cosines in the first half of a row, sines in the second
  int64_t places;        // blocks times entries of a block
  int64_t positions;
  int32_t heads;
  int32_t kv_heads;
  int32_t width;  // of a head: a multiple of 16
};

}  // namespace lorikeet
