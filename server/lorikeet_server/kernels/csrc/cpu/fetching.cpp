#include "fetching.h"

#include <algorithm>

namespace lorikeet {

void Lines::add(const void* first, int64_t bytes) {
  const int64_t before = count();
  const auto base = reinterpret_cast<uintptr_t>(first) - uintptr_t(before * kLine);
  stretches_.push_back({base, bytes, before + (bytes + kLine - 1) / kLine});
}

Lines::Part Lines::range(int64_t first, int64_t end, int64_t index) const {
  const auto in = std::partition_point(stretches_.begin(), stretches_.end(),
                                       [&](const Stretch& each) { return each.end <= first; });
  Part part;
  part.stretch_ = stretches_.data() + (in - stretches_.begin());
  part.line_ = first;
  part.end_ = end;
  part.index_ = index;
  return part;
}

Lines::Part Lines::part(int index, int count) const {
  return range(this->count() * index / count, this->count() * (index + 1) / count);
}

int64_t Lines::Part::fetch(int64_t most) {
  const int64_t before = line_, end = std::min(end_, line_ + most);
  while (line_ < end) {
    const Stretch& in = *stretch_;
    const int64_t here = std::min(end, in.end);
    const uintptr_t base = in.base + uintptr_t(index_ * in.bytes);
    for (int64_t line = line_; line < here; ++line) {
      __builtin_prefetch(reinterpret_cast<const char*>(base + uintptr_t(line * kLine)), 0, 2);
    }
    line_ = here;
    if (line_ == in.end) ++stretch_;
  }
  return line_ - before;
}

void Fetching::spread(int steps) {
  // Fewer are not worth the call, where a step is short.
  constexpr int64_t kLeast = 2;
  per_step_ = std::max(kLeast, (left + steps - 1) / steps);
}

void Fetching::step() {
  const int64_t sooner = first_.fetch(per_step_);
  left -= sooner + then_.fetch(per_step_ - sooner);
}

}  // namespace lorikeet
