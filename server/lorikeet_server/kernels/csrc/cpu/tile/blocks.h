// Weights that a file already holds in few bits stay that way in memory. Each is computed exactly
// as the file's own arithmetic would: in registers for few rows, through a slice in cache for many.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kBlocksAhead = 4096;  // bytes to prefetch

// Calls visit(k, weights) for every k of the block, in ascending order.
template <typename Visit>
LORIKEET_INLINED inline void for_weights(const Block4<kPanel>& block, Visit visit) {
  Vec step[kColumns], low[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    step[c] = Vec::load(block.step + c * kWidth);
    low[c] = Vec::load(block.low + c * kWidth);
  }
  for (int word = 0; word < kBlockDepth / 8; ++word) {
    Vec::Words words[kColumns];
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      words[c] = Vec::load_words(&block.codes[word][c * kWidth]);
    });
    unrolled<8>([&](auto n) LORIKEET_INLINED {
      Vec w[kColumns];
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        w[c] = fma(Vec::nibbles(words[c], 4 * n), step[c], low[c]);
      });
      visit(8 * word + n, w);
    });
  }
}

template <typename Visit>
LORIKEET_INLINED inline void for_weights(const Block8<kPanel>& block, Visit visit) {
  Vec step[kColumns];
  for (int c = 0; c < kColumns; ++c) step[c] = Vec::load(block.step + c * kWidth);
  for (int eight = 0; eight < kBlockDepth / 8; ++eight) {
    unrolled<8>([&](auto n) LORIKEET_INLINED {
      Vec w[kColumns];
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        const int8_t* pairs = &block.codes[pair_of(8 * eight + n)][c * kWidth][0];
        w[c] = Vec::load_of_pairs<place_in_pair(n)>(pairs) * step[c];
      });
      visit(8 * eight + n, w);
    });
  }
}

static_assert(kRun % kBlockDepth == 0);

template <int kRows, typename Block>
LORIKEET_INLINED inline void accumulate_blocks(Vec (&sum)[kRows][kColumns], const float* x,
                                               int64_t x_stride, const Block* panel, int begin,
                                               int end) {
  panel += begin / kBlockDepth;
  x += begin;
  for (int left = end - begin; left > 0; left -= kBlockDepth, x += kBlockDepth, ++panel) {
    fetch<int(sizeof(Block))>(reinterpret_cast<const char*>(panel) + kBlocksAhead);
    for_weights(*panel, [&](int step, const Vec(&w)[kColumns]) LORIKEET_INLINED {
      multiply_add(sum, x + step, x_stride, w);
    });
  }
}
template <int kRows>
LORIKEET_INLINED inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x,
                                        int64_t x_stride, const Block4<kPanel>* panel, int begin,
                                        int end, int) {
  accumulate_blocks(sum, x, x_stride, panel, begin, end);
}
template <int kRows>
LORIKEET_INLINED inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x,
                                        int64_t x_stride, const Block8<kPanel>* panel, int begin,
                                        int end, int) {
  accumulate_blocks(sum, x, x_stride, panel, begin, end);
}

// A slice of a panel, whose first rows leave its weights as floats for the other rows.
template <typename Block>
struct Unpacking {
  const Block* panel;
  float* weights;
};

template <int kRows, typename Block>
LORIKEET_INLINED inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x,
                                        int64_t x_stride, const Unpacking<Block>* slice, int begin,
                                        int end, int) {
  const Block* panel = slice->panel + begin / kBlockDepth;
  float* weights = slice->weights + begin * kPanel;
  x += begin;
  for (int left = end - begin; left > 0; left -= kBlockDepth, x += kBlockDepth, ++panel) {
    fetch<int(sizeof(Block))>(reinterpret_cast<const char*>(panel) + kBlocksAhead);
    for_weights(*panel, [&](int step, const Vec(&w)[kColumns]) LORIKEET_INLINED {
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        w[c].store(weights + step * kPanel + c * kWidth);
      });
      multiply_add(sum, x + step, x_stride, w);
    });
    weights += kBlockDepth * kPanel;
  }
}

template <typename Block>
void linear_panel_of_blocks(const float* x, int64_t x_stride, int rows, const Block* panel, int in,
                            float* y, int64_t y_stride, int columns, Fetching* fetching) {
  if (rows <= kMaxRows) {
    const PanelArguments arguments{x, x_stride, in, false, 0, fetching, y, y_stride, columns};
    return row_block<kMaxRows>(rows, arguments, panel);
  }
  // The products of the first rows hide the unpacking, which takes the registers of half of the
  // sums: 12 % faster at 8 rows than unpacking first (measured, Zen 3).
  constexpr int kFirst = kMaxRows / 2;
  constexpr int kBlocksPerSlice = 24;  // 48 KB as floats, if columns are 16: reread from L2
  alignas(64) float weights[kBlocksPerSlice * kBlockDepth * kPanel];
  for (int k = 0; k < in; k += kBlocksPerSlice * kBlockDepth, panel += kBlocksPerSlice) {
    const int rest = in - k, most = kBlocksPerSlice * kBlockDepth;
    const int depth = rest < most ? rest : most;
    const Unpacking<Block> slice{panel, weights};
    block<kFirst>({x + k, x_stride, depth, k > 0, 0, fetching, y, y_stride, columns}, &slice);
    row_blocks(x + kFirst * x_stride + k, x_stride, rows - kFirst, weights, depth, k > 0, 0,
               fetching, y + kFirst * y_stride, y_stride, columns);
  }
}

}  // namespace lorikeet::LORIKEET_ISA
