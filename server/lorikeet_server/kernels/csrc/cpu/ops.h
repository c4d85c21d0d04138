// Every op over the pool: cuts the work into tiles and calls the chosen instruction set. Shapes are
// checked by the caller.
#pragma once
#include "lora.h"
#include "pool.h"
#include "table.h"

namespace lorikeet {

class Ops {
 public:
  explicit Ops(const KernelTable& kernels) : kernels_(kernels), pool_(Pool::instance()) {}

  int panel() const { return kernels_.panel; }

  void linear(const float* x, int rows, const Linear& linear, float* y);
  // Any may be null.
  struct LoraPart {
    const LoraTable *table, *next;  // of this product, and of the one after it
    const LoraBatch* batch;

    bool any() const { return batch && batch->segments > 0; }
  };
  // y = linear(x), then y += the product.
  void linear_lora(const float* x, int rows, const Linear& linear, const LoraPart& part, float* y);
  void lora(float* y, const float* x, const LoraTable& table, const LoraBatch& batch);
  void rms_norm(const float* x, float* residual, const float* weight, int rows, int n, float eps,
                float* out);
  void silu_mul(const float* gate_up, int rows, int n, float* out);
  // Adds the bias and normalises the heads first, where given.
  struct HeadPrologue {
    const float *bias, *q_norm, *k_norm;
    float eps;
  };
  void rope_and_cache(float* qkv, int rows, const Places& places, const Attention& layer,
                      const HeadPrologue& prologue);
  void attention(const float* q, int64_t q_stride, const Attention& layer,
                 const Sequences& sequences, float* out);
  void greedy(const float* logits, int rows, int columns, const GreedyResult& result);
  // weights[row][column] = exp((score - best of the row) / temperature[row])
  void weigh(const float* scores, int rows, int columns, const float* temperature, float* weights);

  Pool& pool() { return pool_; }

 private:
  struct AttentionPart {
    int sequence, kv_head, first_query, queries, key_begin, key_end,
        partial;  // partial: index, or -1
  };
  void attend(const AttentionPart& part, const float* q, int64_t q_stride, const Attention& layer,
              const Sequences& sequences, float* out);

  // Runs the shrinks of product_, and beside them prepares what comes after, and converts
  // x [rows][in] if it is to be in integers: valid until the next call.
  RowsOfIntegers convert_and_shrink(const float* x, int rows, int in, bool in_integers,
                                    const LoraPart& part);
  void prepare_expansions(int rows, const LoraPart& part);

  const KernelTable& kernels_;
  Pool& pool_;
  LoraProduct product_;
  Lines next_lines_;
  std::vector<AttentionPart> parts_, split_;
  std::vector<float> partial_sums_, partial_stats_;
  std::vector<int16_t> codes_;
  std::vector<BlockOfRow> code_blocks_;
};

}  // namespace lorikeet
