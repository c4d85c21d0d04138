// All decoder layers of one step without returning to Python: the ops of ops.h in order, on buffers
// that are kept.
#pragma once
#include <vector>

#include "ops.h"

namespace lorikeet {

struct Step {
  Places places;
  Sequences sequences;
  const LoraBatch* batch;  // may be null
  int32_t rows;
};

class DecoderRun {
 public:
  DecoderRun(const KernelTable& kernels, const Decoder& decoder)
      : ops_(kernels), decoder_(decoder) {}

  // residual [rows][hidden] holds the embedded tokens and is overwritten; out [rows][hidden]. Null,
  // or what is wrong with the step; nothing is computed then.
  const char* run(const Step& step, float* residual, float* out);

 private:
  Ops ops_;
  const Decoder& decoder_;
  std::vector<float> normed_, qkv_, attended_, projected_, gate_up_, activated_;
};

}  // namespace lorikeet
