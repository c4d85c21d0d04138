// Weights that a file already holds in few bits stay that way in memory. Each is computed exactly
// as the file's own arithmetic would: in registers for few rows, through a slice in cache for many.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kBlocksAhead = 4096;  // bytes to prefetch

// Calls visit(k, weights) for every k of the block, in ascending order.
template <typename Visit>
inline void for_weights(const Block4<kPanel>& block, Visit visit) {
  Vec step[kColumns], low[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    step[c] = Vec::load(block.step + c * kWidth);
    low[c] = Vec::load(block.low + c * kWidth);
  }
  for (int word = 0; word < kBlockDepth / 8; ++word) {
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) {
      Vec w[kColumns];
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) {
        w[c] = fma(Vec::load_nibbles(&block.codes[word][c * kWidth], 4 * n), step[c], low[c]);
      }
      visit(8 * word + n, w);
    }
  }
}

template <typename Visit>
inline void for_weights(const Block8<kPanel>& block, Visit visit) {
  Vec step[kColumns];
  for (int c = 0; c < kColumns; ++c) step[c] = Vec::load(block.step + c * kWidth);
#pragma GCC unroll 4
  for (int k = 0; k < kBlockDepth; ++k) {
    Vec w[kColumns];
#pragma GCC unroll 2
    for (int c = 0; c < kColumns; ++c)
      w[c] = Vec::load_bytes(&block.codes[k][c * kWidth]) * step[c];
    visit(k, w);
  }
}

template <int kRows, typename Block>
inline void accumulate_blocks(Vec (&sum)[kRows][kColumns], const float* x, int64_t x_stride,
                              const Block* panel, int k_count) {
  for (int k = 0; k < k_count; k += kBlockDepth, ++panel) {
    fetch<int(sizeof(Block))>(reinterpret_cast<const char*>(panel) + kBlocksAhead);
    for_weights(*panel, [&](int step, const Vec(&w)[kColumns]) {
      multiply_add(sum, x + k + step, x_stride, w);
    });
  }
}
template <int kRows>
inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x, int64_t x_stride,
                       const Block4<kPanel>* panel, int k_count, int) {
  accumulate_blocks(sum, x, x_stride, panel, k_count);
}
template <int kRows>
inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x, int64_t x_stride,
                       const Block8<kPanel>* panel, int k_count, int) {
  accumulate_blocks(sum, x, x_stride, panel, k_count);
}

template <typename Block>
void linear_panel_of_blocks(const float* x, int64_t x_stride, int rows, const Block* panel, int in,
                            float* y, int64_t y_stride, int columns) {
  if (rows <= kMaxRows) {
    const PanelArguments arguments{x, x_stride, in, false, 0, y, y_stride, columns};
    return row_block<kMaxRows>(rows, arguments, panel);
  }
  constexpr int kBlocksPerSlice = 4;  // 16 KB as float, if columns are 32
  alignas(64) float slice[kBlocksPerSlice * kBlockDepth * kPanel];
  for (int k = 0; k < in; k += kBlocksPerSlice * kBlockDepth) {
    const int rest = (in - k) / kBlockDepth;
    const int count = rest < kBlocksPerSlice ? rest : kBlocksPerSlice;
    for (int i = 0; i < count; ++i, ++panel) {
      fetch<int(sizeof(Block))>(reinterpret_cast<const char*>(panel) + kBlocksAhead);
      float* target = slice + i * kBlockDepth * kPanel;
      for_weights(*panel, [&](int step, const Vec(&w)[kColumns]) {
        for (int c = 0; c < kColumns; ++c) w[c].store(target + step * kPanel + c * kWidth);
      });
    }
    row_blocks(x + k, x_stride, rows, slice, count * kBlockDepth, k > 0, 0, y, y_stride, columns);
  }
}

}  // namespace lorikeet::LORIKEET_ISA
