// The C interface that Python calls through ctypes. Arguments were checked in Python; nothing here
// throws on bad shapes.
#include <cstring>

#include "decoder.h"
#include "pack.h"
#include "range.h"
#include "sampling.h"

using namespace lorikeet;  // every name below is a thin wrapper over this namespace

namespace {

// The tiles for a named instruction set, or null where this processor or this build lacks it.
const KernelTable* find(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(isa, "avx512")) return avx512 ? avx512_table() : nullptr;
  if (!std::strcmp(isa, "avx2")) return avx2 ? avx2_table() : nullptr;
#endif
  return !std::strcmp(isa, "portable") ? portable_table() : nullptr;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// Sizes of the structures that Python fills, by which it tells a stale library from a fresh one.
EXPORT int lk_struct_bytes(int which) {
  constexpr size_t sizes[] = {
      sizeof(Linear),    sizeof(LoraTable), sizeof(LoraBatch), sizeof(Attention),
      sizeof(Places),    sizeof(Sequences), sizeof(DecoderLayer), sizeof(Decoder),
      sizeof(Step),      sizeof(Penalties), sizeof(Filters)};
  return which < int(sizeof(sizes) / sizeof(sizes[0])) ? int(sizes[which]) : -1;
}

// Null if this processor or this build lacks the instruction set.
EXPORT Ops* lk_open(const char* isa) {
  const KernelTable* table = find(isa);
  return table ? new Ops(*table) : nullptr;
}

EXPORT void lk_set_threads(int count) { Pool::instance().set_threads(count); }

// Columns of a panel, of weights and of an adapter's B.
EXPORT int lk_panel(const Ops* ops) { return ops->panel(); }

EXPORT int64_t lk_packed_bytes(const Ops* ops, int out, int in, int dtype) {
  return packed_bytes(out, in, ops->panel(), DType(dtype));
}

EXPORT void lk_pack_linear(const Ops* ops, const void* weight, int out, int in, int dtype,
                           void* packed) {
  pack_linear(weight, out, in, ops->panel(), DType(dtype), packed);
}

EXPORT bool lk_pack_blocks(const Ops* ops, const float* weight, int out, int in, int dtype,
                           void* packed) {
  return pack_blocks(weight, out, in, ops->panel(), DType(dtype), packed);
}

EXPORT void lk_linear(Ops* ops, const float* x, int rows, const Linear* linear, float* y) {
  ops->linear(x, rows, *linear, y);
}

EXPORT void lk_rms_norm(Ops* ops, const float* x, float* residual, const float* weight, int rows,
                        int n, float eps, float* out) {
  ops->rms_norm(x, residual, weight, rows, n, eps, out);
}

EXPORT void lk_silu_mul(Ops* ops, const float* gate_up, int rows, int n, float* out) {
  ops->silu_mul(gate_up, rows, n, out);
}

EXPORT const char* lk_rope_and_cache(Ops* ops, float* qkv, int rows, const Places* places,
                                     const Attention* layer) {
  if (const char* error = range_error(*places, rows, *layer)) return error;
  ops->rope_and_cache(qkv, rows, *places, *layer, {});
  return nullptr;
}

EXPORT const char* lk_attention(Ops* ops, const float* q, int64_t q_stride, int rows,
                                const Attention* layer, const Sequences* sequences, float* out) {
  if (const char* error = range_error(*sequences, rows, layer->cache)) return error;
  ops->attention(q, q_stride, *layer, *sequences, out);
  return nullptr;
}

EXPORT void lk_lora(Ops* ops, float* y, const float* x, const LoraTable* table,
                    const LoraBatch* batch) {
  ops->lora(y, x, *table, *batch);
}

EXPORT void lk_greedy(Ops* ops, const float* logits, int rows, int columns,
                      const GreedyResult* result) {
  ops->greedy(logits, rows, columns, *result);
}

EXPORT void lk_weigh(Ops* ops, const float* scores, int rows, int columns,
                     const float* temperature, float* weights) {
  ops->weigh(scores, rows, columns, temperature, weights);
}

EXPORT void lk_keep_top_p(const float* weights, int rows, int columns, const float* top_p,
                          float* kept) {
  keep_top_p(weights, rows, columns, top_p, kept);
}

EXPORT void lk_keep(const float* scores, int rows, int columns, const Filters* by, float* weights) {
  keep(scores, rows, columns, *by, weights);
}

EXPORT void lk_best_of(const float* scores, int rows, int columns, int count, float* values,
                       int64_t* index) {
  best_of(scores, rows, columns, count, values, index);
}

EXPORT void lk_penalise(float* scores, const Penalties* by) { penalise(scores, *by); }

EXPORT void lk_invert(const float* weights, int rows, int columns, const double* uniform,
                      int64_t* index) {
  invert(weights, rows, columns, uniform, index);
}

// `decoder` and everything it points to must outlive the result.
EXPORT DecoderRun* lk_decoder_open(const char* isa, const Decoder* decoder) {
  const KernelTable* table = find(isa);
  return table ? new DecoderRun(*table, *decoder) : nullptr;
}

EXPORT void lk_decoder_close(DecoderRun* run) { delete run; }

EXPORT const char* lk_decoder_run(DecoderRun* run, const Step* step, float* residual, float* out) {
  return run->run(*step, residual, out);
}

}  // extern "C"
