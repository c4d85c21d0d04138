// From a row-major weight to the panels of types.h. `panel` is their width.
#pragma once
#include "types.h"

namespace lorikeet {

int64_t packed_bytes(int out, int in, int panel, DType dtype);

// `weight` [out][in] is stored as `dtype`: float, half or bfloat16.
void pack_linear(const void* weight, int out, int in, int panel, DType dtype, void* packed);

// Packs a float weight as blocks of 4 or 8 bits if that loses nothing: every value is exactly what
// the block yields, as in a weight read from a GGUF file of type Q4_1 or Q8_0. Returns whether it
// was.
bool pack_blocks(const float* weight, int out, int in, int panel, DType dtype, void* packed);

}  // namespace lorikeet
