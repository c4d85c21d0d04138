// The entry for one panel of any storage.
#pragma once

namespace lorikeet::LORIKEET_ISA {

void linear_panel(const float* x, int64_t x_stride, int rows, const void* panel, DType dtype,
                  int in, float* y, int64_t y_stride, int columns, Fetching* fetching) {
  if (fetching->left > 0) fetching->spread(ceil_div(rows, kMaxRows) * ceil_div(in, kRun));
  const auto run = [&](auto function, const auto* typed) {
    function(x, x_stride, rows, typed, in, y, y_stride, columns, fetching);
  };
  switch (dtype) {
    case DType::kFloat32:
      return run(linear_panel_of<float>, static_cast<const float*>(panel));
    case DType::kFloat16:
      return run(linear_panel_of<half_t>, static_cast<const half_t*>(panel));
    case DType::kBFloat16:
      return run(linear_panel_of<bfloat16_t>, static_cast<const bfloat16_t*>(panel));
    case DType::kBlock4:
      return run(linear_panel_of_blocks<Block4<kPanel>>, static_cast<const Block4<kPanel>*>(panel));
    case DType::kBlock8:
      return run(linear_panel_of_blocks<Block8<kPanel>>, static_cast<const Block8<kPanel>*>(panel));
  }
}

}  // namespace lorikeet::LORIKEET_ISA
