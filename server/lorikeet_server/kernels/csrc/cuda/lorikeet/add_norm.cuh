// The residual stream takes a base product and what an adapter adds to it; then its RMS norm. For a place where streams meet, which
// programmatic launches do not cross.
//
// A block has a row, and a thread 8 columns at a time, which stay in registers between the sum and the norm.
#pragma once

#include <cmath>

#include "device.cuh"
#include "eight.cuh"

namespace lorikeet {

constexpr int kNormThreads = 512;
constexpr int kNormParts = 4;  // of 8 columns, that a thread has at most
constexpr int kWidestNorm = kNormThreads * kNormParts * 8;

// Grid (rows); kNormThreads. residual += y + delta; y = residual / rms(residual) * (weight + offset), of the sum before it was rounded.
// All [rows][width], weight [width]. Rows of at most kParts * kNormThreads * 8 columns.
template <class T, int kParts>
__global__ void __launch_bounds__(kNormThreads)
    add_norm(uint16_t* y, const uint16_t* delta, uint16_t* residual, const uint16_t* weight, int width, float eps, float offset) {
  __shared__ float partial[kNormThreads / 32];
  Quad scale[kParts] = {};
  const auto column = [&](int part) { return 8 * (part * kNormThreads + static_cast<int>(threadIdx.x)); };
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (column(part) < width) scale[part] = load_cached(reinterpret_cast<const Quad*>(weight + column(part)));
  }
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  Quad read[kParts][3] = {};
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int64_t at = row + column(part);
    if (column(part) >= width) continue;
    read[part][0] = load_written(residual + at);
    read[part][1] = load_written(y + at);
    read[part][2] = load_written(delta + at);
  }
  Eight<T> sum[kParts];
  float squares = 0.0f;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    sum[part] = Eight<T>::of(read[part][0]);
    sum[part].add(read[part][1]);
    sum[part].add(read[part][2]);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += sum[part].value[i] * sum[part].value[i];
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
  float whole = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kNormThreads / 32; ++warp) whole += partial[warp];
  const float inverse = 1.0f / sqrtf(whole / static_cast<float>(width) + eps);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (column(part) >= width) continue;
    *reinterpret_cast<Quad*>(residual + row + column(part)) = sum[part].packed();
    const Eight<T> factor = Eight<T>::of(scale[part]);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[part].value[i] *= inverse * (factor.value[i] + offset);
    *reinterpret_cast<Quad*>(y + row + column(part)) = sum[part].packed();
  }
}

}  // namespace lorikeet
