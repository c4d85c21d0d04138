// Checks of values that Python would be slow to check: nothing may index outside a cache or a
// table.
#pragma once
#include "types.h"

namespace lorikeet {

// Null, or what is wrong.
inline const char* range_error(const Places& places, int rows, const Attention& layer) {
  const int64_t slots = int64_t{layer.cache.blocks} * layer.cache.block_size;
  for (int row = 0; row < rows; ++row) {
    if (places.positions[row] < 0 || places.positions[row] >= layer.max_position)
      return "positions are outside cos_sin";
    if (places.slot_mapping[row] >= slots) return "slot_mapping is outside the cache";
  }
  return nullptr;
}

inline const char* range_error(const Sequences& sequences, int rows, const KvCache& cache) {
  const int32_t* start = sequences.query_start;
  if (start[0] != 0 || start[sequences.count] != rows)
    return "query_start must go from 0 to the number of rows";
  for (int s = 0; s < sequences.count; ++s) {
    const int context = sequences.context_len[s];
    if (start[s + 1] < start[s]) return "query_start must not decrease";
    if (start[s + 1] == start[s]) continue;
    if (context < start[s + 1] - start[s])
      return "context_len is smaller than the number of queries";
    const int used = ceil_div(context, cache.block_size);
    if (used > sequences.max_blocks) return "block_tables are too narrow for context_len";
    const int32_t* blocks = sequences.block_tables + int64_t{s} * sequences.max_blocks;
    for (int b = 0; b < used; ++b) {
      if (blocks[b] < 0 || blocks[b] >= cache.blocks) return "block_tables are outside the cache";
    }
  }
  return nullptr;
}

}  // namespace lorikeet
