// Any architecture the compiler knows.
#include "simd/portable.h"
#define LORIKEET_ISA portable
#include "tile/table.inc"

const lorikeet::KernelTable* lorikeet::portable_table() { return portable::table("portable"); }
