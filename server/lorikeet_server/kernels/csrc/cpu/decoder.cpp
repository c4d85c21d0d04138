#include "decoder.h"

#include "range.h"

namespace lorikeet {

const char* DecoderRun::run(const Step& step, float* residual, float* out) {
  const std::lock_guard lock(ops_.pool().mutex());
  const int rows = step.rows, hidden = decoder_.hidden;
  for (int i = 0; i < decoder_.count && i < 1; ++i) {  // all layers have caches of one shape
    const Attention& first = decoder_.layers[i].attention;
    if (const char* error = range_error(step.places, rows, first)) return error;
    if (const char* error = range_error(step.sequences, rows, first.cache)) return error;
  }
  const auto grown = [rows](std::vector<float>& buffer, int width) {
    const size_t needed = size_t(rows) * size_t(width);
    if (buffer.size() < needed) buffer.resize(needed);
    return buffer.data();
  };
  float* normed = grown(normed_, hidden);
  float* projected = grown(projected_, hidden);
  float* gate_up = grown(gate_up_, 2 * decoder_.ffn);
  float* activated = grown(activated_, decoder_.ffn);

  for (int i = 0; i < decoder_.count; ++i) {
    const DecoderLayer& layer = decoder_.layers[i];
    const Heads& heads = layer.attention.heads;
    const int qkv_width = (heads.query + 2 * heads.kv) * heads.dim;
    float* qkv = grown(qkv_, qkv_width);
    float* attended = grown(attended_, heads.query * heads.dim);
    // The output of the layer before is still in `projected` and joins the residual here.
    ops_.rms_norm(i == 0 ? residual : projected, i == 0 ? nullptr : residual, layer.input_norm,
                  rows, hidden, decoder_.eps, normed);
    ops_.linear_lora(normed, rows, layer.qkv, {layer.qkv_lora, layer.o_lora, step.batch}, qkv);
    ops_.rope_and_cache(qkv, rows, step.places, layer.attention,
                        {layer.qkv_bias, layer.q_norm, layer.k_norm, decoder_.eps});
    ops_.attention(qkv, qkv_width, layer.attention, step.sequences, attended);
    ops_.linear_lora(attended, rows, layer.o, {layer.o_lora, layer.gate_up_lora, step.batch},
                     projected);
    ops_.rms_norm(projected, residual, layer.post_norm, rows, hidden, decoder_.eps, normed);
    ops_.linear_lora(normed, rows, layer.gate_up,
                     {layer.gate_up_lora, layer.down_lora, step.batch}, gate_up);
    ops_.silu_mul(gate_up, rows, decoder_.ffn, activated);
    const LoraTable* next = i + 1 < decoder_.count ? decoder_.layers[i + 1].qkv_lora : nullptr;
    ops_.linear_lora(activated, rows, layer.down, {layer.down_lora, next, step.batch}, projected);
  }
  ops_.rms_norm(decoder_.count == 0 ? residual : projected,
                decoder_.count == 0 ? nullptr : residual, decoder_.final_norm, rows, hidden,
                decoder_.eps, out);
  return nullptr;
}

}  // namespace lorikeet
