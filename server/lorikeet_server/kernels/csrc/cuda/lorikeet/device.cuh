// The few machine operations the kernels need, by name. Nothing above this file contains PTX or an intrinsic, so the
// same kernel sources also run on a CPU, fiber by fiber, under tests/kernels/cuda/emulate.h.
#pragma once

#ifdef LORIKEET_EMULATE
#include "emulate.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lorikeet {

// Sixteen and eight bytes, moved at once.
struct alignas(16) Quad {
  uint32_t word[4];
};
struct alignas(8) Pair {
  uint32_t word[2];
};
constexpr Quad kNans = {{0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000}};

__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }

// Constant while a kernel runs, and read by several warps of a block.
__device__ __forceinline__ Quad load_cached(const Quad* from) {
  Quad q;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(q.word[0]), "=r"(q.word[1]), "=r"(q.word[2]), "=r"(q.word[3])
      : "l"(from));
  return q;
}

// What the kernel before this one wrote; to be read after `wait_for_previous`.
__device__ __forceinline__ Quad load_written(const void* from) { return *static_cast<const Quad*>(from); }

// threadIdx.x, read anew: what depends on it is not kept in registers from before.
__device__ __forceinline__ int this_thread() {
  int index;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(index));
  return index;
}

// As much memory as the launch asks for.
__device__ __forceinline__ uint16_t* dynamic_shared() {
  extern __shared__ Quad memory[];
  return reinterpret_cast<uint16_t*>(memory);
}

// Sixteen bytes on their way to shared memory, or zeros without a read. A group of copies is what lies between two commits;
// after the wait of a thread, all its groups but the last kLeft have arrived.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
               "r"(live ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// All lanes of a warp, and what they have written to shared memory.
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// The sum over all lanes of a warp, the same in each.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  return value;
}

// Programmatic dependent launch (sm_90): what precedes `wait_for_previous` overlaps the kernel before this one and must
// not read what that kernel writes. Every thread has to wait before it ends: a kernel that came after might otherwise not be
// ordered behind the one before. After `release_next` of all blocks the next kernel may begin, as far as there is room.
// No effect below sm_90, where launches are ordered by the stream.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Two 16-bit formats behind one interface. `mma`: c[16x8] += a[16x16] b[16x8], one warp, fp32 accumulators, in the
// fragment layout of PTX `mma.m16n8k16` (PTX ISA, "Matrix Fragments for mma.m16n8k16").
struct Bf16 {
  static __device__ __forceinline__ float to_float(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct Fp16 {
  static __device__ __forceinline__ float to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

}  // namespace lorikeet

#endif  // LORIKEET_EMULATE
