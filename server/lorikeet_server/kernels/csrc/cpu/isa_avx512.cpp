// Compiled with the flags of its instruction set; nothing here may run before dispatch.cpp has
// checked the processor.
#include "table.h"
#if defined(__x86_64__)
#include "simd/avx512.h"
#define LORIKEET_ISA avx512
#include "tile/table.inc"

const lorikeet::KernelTable* lorikeet::avx512_table() { return avx512::table("avx512"); }
#else
const lorikeet::KernelTable* lorikeet::avx512_table() { return nullptr; }
#endif
