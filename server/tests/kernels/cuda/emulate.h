// Runs CUDA kernels on a CPU, one block at a time, each thread a fiber. Block-wide and warp-wide operations hand over to the
// next fiber until all have arrived, so a missing barrier or a wrong fragment index shows as a wrong number.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

namespace lorikeet {

struct Index {
  int x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx;

// The fibers of one block.
class Block {
 public:
  explicit Block(int threads) : fibers_(threads), stacks_(threads) {
    for (auto& stack : stacks_) stack.reset(new char[kStack]);
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    live_ = static_cast<int>(fibers_.size());
    current() = this;
    for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
      Fiber& fiber = fibers_[i];
      fiber.done = false;
      fiber.arrivals = 0;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_[i].get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &main_;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
    }
    while (live_ > 0) {
      for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
        if (fibers_[i].done) continue;
        active_ = i;
        threadIdx.x = i;
        swapcontext(&main_, &fibers_[i].context);
      }
    }
  }

  // Waits until every fiber in [first, last) that still runs has arrived as often as this one.
  void barrier(int first, int last) {
    const int me = active_;
    const int arrivals = ++fibers_[me].arrivals;
    for (;;) {
      bool all = true;
      for (int i = first; i < last; ++i) all = all && (fibers_[i].done || fibers_[i].arrivals >= arrivals);
      if (all) return;
      swapcontext(&fibers_[me].context, &main_);
      threadIdx.x = me;
    }
  }

  int size() const { return static_cast<int>(fibers_.size()); }
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

 private:
  static constexpr int kStack = 256 << 10;
  struct Fiber {
    ucontext_t context;
    bool done = false;
    int arrivals = 0;
  };

  static void enter() {
    Block* block = current();
    (*block->body_)();
    block->fibers_[block->active_].done = true;
    --block->live_;
  }

  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  ucontext_t main_;
  const std::function<void()>* body_ = nullptr;
  int active_ = 0, live_ = 0;
};

inline void __syncthreads() { Block::current()->barrier(0, Block::current()->size()); }

inline void sync_warp() {
  const int first = threadIdx.x / 32 * 32;
  Block::current()->barrier(first, first + 32);
}

// kernel<<<grid, threads>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(Index grid, int threads, Kernel kernel, Arguments... arguments) {
  Block block(threads);
  for (int z = 0; z < grid.z; ++z) {
    for (int y = 0; y < grid.y; ++y) {
      for (int x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        block.run([&] { kernel(arguments...); });
      }
    }
  }
}

struct alignas(16) Quad {
  uint32_t word[4];
};
struct alignas(8) Pair {
  uint32_t word[2];
};

// Also checks what the hardware would trap on.
template <class V>
V load_streaming(const V* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(V) != 0) {
    std::fprintf(stderr, "misaligned load of %zu bytes\n", sizeof(V));
    std::abort();
  }
  return *from;
}

inline void wait_for_previous() {}
inline void release_next() {}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <class T>
void emulate_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static uint32_t fragments_a[32][4][4], fragments_b[32][4][2];  // [lane][warp]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::memcpy(fragments_a[lane][warp], a, sizeof a);
  std::memcpy(fragments_b[lane][warp], b, sizeof b);
  sync_warp();
  const auto half = [](uint32_t word, int i) { return T::to_float(static_cast<uint16_t>(word >> (16 * i))); };
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, upper = k / 8;
      const float left = half(fragments_a[row % 8 * 4 + owner][warp][upper * 2 + row / 8], k % 2);
      const float right = half(fragments_b[column * 4 + owner][warp][upper], k % 2);
      sum += left * right;
    }
    c[i] += sum;
  }
  sync_warp();
}

struct Bf16 {
  static float to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  static uint16_t from_float(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate_mma<Bf16>(c, a, b); }
};

struct Fp16 {
  static float to_float(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
  static uint16_t from_float(float value) {
    const auto half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
  static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate_mma<Fp16>(c, a, b); }
};

}  // namespace lorikeet
