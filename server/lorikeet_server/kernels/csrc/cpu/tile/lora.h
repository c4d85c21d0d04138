// The two halves of a LoRA product. Sums run in ascending k (shrink: per lane) and in ascending rank
// (expand), whatever the block of rows.
#pragma once

namespace lorikeet::LORIKEET_ISA {

template <int kRows, int kRanks, typename T>
inline void shrink_block(const ShrinkTile& t, const T* a, const int32_t* rows, float* v) {
  Vec sum[kRows][kRanks];
  const float* x[kRows];
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    x[r] = t.x + rows[r] * t.x_stride;
    unrolled<kRanks>([&](auto j) LORIKEET_INLINED { sum[r][j] = Vec::zero(); });
  });
  for_vectors(t.in, [&](int k, int count) LORIKEET_INLINED {
    Vec xk[kRows];
    unrolled<kRows>([&](auto r) LORIKEET_INLINED { xk[r] = load_up_to(x[r] + k, count); });
    unrolled<kRanks>([&](auto j) LORIKEET_INLINED {
      const Vec ak = load_up_to(a + int64_t{j} * t.in + k, count);
      unrolled<kRows>([&](auto r) LORIKEET_INLINED { sum[r][j] = fma(xk[r], ak, sum[r][j]); });
    });
  });
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    unrolled<kRanks>(
        [&](auto j) LORIKEET_INLINED { v[r * t.v_stride + j] = sum_lanes(sum[r][j]); });
  });
}

// Rows that share what is read of an adapter, as many as leave registers.
constexpr int kShrinkRows = kWidth == 16 ? 4 : 2;
constexpr int kExpandRows = 4;

template <int kRows, typename T>
inline void shrink_rows(const ShrinkTile& t, int first) {
  const T* a = static_cast<const T*>(t.a);
  constexpr int kRanks = kRows < kShrinkRows ? 8 : 4;
  const int32_t* rows = t.rows + first;
  float* v = t.v + first * t.v_stride;
  int j = 0;
  for (; j + kRanks <= t.ranks; j += kRanks)
    shrink_block<kRows, kRanks>(t, a + int64_t{j} * t.in, rows, v + j);
  for (; j < t.ranks; ++j) shrink_block<kRows, 1>(t, a + int64_t{j} * t.in, rows, v + j);
}

template <typename T>
void shrink_as(const ShrinkTile& t) {
  in_blocks_of<kShrinkRows>(t.row_count, [&](int row, auto count) LORIKEET_INLINED {
    shrink_rows<count, T>(t, row);
  });
}

void shrink(const ShrinkTile& t) {
  switch (t.dtype) {
    case DType::kFloat32:
      return shrink_as<float>(t);
    case DType::kFloat16:
      return shrink_as<half_t>(t);
    case DType::kBFloat16:
      return shrink_as<bfloat16_t>(t);
    default:
      return;  // packed weights only
  }
}

// Columns of B that lie in one panel: kVectors full vectors from `column` on, or one of `count`.
struct PanelColumns {
  int column, count;
  int panel, width;  // the panel's first column, and how many it has
};

// Those of kRows rows of an expansion.
template <int kRows, int kVectors, typename T>
LORIKEET_INLINED inline void expand_block(const ExpandTile& t, const Expansion& e, int first,
                                          const PanelColumns& columns) {
  const int column = columns.column;
  const int count = kVectors > 1 ? kWidth : columns.count;  // else asked at every vector
  const auto* g = reinterpret_cast<const float*>(e.entry->g);
  const float* v = e.v + first * t.v_stride;
  const int rank = e.entry->rank;
  const T* b = reinterpret_cast<const T*>(e.entry->b) + int64_t{columns.panel} * rank +
               (column - columns.panel);
  Vec sum[kRows][kVectors];
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    unrolled<kVectors>([&](auto c) LORIKEET_INLINED { sum[r][c] = Vec::zero(); });
  });
  for (int j = 0; j < rank; ++j, b += columns.width) {
    Vec bj[kVectors];
    unrolled<kVectors>(
        [&](auto c) LORIKEET_INLINED { bj[c] = load_up_to(b + c * kWidth, count); });
    unrolled<kRows>([&](auto r) LORIKEET_INLINED {
      const Vec vj = Vec::set(v[r * t.v_stride + j]);
      unrolled<kVectors>([&](auto c) LORIKEET_INLINED { sum[r][c] = fma(vj, bj[c], sum[r][c]); });
    });
  }
  const Vec scale = Vec::set(e.entry->scale);
  unrolled<kRows>([&](auto r) LORIKEET_INLINED {
    float* y = t.y + e.rows[first + r] * t.y_stride + column;
    unrolled<kVectors>([&](auto c) LORIKEET_INLINED {
      Vec value = fma(scale, sum[r][c], load_up_to(y + c * kWidth, count));
      if (g) value = value * load_up_to(g + column + c * kWidth, count);
      store_up_to(value, y + c * kWidth, count);
    });
  });
}

// The same of all rows of all expansions.
template <int kVectors, typename T>
LORIKEET_INLINED inline void expand_columns(const ExpandTile& tile, const PanelColumns& columns) {
  const ExpandTile t = tile;  // else read again after every store
  for (int i = 0; i < t.count; ++i) {
    const Expansion e = t.expansions[i];
    in_blocks_of<kExpandRows>(e.row_count, [&](int row, auto count) LORIKEET_INLINED {
      expand_block<count, kVectors, T>(t, e, row, columns);
    });
  }
}

inline int least(int a, int b) { return a < b ? a : b; }

template <typename T>
void expand_as(const ExpandTile& t) {
  const int end = t.first + t.columns;
  for (int column = t.first, next; column < end; column = next) {
    const int panel = column - column % t.panel, panel_end = least(panel + t.panel, t.width);
    const int last = least(panel_end, end), width = panel_end - panel;
    const bool full = last - column >= kPanel;
    next = least(column + (full ? kPanel : kWidth), last);
    const PanelColumns columns{column, least(next - column, kWidth), panel, width};
    full ? expand_columns<kColumns, T>(t, columns) : expand_columns<1, T>(t, columns);
  }
}

void expand(const ExpandTile& t) {
  switch (t.dtype) {
    case DType::kFloat32:
      return expand_as<float>(t);
    case DType::kFloat16:
      return expand_as<half_t>(t);
    case DType::kBFloat16:
      return expand_as<bfloat16_t>(t);
    default:
      return;  // packed weights only
  }
}

}  // namespace lorikeet::LORIKEET_ISA
