#include "fetching.h"

#include <algorithm>

namespace lorikeet {

void Lines::add(const void* first, int64_t count, int64_t stride) {
  const int64_t before = this->count();
  const auto base = reinterpret_cast<uintptr_t>(first) - uintptr_t(before * stride);
  stretches_.push_back({base, stride, before + count});
}

Lines::Part Lines::range(int64_t first, int64_t end, int64_t offset) const {
  const auto in = std::partition_point(stretches_.begin(), stretches_.end(),
                                       [&](const Stretch& each) { return each.end <= first; });
  Part part;
  part.stretch_ = stretches_.data() + (in - stretches_.begin());
  part.line_ = first;
  part.end_ = end;
  part.offset_ = offset;
  return part;
}

Lines::Part Lines::part(int index, int count) const {
  return range(this->count() * index / count, this->count() * (index + 1) / count);
}

int64_t Lines::Part::fetch(int64_t most) {
  const int64_t before = line_, end = std::min(end_, line_ + most);
  while (line_ < end) {
    const Stretch& in = *stretch_;
    const int64_t here = std::min(end, in.end), stride = in.stride;
    auto* address = reinterpret_cast<const char*>(in.base + uintptr_t(line_ * stride + offset_));
    for (int64_t left = here - line_; left > 0; --left, address += stride) {
      __builtin_prefetch(address, 0, 2);
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
