// Weights that a file already holds in few bits stay that way in memory: a slice of the panel is
// unpacked into cache, exactly as the file's own arithmetic would, and multiplied from there.
#pragma once

namespace lorikeet::LORIKEET_ISA {

inline void unpack_block(const Block4<kPanel>& block, float* target) {
  for (int c = 0; c < kPanel; c += kWidth) {
    const Vec step = Vec::load(block.step + c), low = Vec::load(block.low + c);
    for (int word = 0; word < kBlockDepth / 8; ++word) {
      for (int n = 0; n < 8; ++n) {
        const Vec code = Vec::load_nibbles(&block.codes[word][c], 4 * n);
        fma(code, step, low).store(target + (8 * word + n) * kPanel + c);
      }
    }
  }
}

inline void unpack_block(const Block8<kPanel>& block, float* target) {
  for (int c = 0; c < kPanel; c += kWidth) {
    const Vec step = Vec::load(block.step + c);
    for (int k = 0; k < kBlockDepth; ++k) {
      (Vec::load_bytes(&block.codes[k][c]) * step).store(target + k * kPanel + c);
    }
  }
}

template <typename Block>
void linear_panel_of_blocks(const float* x, int64_t x_stride, int rows, const Block* panel, int in,
                            float* y, int64_t y_stride, int columns) {
  constexpr int kBlocksPerSlice = 4;  // 16 KB as float
  constexpr int kAhead = 4096;        // bytes
  alignas(64) float slice[kBlocksPerSlice * kBlockDepth * kPanel];
  for (int k = 0; k < in; k += kBlocksPerSlice * kBlockDepth) {
    const int rest = (in - k) / kBlockDepth;
    const int count = rest < kBlocksPerSlice ? rest : kBlocksPerSlice;
    for (int i = 0; i < count; ++i, ++panel) {
      for (int line = 0; line < int(sizeof(Block)); line += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(panel) + kAhead + line, 0, 2);
      }
      unpack_block(*panel, slice + i * kBlockDepth * kPanel);
    }
    row_blocks(x + k, x_stride, rows, slice, count * kBlockDepth, k > 0, 0, y, y_stride, columns);
  }
}

}  // namespace lorikeet::LORIKEET_ISA
