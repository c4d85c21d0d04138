// What the checks of all calls have in common.
#pragma once

#include <cstdint>

namespace lorikeet {

// Whether every row of 16-bit values can be read 16 bytes at a time.
inline bool aligned(const void* pointer, int64_t stride) {
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
}

}  // namespace lorikeet
