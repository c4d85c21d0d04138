// Compiled with the flags of its instruction set; nothing here may run before dispatch.cpp has
// checked the processor.
#include "table.h"
#if defined(__x86_64__)
#include "simd/avx2.h"
#define LORIKEET_ISA avx2
#include "tile/table.inc"

const lorikeet::KernelTable* lorikeet::avx2_table() { return avx2::table("avx2"); }
#else
const lorikeet::KernelTable* lorikeet::avx2_table() { return nullptr; }
#endif
