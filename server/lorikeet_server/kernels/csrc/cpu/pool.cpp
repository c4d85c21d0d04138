#include "pool.h"

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lorikeet {
namespace {

using Clock = std::chrono::steady_clock;

// Between two ops of a step a helper waits a few microseconds, so sleeping at once would cost more
// than it saves. Between two steps it waits a millisecond, in which it gives way to whoever needs
// the core, but does not sleep: a thread that is woken may be put on the caller's core, beside an
// idle one, and stay there for many steps (measured, one client on two cores: periods of 13.6 ms a
// token instead of 7.6). Longer waits mean that there is nothing to do.
constexpr auto kHelperSpin = std::chrono::microseconds(50);
constexpr auto kCallerSpin = std::chrono::microseconds(20);
constexpr auto kYielding = std::chrono::milliseconds(2);

constexpr uint32_t kClosed = 0x7fffffff;  // above any tile: nothing can be claimed
constexpr uint64_t packed(uint32_t epoch, uint32_t tile) { return uint64_t{epoch} << 32 | tile; }

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits without sleeping, for `limit` alone on the core; false when that was in vain.
template <typename Ready>
bool spin(std::chrono::microseconds limit, Ready ready) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    pause();
  }
  const auto start = Clock::now();
  for (auto now = start; now < start + limit + kYielding; now = Clock::now()) {
    if (now >= start + limit) std::this_thread::yield();
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      pause();
    }
  }
  return ready();
}

}  // namespace

Pool& Pool::instance() {
  static Pool* pool = new Pool;  // never destroyed: helpers may outlive main
  return *pool;
}

void Pool::set_threads(int count) {
  const std::lock_guard lock(mutex_);
  threads_ = count < 1 ? 1 : count > kMaxThreads ? kMaxThreads : count;
}

void Pool::start_threads() {
  while (started_ < threads_ - 1) {
    const int index = ++started_;
    std::thread([this, index] { help(index); }).detach();
  }
}

void Pool::run(int count, Function function, const void* context) {
  const std::lock_guard lock(mutex_);
  if (count <= 1 || threads_ == 1) {
    for (int tile = 0; tile < count; ++tile) function(context, tile);
    return;
  }
  start_threads();
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  for (int i = 0; i < threads_; ++i) {  // before any field of the old job changes
    stretches_[i].claimed.store(packed(epoch, kClosed), std::memory_order_relaxed);
  }
  function_.store(function, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  count_.store(count, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  stretch_count_.store(threads_, std::memory_order_release);
  for (int i = 0; i < threads_; ++i) {
    const auto first = uint32_t(int64_t{count} * i / threads_);
    stretches_[i].claimed.store(packed(epoch, first), std::memory_order_release);
  }
  epoch_.store(epoch);  // sequentially consistent with sleeping_: either we see the sleeper or it
                        // sees the epoch
  if (sleeping_.load() > 0) epoch_.notify_all();

  work_on(epoch, 0);
  const auto all_done = [&] { return done_.load(std::memory_order_acquire) == count; };
  if (spin(kCallerSpin, all_done)) return;
  caller_sleeps_.store(true);
  for (int seen = done_.load(); seen != count; seen = done_.load()) done_.wait(seen);
  caller_sleeps_.store(false);
}

bool Pool::claim(uint32_t epoch, int stretch, int* tile) {
  std::atomic<uint64_t>& claimed = stretches_[stretch].claimed;
  uint64_t seen = claimed.load(std::memory_order_acquire);
  const int64_t count = count_.load(std::memory_order_acquire),
                stretches = stretch_count_.load(std::memory_order_acquire);
  const auto end = int(count * (stretch + 1) / stretches);
  do {
    *tile = int(uint32_t(seen));
    if (uint32_t(seen >> 32) != epoch || *tile >= end) return false;
  } while (!claimed.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  return true;
}

void Pool::work_on(uint32_t epoch, int index) {
  // Read before the first claim: a successful claim proves that the job was still this one.
  const Function function = function_.load(std::memory_order_acquire);
  const void* context = context_.load(std::memory_order_acquire);
  const int stretches = stretch_count_.load(std::memory_order_acquire);
  int finished = 0;
  for (int i = 0; i < stretches; ++i) {
    for (int tile; claim(epoch, (index + i) % stretches, &tile); ++finished) {
      function(context, tile);
    }
  }
  if (finished == 0) return;
  done_.fetch_add(finished);
  if (caller_sleeps_.load()) done_.notify_one();
}

void Pool::help(int index) {
  uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!spin(kHelperSpin, changed)) {
      sleeping_.fetch_add(1);
      while (!changed()) epoch_.wait(seen);
      sleeping_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    work_on(seen, index);
  }
}

}  // namespace lorikeet
