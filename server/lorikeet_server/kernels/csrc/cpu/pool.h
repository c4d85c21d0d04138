// Threads that share small tiles of work. Built for machines where other processes want the same
// cores: tiles are claimed one by one, a caller finishes alone if no helper gets a core, and a
// helper spins for microseconds, then gives way for milliseconds, before it sleeps. Each thread
// starts in its own stretch of the tiles, so that it streams through memory, and then helps the
// others.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>

namespace lorikeet {

class Pool {
 public:
  static Pool& instance();

  // Threads that may work at once, the caller included. Threads are started on first need and never
  // stopped.
  void set_threads(int count);
  int threads() const { return threads_; }

  // Calls work(tile) once for each tile in 0..count, on the caller and the helpers; returns when
  // all are done.
  template <typename Work>
  void run(int count, const Work& work) {
    run(
        count, [](const void* context, int tile) { (*static_cast<const Work*>(context))(tile); },
        &work);
  }

  // Held for a whole step, so that two callers take turns per step instead of per op.
  std::recursive_mutex& mutex() { return mutex_; }

 private:
  using Function = void (*)(const void*, int);

  void run(int count, Function function, const void* context);
  void help(int index);
  void work_on(uint32_t epoch, int index);
  bool claim(uint32_t epoch, int stretch, int* tile);
  void start_threads();

  std::recursive_mutex mutex_;
  int threads_ = 1, started_ = 0;

  static constexpr int kMaxThreads = 256;

  // The number of a job and the next tile of one stretch, packed: a late helper can never take a
  // tile of the job after the one it looked at.
  struct alignas(64) Stretch {
    std::atomic<uint64_t> claimed{0};
  };

  Stretch stretches_[kMaxThreads];
  alignas(64) std::atomic<int> stretch_count_{1};
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int> count_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // helpers sleep on it
  std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<int> done_{0};  // the caller sleeps on it
  std::atomic<bool> caller_sleeps_{false};
};

}  // namespace lorikeet
