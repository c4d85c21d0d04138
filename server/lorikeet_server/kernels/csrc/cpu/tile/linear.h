// Rows times one packed panel. Every output is the sum, in ascending order, of its sums over kRun
// steps of k, for any number of rows: a row's result does not depend on its batch.
#pragma once

namespace lorikeet::LORIKEET_ISA {

// Two vectors of columns and as many rows as the registers hold: accumulators, the two vectors, and
// one broadcast.
constexpr int kColumns = 2;
constexpr int kPanel = kColumns * kWidth;
constexpr int kMaxRows = kWidth == 16 ? 12 : 6;

// The rounding error of a sum grows with its length. Of sums this long, added up, it stays what
// torch's is, where one sum over all of k had 2 to 8 times as much (k from 576 to 12288). Higham,
// "The accuracy of floating point summation" (1993), section 3.
constexpr int kRun = 192;

// Where blocks of rows read a panel again, k is cut into slices that stay in the first-level cache.
constexpr int kSliceOfK = 192;

// The hardware's own prefetcher does not run far enough ahead of a loop that computes on every
// line: fetching 16 KB ahead into L2 halved the time of 8 rows against a 200 MB weight (measured,
// Sapphire Rapids, one core).
constexpr int kFetchAhead = 16384;

// Once per line, whatever part of a line a step of k is. Inlined by force: GCC takes a function that
// only prefetches for one without effect, and leaves out the calls of it.
template <int kBytes>
LORIKEET_INLINED inline void fetch(const char* address) {
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(address + i, 0, 2);
}

// One step of k.
template <int kRows>
LORIKEET_INLINED inline void multiply_add(Vec (&sum)[kRows][kColumns], const float* x,
                                          int64_t x_stride, const Vec (&w)[kColumns]) {
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    const Vec xk = Vec::set(x[r * x_stride]);
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED { sum[r][c] = fma(xk, w[c], sum[r][c]); });
  });
}

// Adds the products of k from `begin` to before `end`.
template <int kRows, typename T>
LORIKEET_INLINED inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x,
                                        int64_t x_stride, const T* panel, int begin, int end,
                                        int ahead) {
  panel += int64_t{begin} * kPanel;
  for (int k = begin; k < end; ++k, panel += kPanel) {
    fetch<kPanel * sizeof(T)>(reinterpret_cast<const char*>(panel) + ahead);
    multiply_add(sum, x + k, x_stride, {Vec::load(panel), Vec::load(panel + kWidth)});
  }
}

// Columns hold pairs (k, k + 1), so that widening takes no shuffle. One of a pair at a time: beside
// both, the registers do not hold the sums of many rows.
template <int kRows>
LORIKEET_INLINED inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x,
                                        int64_t x_stride, const bfloat16_t* panel, int begin,
                                        int end, int ahead) {
  panel += int64_t{begin} * kPanel;
  x += begin;
  const auto add = [&](auto second) LORIKEET_INLINED {
    Vec w[kColumns];
    unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
      w[c] = Vec::load_of_pairs<second>(panel + c * kPanel);
    });
    multiply_add(sum, x + second, x_stride, w);
  };
  int left = end - begin;
  for (; left >= 2; left -= 2, x += 2, panel += 2 * kPanel) {
    fetch<kPanel * 4>(reinterpret_cast<const char*>(panel) + ahead);
    add(std::integral_constant<int, 0>());
    add(std::integral_constant<int, 1>());
  }
  if (left) add(std::integral_constant<int, 0>());
}

struct PanelArguments {
  const float* x;
  int64_t x_stride;
  int k_count;
  bool resume;  // y already holds the sum over smaller k
  int ahead;    // bytes to prefetch ahead: none when the panel is already in cache
  Fetching* fetching;
  float* y;
  int64_t y_stride;
  int columns;
};

template <int kRows, typename T>
inline void block(const PanelArguments& p, const T* panel) {
  // Calls visit(r, c, y, count) for each vector of y, of which `count` columns exist.
  const auto for_sums = [&](auto visit) LORIKEET_INLINED {
    unrolled<kRows>([&](auto r) LORIKEET_INLINED {
      unrolled<kColumns>([&](auto c) LORIKEET_INLINED {
        const int rest = p.columns - c * kWidth;
        visit(r, c, p.y + r * p.y_stride + c * kWidth, rest < kWidth ? rest : kWidth);
      });
    });
  };
  Vec total[kRows][kColumns];
  for_sums([&](auto r, auto c, const float* y, int count) LORIKEET_INLINED {
    total[r][c] = p.resume && count > 0 ? load_up_to(y, count) : Vec::zero();
  });
  for (int k = 0; k < p.k_count; k += kRun) {
    if (p.fetching->left > 0) p.fetching->step();
    Vec sum[kRows][kColumns];
    for_sums([&](auto r, auto c, auto, auto) LORIKEET_INLINED { sum[r][c] = Vec::zero(); });
    const int end = p.k_count - k < kRun ? p.k_count : k + kRun;
    accumulate(sum, p.x, p.x_stride, panel, k, end, p.ahead);
    for_sums([&](auto r, auto c, auto, auto) LORIKEET_INLINED {
      total[r][c] = total[r][c] + sum[r][c];
    });
  }
  for_sums([&](auto r, auto c, float* y, int count) LORIKEET_INLINED {
    if (count > 0) store_up_to(total[r][c], y, count);
  });
}

template <int kMost, typename Arguments, typename T>
inline void row_block(int rows, const Arguments& p, const T* panel) {
  as_constant<kMost>(rows, [&](auto count) LORIKEET_INLINED { block<count>(p, panel); });
}

// Calls visit(row, count) for as few and as even blocks of rows as registers allow.
template <int kMost, typename Visit>
inline void over_row_blocks(int rows, Visit visit) {
  const int blocks = ceil_div(rows, kMost);
  for (int b = 0, row = 0; b < blocks; ++b) {
    const int count = (rows - row) / (blocks - b);
    visit(row, count);
    row += count;
  }
}

// All rows times one slice of k.
template <typename T>
void row_blocks(const float* x, int64_t x_stride, int rows, const T* panel, int k_count,
                bool resume, int ahead, Fetching* fetching, float* y, int64_t y_stride,
                int columns) {
  over_row_blocks<kMaxRows>(rows, [&](int row, int count) {
    const int distance = row == 0 ? ahead : 0;
    const PanelArguments arguments{x + row * x_stride, x_stride, k_count, resume, distance, fetching,
                                   y + row * y_stride, y_stride, columns};
    row_block<kMaxRows>(count, arguments, panel);
  });
}

template <typename T>
void linear_panel_of(const float* x, int64_t x_stride, int rows, const T* panel, int in, float* y,
                     int64_t y_stride, int columns, Fetching* fetching) {
  const int slice = rows > kMaxRows ? kSliceOfK : in;
  for (int k = 0; k < in; k += slice) {
    row_blocks(x + k, x_stride, rows, panel + int64_t{k} * kPanel, in - k < slice ? in - k : slice,
               k > 0, kFetchAhead, fetching, y, y_stride, columns);
  }
}

}  // namespace lorikeet::LORIKEET_ISA
