// Launching a kernel, and how many blocks a device has room for; under emulation a loop over blocks.
#pragma once

#include "device.cuh"

#ifndef LORIKEET_EMULATE
#include <cuda_runtime.h>

namespace lorikeet {

struct Launch {
  int grid[3];
  int threads;
  void* stream;
  bool dependent;  // may begin while the kernel before it ends (sm_90)
  int shared = 0;  // bytes of `dynamic_shared`, as the kernel was loaded with
};

// Null, or what CUDA says.
template <class... Parameters, class... Arguments>
const char* enqueue(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.grid[0], launch.grid[1], launch.grid[2]);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  config.attrs = &attribute;
  config.numAttrs = launch.dependent ? 1 : 0;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// Brings a kernel to the current device, which its first launch would do otherwise, and allows it so many bytes of
// `dynamic_shared`. Null, or what CUDA says.
template <class... Parameters>
const char* load(void (*kernel)(Parameters...), int shared = 0) {
  cudaFuncAttributes attributes;
  cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status == cudaSuccess && shared > 0) status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// Of the device that is current; some number if there is none, since the launch will say so.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

// Blocks of a kernel that a multiprocessor of the current device holds at once, of at most `most`: Ampere's has less shared memory
// than Hopper's.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, int shared, int most) {
  int blocks = 0;
  const cudaError_t status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared);
  return status == cudaSuccess && 0 < blocks && blocks < most ? blocks : most;
}

}  // namespace lorikeet

#endif  // LORIKEET_EMULATE
