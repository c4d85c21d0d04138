// What the kernels look up: an adapter's entry, a tile of the step.
#pragma once

#include "device.cuh"
#include "tables.h"

namespace lorikeet {

__device__ __forceinline__ LoraEntry entry_of(const LoraTables& tables, int slot, int slice) {
  const auto* at = reinterpret_cast<const Quad*>(tables.entries + static_cast<int64_t>(slot) * tables.stride + slice);
  const Quad low = load_cached(at), high = load_cached(at + 1);
  const auto wide = [](uint32_t lower, uint32_t upper) { return static_cast<int64_t>(static_cast<uint64_t>(upper) << 32 | lower); };
  return {wide(low.word[0], low.word[1]), wide(low.word[2], low.word[3]), wide(high.word[0], high.word[1]),
          static_cast<int32_t>(high.word[2]), as_float(high.word[3])};
}

// Whether any adapter targets the module.
__device__ __forceinline__ bool targeted(const LoraTables& tables) {
  int32_t rank = 0;
#pragma unroll
  for (int slice = 0; slice < kMaxSlices; ++slice) {
    if (slice < tables.slices) rank |= entry_of(tables, tables.slots, slice).rank;
  }
  return rank != 0;
}

__device__ __forceinline__ LoraTile tile_at(const LoraTile* tiles, int index) {
  const Quad q = load_cached(reinterpret_cast<const Quad*>(tiles + index));
  return {static_cast<int32_t>(q.word[0]), static_cast<int32_t>(q.word[1]), static_cast<int32_t>(q.word[2]),
          static_cast<int32_t>(q.word[3])};
}

}  // namespace lorikeet
