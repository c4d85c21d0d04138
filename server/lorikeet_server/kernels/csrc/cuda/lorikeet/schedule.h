// From the adapter slot of each row to tiles: a counting sort, once per step, into one buffer that a single copy moves.
#pragma once

#include <cstdint>
#include <vector>

namespace lorikeet {

// Where the arrays of LoraTiles lie in the step's buffer, which has the same size for every step of a batch bucket.
struct TileLayout {
  int rows;   // rows of the bucket
  int tiles;  // the most tiles that many rows can give

  // Every slot that is present may leave one tile that is not full.
  static TileLayout of(int rows, int slots, int tile_rows) {
    const int partial = rows < slots ? rows : slots;
    return {rows, rows / tile_rows + partial};
  }
  int permutation() const { return 0; }
  int first() const { return rows; }
  int count() const { return first() + tiles; }
  int slot() const { return count() + tiles; }
  int total() const { return slot() + tiles; }
  int size() const { return total() + 1; }
};

// Sorts rows by slot (stable: ascending rows within a slot) and cuts each run into tiles of `tile_rows`. Rows with a
// negative slot get no tile. `row_slots` [rows], values below `slots`; `buffer` [layout.size()]. Returns the tiles.
inline int schedule_tiles(const int32_t* row_slots, int rows, int slots, int tile_rows, const TileLayout& layout,
                          std::vector<int32_t>& counts, int32_t* buffer) {
  counts.assign(slots + 1, 0);
  for (int i = 0; i < rows; ++i) {
    if (row_slots[i] >= 0) ++counts[row_slots[i] + 1];
  }
  int tiles = 0;
  for (int s = 0; s < slots; ++s) {
    const int begin = counts[s], run = counts[s + 1];
    for (int done = 0; done < run; done += tile_rows, ++tiles) {
      buffer[layout.first() + tiles] = begin + done;
      buffer[layout.count() + tiles] = run - done < tile_rows ? run - done : tile_rows;
      buffer[layout.slot() + tiles] = s;
    }
    counts[s + 1] += begin;
  }
  for (int i = 0; i < rows; ++i) {
    if (row_slots[i] >= 0) buffer[layout.permutation() + counts[row_slots[i]]++] = i;
  }
  buffer[layout.total()] = tiles;
  return tiles;
}

}  // namespace lorikeet
