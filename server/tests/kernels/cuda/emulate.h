// Runs CUDA kernels on a CPU, one block at a time, each thread a fiber. Block-wide and warp-wide operations hand over to the
// next fiber until all have arrived, so a missing barrier or a wrong fragment index shows as a wrong number.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

namespace lorikeet {

// What a fiber needs to go on: on x86-64 its stack pointer, since swapcontext makes two system calls.
#ifdef __x86_64__
using Context = void*;

// Weak, since every source has it.
extern "C" void lorikeet_switch(Context* save, Context load);
asm(".text\n.hidden lorikeet_switch\n.weak lorikeet_switch\nlorikeet_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

inline void switch_to(Context& save, Context& load) { lorikeet_switch(&save, load); }

// `enter` must not return.
inline void begin(Context& context, Context&, char* stack, size_t size, void (*enter)()) {
  auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + size) / 16 * 16);
  *--top = nullptr;  // where `enter` would return to; and the alignment of a call
  *--top = reinterpret_cast<void*>(enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;

inline void switch_to(Context& save, Context& load) { swapcontext(&save, &load); }

inline void begin(Context& context, Context& main, char* stack, size_t size, void (*enter)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = &main;
  makecontext(&context, enter, 0);
}
#endif

struct Index {
  int x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, gridDim;
inline int this_thread() { return threadIdx.x; }

struct alignas(16) Quad {
  uint32_t word[4];
};
struct alignas(8) Pair {
  uint32_t word[2];
};
constexpr Quad kNans = {{0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000}};

// Copies that a thread has called for: they arrive when it waits for them, so that a missing wait shows.
struct Copies {
  struct Copy {
    Quad* to;
    Quad value;
  };
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
constexpr int kMaxThreads = 1024;
inline Copies copies[kMaxThreads];

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
      copies[i] = {};
      fibers_[i].done = fibers_[i].at_block = false;
      fibers_[i].arrivals[0] = fibers_[i].arrivals[1] = 0;
      begin(fibers_[i].context, main_, stacks_[i].get(), kStack, &Block::enter);
    }
    // Each warp as far as it comes alone, in every other block the last one first: so a missing barrier of the block shows.
    const int warps = (static_cast<int>(fibers_.size()) + 31) / 32;
    for (bool upwards = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 == 0; live_ > 0;) {
      for (int i = 0; i < warps; ++i) run_warp(upwards ? i : warps - 1 - i);
    }
  }

  // Waits until every fiber in [first, last) that still runs has arrived as often at a barrier of this scope as this one.
  enum Scope { kWarp, kBlock };
  void barrier(Scope scope, int first, int last) {
    const int me = active_;
    const int arrivals = ++fibers_[me].arrivals[scope];
    for (;;) {
      bool all = true;
      for (int i = first; i < last; ++i) all = all && (fibers_[i].done || fibers_[i].arrivals[scope] >= arrivals);
      fibers_[me].at_block = !all && scope == kBlock;
      if (all) return;
      switch_to(fibers_[me].context, main_);
      threadIdx.x = me;
    }
  }

  int size() const { return static_cast<int>(fibers_.size()); }
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

 private:
  static constexpr int kStack = 64 << 10;
  struct Fiber {
    Context context;
    bool done = false, at_block = false;  // at a barrier of the block
    int arrivals[2] = {};
  };

  // Until all its fibers are done or wait for other warps.
  void run_warp(int warp) {
    const int first = warp * 32, last = std::min(first + 32, static_cast<int>(fibers_.size()));
    for (bool going = true; going;) {
      going = false;
      for (int i = first; i < last; ++i) {
        if (fibers_[i].done) continue;
        active_ = i;
        threadIdx.x = i;
        switch_to(main_, fibers_[i].context);
        going = going || !(fibers_[i].done || fibers_[i].at_block);
      }
    }
  }

  static void enter() {
    Block* block = current();
    (*block->body_)();
    Fiber& fiber = block->fibers_[block->active_];
    fiber.done = true;
    --block->live_;
    switch_to(fiber.context, block->main_);
  }

  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  Context main_;
  const std::function<void()>* body_ = nullptr;
  int active_ = 0, live_ = 0;
};

inline void __syncthreads() { Block::current()->barrier(Block::kBlock, 0, Block::current()->size()); }

inline void sync_warp() {
  const int first = threadIdx.x / 32 * 32;
  Block::current()->barrier(Block::kWarp, first, first + 32);
}

struct Launch {
  int grid[3];
  int threads;
  void* stream;
  bool dependent;
  int shared = 0;
};

template <class... Parameters, class... Arguments>
const char* enqueue(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) {
  Block block(launch.threads);
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  for (int z = 0; z < gridDim.z; ++z) {
    for (int y = 0; y < gridDim.y; ++y) {
      for (int x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        block.run([&] { kernel(arguments...); });
      }
    }
  }
  return nullptr;
}

template <class... Parameters>
const char* load(void (*)(Parameters...), int = 0) {
  return nullptr;
}

// Few, so that blocks have to share the work of even a small step; or many, so that some find none.
#ifndef LORIKEET_MULTIPROCESSORS
#define LORIKEET_MULTIPROCESSORS 3
#endif
inline int multiprocessors() { return LORIKEET_MULTIPROCESSORS; }
template <class... Parameters>
int resident_blocks(void (*)(Parameters...), int, int, int most) {
  return most;
}

// Also checks what the hardware would trap on.
template <class V>
V load_aligned(const V* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(V) != 0) {
    std::fprintf(stderr, "misaligned load of %zu bytes\n", sizeof(V));
    std::abort();
  }
  return *from;
}
inline Quad load_cached(const Quad* from) { return load_aligned(from); }
inline Quad load_written(const void* from) { return load_aligned(static_cast<const Quad*>(from)); }

inline uint16_t* dynamic_shared() {
  static Quad memory[1 << 13];
  return reinterpret_cast<uint16_t*>(memory);
}

inline void copy_async(void* to, const void* from, bool live) {
  const Quad value = live ? load_aligned(static_cast<const Quad*>(from)) : Quad{};
  copies[threadIdx.x].open.push_back({static_cast<Quad*>(to), value});
}
inline void commit_copies() {
  Copies& mine = copies[threadIdx.x];
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int kLeft>
void wait_for_copies() {
  for (auto& groups = copies[threadIdx.x].groups; groups.size() > kLeft; groups.pop_front()) {
    for (const Copies::Copy& copy : groups.front()) *copy.to = copy.value;
  }
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void wait_for_previous() {}
inline void release_next() {}

constexpr int kMaxWarps = 32;

inline float warp_sum(float value) {
  static float values[kMaxWarps][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int apart = 16; apart > 0; apart /= 2) {
    values[warp][lane] = value;
    sync_warp();
    value += values[warp][lane ^ apart];
    sync_warp();
  }
  return value;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <class T>
void emulate_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static uint32_t fragments_a[32][kMaxWarps][4], fragments_b[32][kMaxWarps][2];
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
  static float to_float(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }
  static uint16_t from_float(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    return static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  static uint32_t pack(float low, float high) { return from_float(low) | static_cast<uint32_t>(from_float(high)) << 16; }
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
  static uint32_t pack(float low, float high) { return from_float(low) | static_cast<uint32_t>(from_float(high)) << 16; }
  static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate_mma<Fp16>(c, a, b); }
};

}  // namespace lorikeet
