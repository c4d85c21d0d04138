// One fused module's LoRA product in two halves: shrinks, and expansions, which add to a tile of
// the linear's output while that is in the cache of the thread that computed it.
#pragma once
#include <vector>

#include "fetching.h"
#include "table.h"

namespace lorikeet {

class LoraProduct {
 public:
  // Cuts the first half of the product of `table` over `batch`, which must outlive it. Allocates
  // only when it grows.
  void prepare(const LoraTable& table, const LoraBatch& batch);
  void clear();

  // Tiles of the first half, in the order of the rows.
  int shrink_count() const { return int(shrink_ends_.size()); }
  void shrink(const KernelTable& kernels, int tile, const float* x) const;
  // Cuts the second half for an output of `rows` in tiles of so many, while shrinks may run.
  void cut_expansions(int rows, int rows_per_tile);
  // Adds to columns `first` to before `end` of the rows of a tile; `y` is the whole output. All
  // shrinks must be done.
  void expand(const KernelTable& kernels, int row_tile, int first, int end, float* y) const;
  // Lists what that reads of the adapters for tiles of so many columns: expand_lines() then has the
  // part of the tile whose columns begin at `first`.
  void list_expand_lines(int columns);
  Lines::Part expand_lines(int first) const;

 private:
  struct Shrink {
    const LoraEntry* entry;
    int slice, first_row, rows, first_rank, ranks;
  };

  float* v(int slice, int row) const {
    return v_.data() + (int64_t{slice} * batch_->rows + row) * v_stride_;
  }

  const LoraTable* table_ = nullptr;
  const LoraBatch* batch_ = nullptr;
  std::vector<Shrink> shrinks_;
  std::vector<int> shrink_ends_;       // [tile], in shrinks_
  std::vector<Expansion> expansions_;  // [row tile][slice][segment], those that there are
  std::vector<int> expansion_ends_;    // [row tile][slice], in expansions_
  Lines lines_;                        // of B, of a tile at the first column of each slice
  std::vector<int64_t> line_ends_;     // [slice], in lines_
  int tile_columns_ = 1;
  mutable std::vector<float> v_;       // [slice][row of the permutation][widest rank]
  int64_t v_stride_ = 0;
};

// What the shrinks of a product read of the adapters, in their order.
void add_shrink_lines(const LoraTable& table, const LoraBatch& batch, Lines* lines);

}  // namespace lorikeet
