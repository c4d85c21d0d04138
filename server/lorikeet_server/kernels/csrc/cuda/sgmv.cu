// Checks a call and launches the kernels for its format and size.
#include "sgmv.h"

#include <cuda_runtime.h>

#include "lorikeet/expand.cuh"
#include "lorikeet/shrink.cuh"

namespace lorikeet {
namespace {

bool aligned(const void* pointer, int64_t stride) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
}

const char* fault(const LorikeetSgmv& call) {
  const LoraTables& tables = call.tables;
  if (call.format != kLorikeetBf16 && call.format != kLorikeetFp16) return "format must be bf16 or fp16";
  if (tables.slices < 1 || tables.slots < 1) return "the module has no slices or no slots";
  if (tables.in < 8 || tables.in % 8 != 0) return "the input width must be a positive multiple of 8";
  if (call.out < 8 || call.out % 8 != 0) return "the output width must be a positive multiple of 8";
  if (tables.max_rank < kRankTile || tables.max_rank % kRankTile != 0) return "the largest rank must be a positive multiple of 16";
  if (call.rows < 0 || call.max_tiles < 0 || call.max_tiles > 65535) return "rows or tiles are out of range";
  if (call.x_stride < tables.in || call.y_stride < call.out) return "a row stride is smaller than the row";
  if (!aligned(call.x, call.x_stride) || !aligned(call.y, call.y_stride)) return "x and y must begin every row on 16 bytes";
  if (call.v == nullptr) return "there is no scratch";
  return nullptr;
}

// The grid covers the most column tiles that slices of this total width can have.
int most_column_tiles(const LorikeetSgmv& call) { return column_tiles(call.out) + call.tables.slices - 1; }

template <class... Parameters, class... Arguments>
cudaError_t enqueue(bool dependent, cudaStream_t stream, dim3 grid, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class T>
cudaError_t launch(const LorikeetSgmv& call, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(call.max_tiles), columns = static_cast<unsigned>(most_column_tiles(call));
  const auto ranks = static_cast<unsigned>(call.tables.slices * call.tables.max_rank / kRankTile);
  const bool dependent = call.dependent != 0;
  if (call.prefill != 0) {
    const cudaError_t first = enqueue(dependent, stream, dim3(ranks, tiles), shrink_prefill<T>, call.tables, call.tiles, call.x,
                                      call.x_stride, call.v);
    if (first != cudaSuccess) return first;
    return enqueue(dependent, stream, dim3(columns, tiles), expand<T, kPrefillTile>, call.tables, call.tiles, call.v, 1, call.rows,
                   call.y, call.y_stride);
  }
  const int planes = chunks_of(call.tables.in);
  const cudaError_t first = enqueue(dependent, stream, dim3(static_cast<unsigned>(planes), ranks, tiles), shrink_decode<T>,
                                    call.tables, call.tiles, call.x, call.x_stride, call.v, call.rows);
  if (first != cudaSuccess) return first;
  return enqueue(dependent, stream, dim3(columns, tiles), expand<T, kDecodeTile>, call.tables, call.tiles, call.v, planes, call.rows,
                 call.y, call.y_stride);
}

}  // namespace
}  // namespace lorikeet

extern "C" int64_t lorikeet_sgmv_scratch(const LorikeetSgmv* call) {
  const int64_t planes = call->prefill != 0 ? 1 : lorikeet::chunks_of(call->tables.in);
  return planes * call->rows * call->tables.slices * call->tables.max_rank;
}

extern "C" const char* lorikeet_sgmv(const LorikeetSgmv* call, void* stream) {
  if (const char* wrong = lorikeet::fault(*call)) return wrong;
  if (call->rows == 0 || call->max_tiles == 0) return nullptr;
  auto* on = static_cast<cudaStream_t>(stream);
  const cudaError_t status =
      call->format == kLorikeetBf16 ? lorikeet::launch<lorikeet::Bf16>(*call, on) : lorikeet::launch<lorikeet::Fp16>(*call, on);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
