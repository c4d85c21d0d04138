// Loops over accumulators. Where a compiler is free to loop or to call, it now and then keeps the
// sums in memory, at half the speed, after a change elsewhere: so they are only touched with
// constant indices, from code that is inlined whatever it thinks.
#pragma once
#include <utility>

// On functions, and on lambdas behind their parameters.
#define LORIKEET_INLINED __attribute__((always_inline))

namespace lorikeet::LORIKEET_ISA {

// Calls visit(0) to visit(kCount - 1), each with a constant.
template <int kCount, typename Visit>
LORIKEET_INLINED inline void unrolled(Visit visit) {
  const auto each = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) LORIKEET_INLINED {
    (visit(std::integral_constant<int, kIndex>()), ...);
  };
  each(std::make_integer_sequence<int, kCount>());
}

// Calls visit with `count`, of 1 to kMost, as a constant.
template <int kMost, typename Visit>
LORIKEET_INLINED inline void as_constant(int count, Visit visit) {
  if (count == kMost) {
    visit(std::integral_constant<int, kMost>());
  } else if constexpr (kMost > 1) {
    as_constant<kMost - 1>(count, visit);
  }
}

// Calls visit(first, count) for blocks of kMost, then for what is left: `count` is a constant.
template <int kMost, typename Visit>
LORIKEET_INLINED inline void in_blocks_of(int all, Visit visit) {
  int first = 0;
  for (; first + kMost <= all; first += kMost) visit(first, std::integral_constant<int, kMost>());
  if (first == all) return;
  as_constant<kMost - 1>(all - first,
                         [&](auto count) LORIKEET_INLINED { visit(first, count); });
}

}  // namespace lorikeet::LORIKEET_ISA
