// One fused module's LoRA product as two lists of tiles, so that a caller can run the first half
// beside other work.
#pragma once
#include <vector>

#include "table.h"

namespace lorikeet {

class LoraProduct {
 public:
  // Cuts the product of `table` over `batch` into tiles. Both must outlive it. Allocates only when
  // it grows.
  void prepare(const LoraTable& table, const LoraBatch& batch);
  void clear() { shrinks_.clear(), expands_.clear(); }

  int shrink_count() const { return int(shrinks_.size()); }
  int expand_count() const { return int(expands_.size()); }
  void shrink(const KernelTable& kernels, int tile, const float* x) const;
  void expand(const KernelTable& kernels, int tile, float* y) const;

 private:
  struct Tile {
    const LoraEntry* entry;
    int slice, first_row, rows;
    int first, count;  // ranks of a shrink, columns of an expand
    int offset;        // of the slice in y
  };

  float* v(const Tile& tile) const;

  const LoraTable* table_ = nullptr;
  const LoraBatch* batch_ = nullptr;
  std::vector<Tile> shrinks_, expands_;
  mutable std::vector<float> v_;  // [slice][row of the permutation][widest rank]
  int64_t v_stride_ = 0;
};

}  // namespace lorikeet
