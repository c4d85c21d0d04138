#include "lora.h"

#include <algorithm>

namespace lorikeet {
namespace {

// A tile should take microseconds: long against a claim, short against the whole.
constexpr int kRanksPerTile = 16;
constexpr int kRowsPerTile = 16;
constexpr int kExpandElements = 16384;

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace

void LoraProduct::prepare(const LoraTable& table, const LoraBatch& batch) {
  clear();
  table_ = &table;
  batch_ = &batch;
  int widest = 0;
  for (int slice = 0, offset = 0; slice < table.slices; offset += table.columns[slice++]) {
    for (int segment = 0; segment < batch.segments; ++segment) {
      const int slot = batch.slots[segment];
      if (slot >= table.slots) continue;
      const LoraEntry& entry = table.entries[int64_t{slot} * table.stride + slice];
      if (entry.a == 0) continue;
      const int rank = entry.rank;
      widest = std::max(widest, rank);
      const int columns = std::max(64, round_up(kExpandElements / rank, 64));
      for (int row = batch.starts[segment]; row < batch.starts[segment + 1]; row += kRowsPerTile) {
        const int rows = std::min(kRowsPerTile, batch.starts[segment + 1] - row);
        for (int first = 0; first < rank; first += kRanksPerTile) {
          shrinks_.push_back(
              {&entry, slice, row, rows, first, std::min(kRanksPerTile, rank - first), offset});
        }
        for (int first = 0; first < table.columns[slice]; first += columns) {
          expands_.push_back({&entry, slice, row, rows, first,
                              std::min(columns, table.columns[slice] - first), offset});
        }
      }
    }
  }
  v_stride_ = round_up(widest, 16);
  const size_t needed = size_t(table.slices) * size_t(batch.rows) * size_t(v_stride_);
  if (v_.size() < needed) v_.resize(needed);
}

float* LoraProduct::v(const Tile& tile) const {
  return v_.data() + (int64_t{tile.slice} * batch_->rows + tile.first_row) * v_stride_;
}

void LoraProduct::shrink(const KernelTable& kernels, int index, const float* x) const {
  const Tile& tile = shrinks_[size_t(index)];
  const int64_t skipped = int64_t{tile.first} * table_->in * element_size(table_->dtype);
  kernels.shrink({x, table_->in, batch_->permutation + tile.first_row, tile.rows,
                  reinterpret_cast<const char*>(tile.entry->a) + skipped, table_->dtype, tile.count,
                  table_->in, v(tile) + tile.first, v_stride_});
}

void LoraProduct::expand(const KernelTable& kernels, int index, float* y) const {
  const Tile& tile = expands_[size_t(index)];
  const LoraEntry& entry = *tile.entry;
  const auto* g = reinterpret_cast<const float*>(entry.g);
  kernels.expand({v(tile), v_stride_, batch_->permutation + tile.first_row, tile.rows,
                  reinterpret_cast<const char*>(entry.b) + tile.first * element_size(table_->dtype),
                  table_->columns[tile.slice], table_->dtype, entry.rank, tile.count, entry.scale,
                  g ? g + tile.first : nullptr, y + tile.offset + tile.first, table_->out});
}

}  // namespace lorikeet
