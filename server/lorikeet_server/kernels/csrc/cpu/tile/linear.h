// Rows times one packed panel. Every output is one sum over k in ascending order, for any number of
// rows: a row's result does not depend on its batch.
#pragma once

namespace lorikeet::LORIKEET_ISA {

constexpr int kVectors = kPanel / kWidth;

// Registers: accumulators + one vector per column group + one broadcast.
constexpr int kMaxRows = kWidth == 16 ? 12 : 6;
constexpr int kMaxRowsFullWidth = kWidth == 16 ? 12 : 2;

// Long sums over many row blocks go in slices of k, so that the slice of the panel stays in cache.
constexpr int kSliceOfK = 512;

// The hardware's own prefetcher does not run far enough ahead of a loop that computes on every
// line: fetching 16 KB ahead into L2 halved the time of 8 rows against a 200 MB weight (measured,
// Sapphire Rapids, one core).
constexpr int kFetchAhead = 16384;

template <int kLines>
inline void fetch(const void* line) {
  for (int i = 0; i < kLines; ++i)
    __builtin_prefetch(static_cast<const char*>(line) + 64 * i, 0, 2);
}

template <int kRows, int kColumns, typename T>
inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x, int64_t x_stride,
                       const T* panel, int k_count, int ahead) {
  for (int k = 0; k < k_count; ++k) {
    fetch<kColumns * kWidth* int(sizeof(T)) / 64>(
        reinterpret_cast<const char*>(panel + k * kPanel) + ahead);
    Vec w[kColumns];
    for (int c = 0; c < kColumns; ++c) w[c] = Vec::load(panel + k * kPanel + c * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const Vec xk = Vec::set(x[r * x_stride + k]);
      for (int c = 0; c < kColumns; ++c) sum[r][c] = fma(xk, w[c], sum[r][c]);
    }
  }
}

template <int kRows, int kColumns>
inline void accumulate(Vec (&sum)[kRows][kColumns], const float* x, int64_t x_stride,
                       const bfloat16_t* panel, int k_count, int ahead) {
  for (int k = 0; k < k_count; k += 2) {
    fetch<kColumns * kWidth * 4 / 64>(reinterpret_cast<const char*>(panel + k * kPanel) + ahead);
    Vec w[2][kColumns];
    for (int c = 0; c < kColumns; ++c)
      Vec::load_pair(panel + k * kPanel + 2 * c * kWidth, w[0][c], w[1][c]);
    for (int odd = 0; odd < 2 && k + odd < k_count; ++odd) {
      for (int r = 0; r < kRows; ++r) {
        const Vec xk = Vec::set(x[r * x_stride + k + odd]);
        for (int c = 0; c < kColumns; ++c) sum[r][c] = fma(xk, w[odd][c], sum[r][c]);
      }
    }
  }
}

struct PanelArguments {
  const float* x;
  int64_t x_stride;
  int k_count;
  bool resume;  // y already holds the sum over smaller k
  int ahead;    // bytes to prefetch ahead: none when the panel is already in cache
  float* y;
  int64_t y_stride;
  int columns;
};

template <int kRows, int kColumns, typename T>
inline void block(const PanelArguments& p, const T* panel, int first_column) {
  const int columns = p.columns - first_column;
  float* y = p.y + first_column;
  Vec sum[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      const int count = columns - c * kWidth;
      if (!p.resume || count <= 0) {
        sum[r][c] = Vec::zero();
      } else {
        sum[r][c] = load_up_to(y + r * p.y_stride + c * kWidth, count < kWidth ? count : kWidth);
      }
    }
  }
  constexpr int kPairs = sizeof(T) == 2 && !__is_same(T, half_t) ? 2 : 1;
  accumulate<kRows, kColumns>(sum, p.x, p.x_stride, panel + first_column * kPairs, p.k_count,
                              p.ahead);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      const int count = columns - c * kWidth;
      if (count > 0)
        store_up_to(sum[r][c], y + r * p.y_stride + c * kWidth, count < kWidth ? count : kWidth);
    }
  }
}

template <int kRows, typename T>
inline void row_block(int rows, const PanelArguments& p, const T* panel) {
  if (rows < kRows) {
    if constexpr (kRows > 1) row_block<kRows - 1>(rows, p, panel);
  } else if constexpr (kRows <= kMaxRowsFullWidth) {
    block<kRows, kVectors>(p, panel, 0);
  } else {
    constexpr int kColumns = 2;
    for (int first = 0; first < p.columns; first += kColumns * kWidth)
      block<kRows, kColumns>(p, panel, first);
  }
}

template <typename T>
void linear_panel_of(const float* x, int64_t x_stride, int rows, const T* panel, int in, float* y,
                     int64_t y_stride, int columns) {
  const int blocks = ceil_div(rows, kMaxRows);
  const int slice = blocks > 1 ? kSliceOfK : in;
  for (int k = 0; k < in; k += slice) {
    const int k_count = in - k < slice ? in - k : slice;
    for (int b = 0, row = 0; b < blocks; ++b) {
      const int count = (rows - row) / (blocks - b);
      const PanelArguments arguments{
          x + row * x_stride + k,   x_stride,           k_count,  k > 0,
          b == 0 ? kFetchAhead : 0, y + row * y_stride, y_stride, columns};
      row_block<kMaxRows>(count, arguments, panel + int64_t{k} * kPanel);
      row += count;
    }
  }
}

void linear_panel(const float* x, int64_t x_stride, int rows, const void* panel, DType dtype,
                  int in, float* y, int64_t y_stride, int columns) {
  switch (dtype) {
    case DType::kFloat32:
      return linear_panel_of(x, x_stride, rows, static_cast<const float*>(panel), in, y, y_stride,
                             columns);
    case DType::kFloat16:
      return linear_panel_of(x, x_stride, rows, static_cast<const half_t*>(panel), in, y, y_stride,
                             columns);
    case DType::kBFloat16:
      return linear_panel_of(x, x_stride, rows, static_cast<const bfloat16_t*>(panel), in, y,
                             y_stride, columns);
  }
}

}  // namespace lorikeet::LORIKEET_ISA
