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

}  // namespace lorikeet::LORIKEET_ISA
