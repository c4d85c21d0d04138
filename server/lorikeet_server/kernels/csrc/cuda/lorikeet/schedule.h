// From the adapter slot of each row to tiles: a counting sort, once per step, into one buffer that a single copy moves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tables.h"

namespace lorikeet {

// Where the arrays of LoraTiles lie in the step's buffer, in 32-bit words. The same for every step of at most `rows` rows.
// What may be long and is mostly short lies last, so that only its live part need be copied.
struct TileLayout {
  int32_t rows;
  int32_t tile_rows;
  int32_t max_tiles;  // the most tiles that so many rows can give, with those of rows without adapter
  int32_t max_items;
  int32_t permutation, tiles, items, words;

  static TileLayout of(int rows, int slots, int tile_rows, int max_rank) {
    constexpr int kWords = sizeof(LoraTile) / 4;
    const auto aligned = [](int word) { return (word + kWords - 1) / kWords * kWords; };
    TileLayout layout = {};
    layout.rows = rows;
    layout.tile_rows = tile_rows;
    layout.max_tiles = most_tiles(rows, slots + 1, tile_rows);
    layout.max_items = tile_rows == kDecodeTile ? layout.max_tiles * (max_rank / kRankTile) : 0;
    layout.permutation = kWords;
    layout.tiles = aligned(layout.permutation + rows);
    layout.items = layout.tiles + layout.max_tiles * kWords;
    layout.words = layout.items + layout.max_items * kWords;
    return layout;
  }

  // Runs of c rows give ceil(c / h) <= 1 + (c - 1) / h tiles, most when as many slots as can be are present.
  static int most_tiles(int rows, int slots, int tile_rows) {
    const int runs = std::min(rows, slots);
    return runs + (rows - runs) / tile_rows;
  }
};

// Sorts rows by slot (stable: ascending rows within a slot) and cuts each run into tiles. Rows with a negative slot come last.
// `row_slots` [rows], values below `slots`; `slot_rank` [slots], the largest rank of each slot
// over all modules; `buffer` [layout.words]. Returns the words to copy.
inline int schedule_tiles(const int32_t* row_slots, int rows, int slots, const int32_t* slot_rank, const TileLayout& layout,
                          std::vector<int32_t>& counts, int32_t* buffer) {
  counts.assign(slots + 1, 0);
  for (int i = 0; i < rows; ++i) {
    if (row_slots[i] >= 0) ++counts[row_slots[i] + 1];
  }
  auto* tile = reinterpret_cast<LoraTile*>(buffer + layout.tiles);
  auto* item = reinterpret_cast<LoraTile*>(buffer + layout.items);
  for (int s = 0; s < slots; ++s) {
    const int begin = counts[s], run = counts[s + 1];
    for (int done = 0; done < run; done += layout.tile_rows) {
      *tile++ = {begin + done, std::min(run - done, layout.tile_rows), s, slot_rank[s]};
      if (layout.max_items == 0) continue;
      for (int rank = 0; rank < slot_rank[s]; rank += kRankTile) *item++ = {tile[-1].first, tile[-1].count, s, rank};
    }
    counts[s + 1] += begin;
  }
  buffer[0] = static_cast<int32_t>(tile - reinterpret_cast<LoraTile*>(buffer + layout.tiles));
  buffer[1] = static_cast<int32_t>(item - reinterpret_cast<LoraTile*>(buffer + layout.items));
  for (int first = counts[slots]; first < rows; first += layout.tile_rows) {
    *tile++ = {first, std::min(rows - first, layout.tile_rows), -1, 0};
  }
  buffer[2] = static_cast<int32_t>(tile - reinterpret_cast<LoraTile*>(buffer + layout.tiles));
  for (int i = 0; i < rows; ++i) buffer[layout.permutation + counts[row_slots[i] < 0 ? slots : row_slots[i]]++] = i;
  const int32_t* end = reinterpret_cast<int32_t*>(buffer[1] > 0 ? item : tile);
  return static_cast<int>(end - buffer);
}

}  // namespace lorikeet
