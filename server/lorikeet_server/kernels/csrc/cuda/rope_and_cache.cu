// Checks a call and launches the kernel for its format.
#include "rope_and_cache.h"

#include "lorikeet/checks.h"
#include "lorikeet/launch.cuh"
#include "lorikeet/rope_and_cache.cuh"
#include "sgmv.h"

namespace lorikeet {
namespace {

int64_t blocks_of_row(const CachedLayer& layer) { return (rope_threads(layer) + kRopeThreads - 1) / kRopeThreads; }

const char* fault(const LorikeetRopeAndCache& call) {
  const CachedLayer& layer = call.layer;
  if (call.format != kLorikeetBf16 && call.format != kLorikeetFp16) return "format must be bf16 or fp16";
  if (call.rows < 0) return "rows are out of range";
  if (layer.heads < 1 || layer.kv_heads < 1) return "there are no heads";
  if (layer.width < 16 || layer.width % 16 != 0) return "the width of a head must be a positive multiple of 16";
  if (blocks_of_row(layer) > 65535) return "a row is too wide";
  if (layer.places < 0 || layer.positions < 0) return "places or positions are out of range";
  if (!aligned(layer.k_cache, 0) || !aligned(layer.v_cache, 0)) return "the caches must begin on 16 bytes";
  if (!aligned(layer.cos_sin, 0)) return "the rotary table must begin on 16 bytes";
  if (call.rows == 0) return nullptr;
  const int64_t width = (layer.heads + 2 * static_cast<int64_t>(layer.kv_heads)) * layer.width;
  if (call.qkv_stride < width || !aligned(call.qkv, call.qkv_stride)) return "qkv must begin every row on 16 bytes";
  if (call.delta != nullptr && !aligned(call.delta, 0)) return "the delta must begin on 16 bytes";
  if (call.positions == nullptr || call.places == nullptr) return "there are no positions or places";
  return nullptr;
}

template <class T>
const char* launch(const LorikeetRopeAndCache& call, void* stream) {
  const Launch launch = {{call.rows, static_cast<int>(blocks_of_row(call.layer)), 1}, kRopeThreads, stream, call.dependent != 0};
  return enqueue(launch, rope_and_cache<T>, call.layer, call.qkv, call.qkv_stride, call.delta, call.positions, call.places);
}

}  // namespace

const char* load_rope_and_cache() {
  const char* wrong = load(rope_and_cache<Bf16>);
  return wrong != nullptr ? wrong : load(rope_and_cache<Fp16>);
}

}  // namespace lorikeet

extern "C" const char* lorikeet_rope_and_cache(const LorikeetRopeAndCache* call, void* stream) {
  if (const char* wrong = lorikeet::fault(*call)) return wrong;
  if (call->rows == 0) return nullptr;
  return call->format == kLorikeetBf16 ? lorikeet::launch<lorikeet::Bf16>(*call, stream) : lorikeet::launch<lorikeet::Fp16>(*call, stream);
}
