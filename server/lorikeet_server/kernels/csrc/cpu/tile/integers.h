// Rows in 16-bit integers times weights in blocks. One instruction multiplies and adds two pairs of
// integers where it would take one pair of floats, and a weight's code is a factor as it is.
//
// A block of a row shares a scale, as a block of weights does. Its largest value is kept apart where
// it is far from the others: the input of a layer has such outliers, and would lose the precision of
// all that share their scale. So a value is off by at most 2^-16 of the largest but them. Dettmers et
// al., "LLM.int8()" (2022), keeps whole columns apart.
#pragma once
#include <bit>

namespace lorikeet::LORIKEET_ISA {

// As many as leave registers for the weights of a pair, and the words they come from.
constexpr int kMaxIntegerRows = kWidth == 16 ? 12 : 4;

// An outlier is so many times as large as the next. Among normal values hardly any is. Measured with
// SmolLM2, of whose weights some are rounded to float16: its log-probabilities were off by 2e-4 on
// average without integers, by 3e-4 with them, be it 1.5 or 3, and by 6e-4 without outliers.
constexpr float kOutlying = 3.0f;

// Takes a value out of a block; returns the size of the largest that is left.
inline float take_outlier(int place, Vec (&values)[kBlockDepth / kWidth], BlockOfRow* block) {
  alignas(64) float rest[kBlockDepth];
  for (int i = 0; i < kBlockDepth / kWidth; ++i) values[i].store(rest + i * kWidth);
  block->outlier = place;
  block->outlying = rest[place];
  rest[place] = 0.0f;
  Vec largest = Vec::zero();
  for (int i = 0; i < kBlockDepth / kWidth; ++i) {
    values[i] = Vec::load(rest + i * kWidth);
    largest = max_of(largest, size_of(values[i]));
  }
  return max_lanes(largest);
}

inline void sum_lanes(const Vec (&a)[1], float* sum) { *sum = sum_lanes(a[0]); }
inline void sum_lanes(const Vec (&a)[4], float* sums) {
  join_lanes(a, [](Vec x, Vec y) { return x + y; }, sums);
}
inline void max_lanes(const Vec (&a)[1], float* largest) { *largest = max_lanes(a[0]); }
inline void max_lanes(const Vec (&a)[4], float* largest) {
  join_lanes(a, [](Vec x, Vec y) { return max_of(x, y); }, largest);
}

// Several blocks side by side: one alone spends most of its time on the way from lanes to a number.
template <int kBlocks>
inline void blocks_to_integers(const float* x, int16_t* codes, BlockOfRow* blocks) {
  constexpr int kVectors = kBlockDepth / kWidth;
  Vec values[kBlocks][kVectors], sums[kBlocks], largest[kBlocks];
  unrolled<kBlocks>([&](auto b) LORIKEET_INLINED {
    sums[b] = largest[b] = Vec::zero();
    unrolled<kVectors>([&](auto i) LORIKEET_INLINED {
      values[b][i] = Vec::load(x + b * kBlockDepth + i * kWidth);
      sums[b] = sums[b] + values[b][i];
      largest[b] = max_of(largest[b], size_of(values[b][i]));
    });
  });
  float sum[kBlocks], top[kBlocks];
  sum_lanes(sums, sum);
  max_lanes(largest, top);
  unrolled<kBlocks>([&](auto b) LORIKEET_INLINED {
    blocks[b] = {0.0f, sum[b], 0, -1, 0.0f};
    // Not a number where one of the values is not finite: so is every product with the block.
    top[b] += 0.0f * sum[b];
    uint32_t large = 0;
    unrolled<kVectors>([&](auto i) LORIKEET_INLINED {
      const Vec outlying = size_of(values[b][i]) * Vec::set(kOutlying);
      large |= lanes_from(outlying, Vec::set(top[b])) << (i * kWidth);
    });
    if (std::has_single_bit(large)) {
      top[b] = take_outlier(std::countr_zero(large), values[b], &blocks[b]);
    }
    blocks[b].scale = top[b] / kLargestCode;
    const Vec factor = Vec::set(top[b] > kSmallestScaled ? kLargestCode / top[b] : 0.0f);
    sums[b] = Vec::zero();
    unrolled<kVectors>([&](auto i) LORIKEET_INLINED {
      const Vec rounded = round_nearest(values[b][i] * factor);
      sums[b] = sums[b] + rounded;  // exact: below 2^24
      rounded.store_pairs(codes + b * kBlockDepth + i * kWidth);
    });
  });
  sum_lanes(sums, sum);
  for (int b = 0; b < kBlocks; ++b) blocks[b].code_sum = int32_t(sum[b]);
}

void to_integers(const float* x, int in, int16_t* codes, BlockOfRow* blocks) {
  constexpr int kAtOnce = 4, kDepth = kAtOnce * kBlockDepth;
  int k = 0;
  for (; k + kDepth <= in; k += kDepth, blocks += kAtOnce) {
    blocks_to_integers<kAtOnce>(x + k, codes + k, blocks);
  }
  for (; k < in; k += kBlockDepth) blocks_to_integers<1>(x + k, codes + k, blocks++);
}

// Calls visit(p, weights) for every p-th pair of a block.
template <typename Visit>
LORIKEET_INLINED inline void for_pairs(const Block4<kPanel>& block, Visit visit) {
  for (int word = 0; word < kBlockDepth / 8; ++word) {
    Vec::Words words[kColumns];
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      words[c] = Vec::load_words(&block.codes[word][c * kWidth]);
    });
    unrolled<4>([&](auto n) LORIKEET_INLINED {
      Vec::Pairs weights[kColumns];
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        weights[c] = Vec::pairs_of_nibbles(words[c], 4 * n);
      });
      visit(4 * word + n, weights);
    });
  }
}

template <typename Visit>
LORIKEET_INLINED inline void for_pairs(const Block8<kPanel>& block, Visit visit) {
#pragma GCC unroll 4
  for (int pair = 0; pair < kBlockDepth / 2; ++pair) {
    Vec::Pairs weights[kColumns];
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      weights[c] = Vec::pairs_of_bytes(&block.codes[pair][c * kWidth][0]);
    });
    visit(pair, weights);
  }
}

// The codes at one k.
inline Vec codes_at(const Block4<kPanel>& block, int k, int column) {
  return Vec::nibbles(Vec::load_words(&block.codes[k / 8][column]), 4 * (k % 8));
}
inline Vec codes_at(const Block8<kPanel>& block, int k, int column) {
  const int8_t* pairs = &block.codes[pair_of(k)][column][0];
  return place_in_pair(k) ? Vec::load_of_pairs<1>(pairs) : Vec::load_of_pairs<0>(pairs);
}

// Codes count from here, so that the error of a row's code meets small factors.
template <typename Block>
constexpr int kMiddle = requires(Block block) { block.low; } ? 8 : 0;

// weight = step * (code - kMiddle) + at_middle
template <typename Block>
struct ColumnScales {
  Vec step[kColumns], at_middle[kColumns];

  explicit ColumnScales(const Block& block) {
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      step[c] = Vec::load(block.step + c * kWidth);
      if constexpr (kMiddle<Block> != 0) {
        const Vec low = Vec::load(block.low + c * kWidth);
        at_middle[c] = fma(step[c], Vec::set(kMiddle<Block>), low);
      }
    });
  }
};

// Adds the products of one block to the sums of a row. `codes`: of code * (code - kMiddle).
template <typename Block>
LORIKEET_INLINED inline void add_block(float* total, const Vec::Pairs (&codes)[kColumns],
                                       const ColumnScales<Block>& scales,
                                       const BlockOfRow& of_row) {
  const Vec scale = Vec::set(of_row.scale), sum = Vec::set(of_row.sum);
  unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
    Vec result = Vec::load(total + c * kWidth);
    result = fma(Vec::of_pairs(codes[c]), scales.step[c] * scale, result);
    if constexpr (kMiddle<Block> != 0) result = fma(scales.at_middle[c], sum, result);
    result.store(total + c * kWidth);
  });
}

// And that of its outlier.
template <typename Block>
inline void add_outlier(float* total, const ColumnScales<Block>& scales, const Block& block,
                        const BlockOfRow& of_row) {
  for (int c = 0; c < kColumns; ++c) {
    const Vec code = codes_at(block, of_row.outlier, c * kWidth) - Vec::set(kMiddle<Block>);
    const Vec result = Vec::load(total + c * kWidth);
    fma(code * scales.step[c], Vec::set(of_row.outlying), result).store(total + c * kWidth);
  }
}

struct IntegerArguments {
  RowsOfIntegers x;
  int depth;  // blocks
  int ahead;  // bytes to prefetch ahead
  Fetching* fetching;
  float* y;
  int64_t y_stride;
  int columns;
};

template <int kRows, typename Block>
inline void block(const IntegerArguments& p, const Block* panel) {
  alignas(64) float total[kRows][kPanel] = {};
  for (int b = 0; b < p.depth; ++b, ++panel) {
    if (p.fetching->left > 0) p.fetching->step();
    fetch<int(sizeof(Block))>(reinterpret_cast<const char*>(panel) + p.ahead);
    const RowsOfIntegers x = p.x.from_block(b);
    Vec::Pairs sum[kRows][kColumns];
    unrolled<kRows>([&](auto r) LORIKEET_INLINED {
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        sum[r][c] = Vec::sum_of_pairs(-kMiddle<Block> * x.block(r).code_sum);
      });
    });
    for_pairs(*panel, [&](int pair, const Vec::Pairs(&weights)[kColumns]) LORIKEET_INLINED {
      unrolled<kRows>([&](auto r) LORIKEET_INLINED {
        const Vec::Pairs xk = Vec::pair_everywhere(x.codes + r * x.stride + 2 * pair);
        unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
          sum[r][c] = Vec::add_products(sum[r][c], xk, weights[c]);
        });
      });
    });
    const ColumnScales<Block> scales(*panel);
    unrolled<kRows>([&](auto r) LORIKEET_INLINED {
      add_block(total[r], sum[r], scales, x.block(r));
    });
    for (int r = 0; r < kRows; ++r) {  // now that the sums need no registers
      if (x.block(r).outlier >= 0) add_outlier(total[r], scales, *panel, x.block(r));
    }
  }
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      const int rest = p.columns - c * kWidth;
      if (rest > 0) {
        store_up_to(Vec::load(total[r] + c * kWidth), p.y + r * p.y_stride + c * kWidth,
                    rest < kWidth ? rest : kWidth);
      }
    });
  });
}

template <typename Block>
void linear_panel_of_integers_as(const RowsOfIntegers& x, int rows, const Block* panel, int in,
                                 float* y, int64_t y_stride, int columns, Fetching* fetching) {
  // The first rows bring the weights in, which is as much as the queue of misses holds.
  const int blocks = ceil_div(rows, kMaxIntegerRows), fetching_blocks = blocks == 1 ? 1 : blocks - 1;
  if (fetching->left > 0) fetching->spread(fetching_blocks * (in / kBlockDepth));
  Fetching nothing;
  over_row_blocks<kMaxIntegerRows>(rows, [&](int row, int count) {
    const bool first = row == 0;
    const IntegerArguments arguments{x.from(row),
                                     in / kBlockDepth,
                                     first ? kBlocksAhead : 0,
                                     first && blocks > 1 ? &nothing : fetching,
                                     y + row * y_stride,
                                     y_stride,
                                     columns};
    row_block<kMaxIntegerRows>(count, arguments, panel);
  });
}

void linear_panel_of_integers(const RowsOfIntegers& x, int rows, const void* panel, DType dtype,
                              int in, float* y, int64_t y_stride, int columns,
                              Fetching* fetching) {
  const auto run = [&](const auto* typed) {
    linear_panel_of_integers_as(x, rows, typed, in, y, y_stride, columns, fetching);
  };
  if (dtype == DType::kBlock4) {
    run(static_cast<const Block4<kPanel>*>(panel));
  } else {
    run(static_cast<const Block8<kPanel>*>(panel));
  }
}

}  // namespace lorikeet::LORIKEET_ISA
