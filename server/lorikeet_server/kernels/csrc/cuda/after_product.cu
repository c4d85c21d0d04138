// Checks calls and launches the kernels for their format and size.
#include "after_product.h"

#include "lorikeet/add_norm.cuh"
#include "lorikeet/checks.h"
#include "lorikeet/gated.cuh"
#include "lorikeet/launch.cuh"
#include "sgmv.h"

namespace lorikeet {
namespace {

int64_t blocks_of_row(const LorikeetGated& call) { return (call.width / 8 + kGatedThreads - 1) / kGatedThreads; }

const char* fault(const LorikeetGated& call) {
  if (call.format != kLorikeetBf16 && call.format != kLorikeetFp16) return "format must be bf16 or fp16";
  if (call.activation != kLorikeetSilu && call.activation != kLorikeetGelu) return "the activation is SiLU or GELU";
  if (call.rows < 0) return "rows are out of range";
  if (call.width < 8 || call.width % 8 != 0) return "the width must be a positive multiple of 8";
  if (blocks_of_row(call) > 65535) return "a row is too wide";
  if (call.rows == 0) return nullptr;
  if (!aligned(call.y, 0) || !aligned(call.delta, 0) || !aligned(call.out, 0)) return "rows must begin on 16 bytes";
  return nullptr;
}

const char* fault(const LorikeetAddNorm& call) {
  if (call.format != kLorikeetBf16 && call.format != kLorikeetFp16) return "format must be bf16 or fp16";
  if (call.rows < 0) return "rows are out of range";
  if (call.width < 8 || call.width % 8 != 0) return "the width must be a positive multiple of 8";
  if (call.width > kWidestNorm) return "a row is too wide";
  if (call.rows == 0) return nullptr;
  if (!aligned(call.y, 0) || !aligned(call.delta, 0) || !aligned(call.residual, 0)) return "rows must begin on 16 bytes";
  if (!aligned(call.weight, 0)) return "the weight must begin on 16 bytes";
  return nullptr;
}

template <class T, class Act>
const char* launch_gated(const LorikeetGated& call, void* stream) {
  const Launch launch = {{call.rows, static_cast<int>(blocks_of_row(call)), 1}, kGatedThreads, stream, false};
  return enqueue(launch, gated<T, Act>, call.y, call.delta, call.width, call.out);
}

template <class T>
const char* launch(const LorikeetGated& call, void* stream) {
  return call.activation == kLorikeetSilu ? launch_gated<T, Silu>(call, stream) : launch_gated<T, Gelu>(call, stream);
}

template <class T, int kParts>
const char* launch_norm(const LorikeetAddNorm& call, void* stream) {
  const Launch launch = {{call.rows, 1, 1}, kNormThreads, stream, false};
  return enqueue(launch, add_norm<T, kParts>, call.y, call.delta, call.residual, call.weight, call.width, call.eps, call.offset);
}

template <class T>
const char* launch(const LorikeetAddNorm& call, void* stream) {
  if (call.width <= kWidestNorm / kNormParts) return launch_norm<T, 1>(call, stream);
  return launch_norm<T, kNormParts>(call, stream);
}

template <class T>
const char* load_all() {
  if (const char* wrong = load(gated<T, Silu>)) return wrong;
  if (const char* wrong = load(gated<T, Gelu>)) return wrong;
  if (const char* wrong = load(add_norm<T, 1>)) return wrong;
  return load(add_norm<T, kNormParts>);
}

template <class Call>
const char* checked(const Call& call, void* stream) {
  if (const char* wrong = fault(call)) return wrong;
  if (call.rows == 0) return nullptr;
  return call.format == kLorikeetBf16 ? launch<Bf16>(call, stream) : launch<Fp16>(call, stream);
}

}  // namespace

const char* load_after_product() {
  const char* wrong = load_all<Bf16>();
  return wrong != nullptr ? wrong : load_all<Fp16>();
}

}  // namespace lorikeet

extern "C" const char* lorikeet_gated(const LorikeetGated* call, void* stream) { return lorikeet::checked(*call, stream); }

extern "C" const char* lorikeet_add_norm(const LorikeetAddNorm* call, void* stream) { return lorikeet::checked(*call, stream); }
