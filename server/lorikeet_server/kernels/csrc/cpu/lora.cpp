#include "lora.h"

#include <algorithm>

namespace lorikeet {
namespace {

// What one call of the kernel may take, so that high ranks and many rows are shared out.
constexpr int kRanksPerShrink = 16;
constexpr int kRowsPerShrink = 16;
// Multiplications of a tile: microseconds, long against a claim and short against the whole.
constexpr int64_t kShrinkProducts = 12288;

int element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
int64_t row_bytes(const LoraTable& table) { return int64_t{table.in} * element_size(table.dtype); }

// What `ends` says of part `index`: its first element, or before its first.
template <typename T>
T begin_of(const std::vector<T>& ends, int index) {
  return index == 0 ? 0 : ends[size_t(index - 1)];
}

// Null if the segment has no adapter, or that does not target the slice.
const LoraEntry* find(const LoraTable& table, const LoraBatch& batch, int segment, int slice) {
  const int slot = batch.slots[segment];
  if (slot >= table.slots) return nullptr;
  const LoraEntry& entry = table.entries[int64_t{slot} * table.stride + slice];
  return entry.a == 0 ? nullptr : &entry;
}

// Calls visit(segment, slice, entry) for all that there are, a segment's slices in turn.
template <typename Visit>
void by_segment(const LoraTable& table, const LoraBatch& batch, Visit visit) {
  for (int segment = 0; segment < batch.segments; ++segment) {
    for (int slice = 0; slice < table.slices; ++slice) {
      if (const auto* entry = find(table, batch, segment, slice)) visit(segment, slice, *entry);
    }
  }
}

// Calls visit(segment, entry) for all that there are of a slice.
template <typename Visit>
void of_slice(const LoraTable& table, const LoraBatch& batch, int slice, Visit visit) {
  for (int segment = 0; segment < batch.segments; ++segment) {
    if (const auto* entry = find(table, batch, segment, slice)) visit(segment, *entry);
  }
}

}  // namespace

void LoraProduct::clear() {
  shrinks_.clear();
  shrink_ends_.clear();
  expansions_.clear();
  expansion_ends_.clear();
  lines_.clear();
  line_ends_.clear();
}

void LoraProduct::prepare(const LoraTable& table, const LoraBatch& batch) {
  clear();
  table_ = &table;
  batch_ = &batch;
  const int32_t* starts = batch.starts;
  v_stride_ = 0;
  int64_t products = 0;
  by_segment(table, batch, [&](int segment, int slice, const LoraEntry& entry) {
    v_stride_ = std::max<int64_t>(v_stride_, entry.rank);
    for (int row = starts[segment]; row < starts[segment + 1]; row += kRowsPerShrink) {
      const int rows = std::min(kRowsPerShrink, starts[segment + 1] - row);
      for (int rank = 0; rank < entry.rank; rank += kRanksPerShrink) {
        const int ranks = std::min(kRanksPerShrink, entry.rank - rank);
        shrinks_.push_back({&entry, slice, row, rows, rank, ranks});
        products += int64_t{rows} * ranks * table.in;
        if (products < kShrinkProducts) continue;
        shrink_ends_.push_back(int(shrinks_.size()));
        products = 0;
      }
    }
  });
  if (products > 0) shrink_ends_.push_back(int(shrinks_.size()));
  const size_t needed = size_t(table.slices) * size_t(batch.rows) * size_t(v_stride_);
  if (v_.size() < needed) v_.resize(needed);
}

void LoraProduct::cut_expansions(int rows, int rows_per_tile) {
  const int32_t* permutation = batch_->permutation;
  for (int first = 0; first < rows; first += rows_per_tile) {
    for (int slice = 0; slice < table_->slices; ++slice) {
      of_slice(*table_, *batch_, slice, [&](int segment, const LoraEntry& entry) {
        const auto* end = permutation + batch_->starts[segment + 1];  // a segment's rows ascend
        const auto* from = std::lower_bound(permutation + batch_->starts[segment], end, first);
        const auto* to = std::lower_bound(from, end, first + rows_per_tile);
        if (from == to) return;
        expansions_.push_back({&entry, v(slice, int(from - permutation)), from, int(to - from)});
      });
      expansion_ends_.push_back(int(expansions_.size()));
    }
  }
}

void LoraProduct::list_expand_lines(int columns) {
  tile_columns_ = columns;
  const int64_t bytes = int64_t{columns} * element_size(table_->dtype);
  for (int slice = 0; slice < table_->slices; ++slice) {
    of_slice(*table_, *batch_, slice, [&](int, const LoraEntry& entry) {
      lines_.add(reinterpret_cast<const void*>(entry.b), entry.rank * bytes);
    });
    line_ends_.push_back(lines_.count());
  }
}

void LoraProduct::shrink(const KernelTable& kernels, int tile, const float* x) const {
  for (int i = begin_of(shrink_ends_, tile); i < shrink_ends_[size_t(tile)]; ++i) {
    const Shrink& part = shrinks_[size_t(i)];
    const auto* a = reinterpret_cast<const char*>(part.entry->a);
    kernels.shrink({x, table_->in, batch_->permutation + part.first_row, part.rows,
                    a + part.first_rank * row_bytes(*table_), table_->dtype, part.ranks, table_->in,
                    v(part.slice, part.first_row) + part.first_rank, v_stride_});
  }
}

void LoraProduct::expand(const KernelTable& kernels, int row_tile, int first, int end,
                         float* y) const {
  if (expansions_.empty()) return;
  for (int slice = 0, offset = 0; slice < table_->slices; offset += table_->columns[slice++]) {
    const int width = table_->columns[slice];
    const int from = std::max(first - offset, 0), to = std::min(end - offset, width);
    const int part = row_tile * table_->slices + slice, begin = begin_of(expansion_ends_, part);
    const int count = expansion_ends_[size_t(part)] - begin;
    if (from >= to || count == 0) continue;
    kernels.expand({expansions_.data() + begin, count, v_stride_, width, table_->panel,
                    table_->dtype, from, to - from, y + offset, table_->out});
  }
}

Lines::Part LoraProduct::expand_lines(int first) const {
  if (lines_.count() == 0) return {};
  int slice = 0, offset = 0;
  while (first >= offset + table_->columns[slice]) offset += table_->columns[slice++];
  return lines_.range(begin_of(line_ends_, slice), line_ends_[size_t(slice)],
                      (first - offset) / tile_columns_);
}

void add_shrink_lines(const LoraTable& table, const LoraBatch& batch, Lines* lines) {
  by_segment(table, batch, [&](int, int, const LoraEntry& entry) {
    lines->add(reinterpret_cast<const void*>(entry.a), entry.rank * row_bytes(table));
  });
}

}  // namespace lorikeet
