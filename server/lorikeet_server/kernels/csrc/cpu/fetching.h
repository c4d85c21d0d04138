// Memory that is read soon, brought into the cache beside arithmetic that leaves the memory idle.
// An adapter's matrices meet few rows: what takes time is their way from memory.
#pragma once
#include <cstdint>
#include <vector>

namespace lorikeet {

constexpr int kLine = 64;  // bytes that the processor fetches at once

// Cache lines in many places, counted through.
class Lines {
 public:
  class Part;

  void clear() { stretches_.clear(); }
  void add(const void* first, int64_t bytes);
  int64_t count() const { return stretches_.empty() ? 0 : stretches_.back().end; }
  // Lines `first` to before `end`, or those of the index-th stretches of the same lengths, where
  // each has others behind it. Valid until something is added.
  Part range(int64_t first, int64_t end, int64_t index = 0) const;
  // The index-th of `count` equal parts.
  Part part(int index, int count) const;

 private:
  struct Stretch {
    uintptr_t base;  // line i lies at base + i * kLine
    int64_t bytes, end;
  };

  std::vector<Stretch> stretches_;
};

class Lines::Part {
 public:
  int64_t left() const { return end_ - line_; }
  // The next lines, `most` of them at most; returns how many it were.
  int64_t fetch(int64_t most);

 private:
  friend class Lines;
  const Stretch* stretch_ = nullptr;
  int64_t line_ = 0, end_ = 0, index_ = 0;
};

// What one tile fetches: some lines with every step of its loop, for a burst would fill the queue
// of misses and stop the loop itself.
class Fetching {
 public:
  Fetching() = default;
  Fetching(const Lines::Part& first, const Lines::Part& then)
      : left(first.left() + then.left()), first_(first), then_(then) {}

  int64_t left = 0;
  // Says how many steps the loop has.
  void spread(int steps);
  // A loop of hundreds of cycles a step calls this while something is left.
  void step();

 private:
  Lines::Part first_, then_;
  int64_t per_step_ = 0;
};

}  // namespace lorikeet
