// Checks a call and launches the kernels for its format and size.
#include "sgmv.h"

#include <algorithm>

#include "after_product.h"
#include "lorikeet/checks.h"
#include "lorikeet/expand_decode.cuh"
#include "lorikeet/expand_prefill.cuh"
#include "lorikeet/launch.cuh"
#include "lorikeet/planes.cuh"
#include "lorikeet/shrink_decode.cuh"
#include "lorikeet/shrink_prefill.cuh"
#include "rope_and_cache.h"

namespace lorikeet {
namespace {

const char* fault(const LorikeetSgmv& call) {
  const LoraTables& tables = call.tables;
  if (call.format != kLorikeetBf16 && call.format != kLorikeetFp16) return "format must be bf16 or fp16";
  if (tables.slices < 1 || tables.slices > kMaxSlices) return "a module has one to four slices";
  if (tables.slots < 1 || tables.stride < tables.slices) return "the module has no slots, or they overlap";
  if (tables.in < 8 || tables.in % 8 != 0) return "the input width must be a positive multiple of 8";
  for (int slice = 0; slice < tables.slices; ++slice) {
    const int out = tables.column[slice + 1] - tables.column[slice];
    if (tables.column[0] != 0 || out < 8 || out % 8 != 0) return "the width of a slice must be a positive multiple of 8";
  }
  if (tables.max_rank < kRankTile || tables.max_rank % kRankTile != 0) return "the largest rank must be a positive multiple of 16";
  if (call.rows < 0) return "rows are out of range";
  if (call.tile_rows != kDecodeTile && call.tile_rows != kPrefillTile) return "tiles have 8 or 64 rows";
  const bool shrinks = (call.phases & kLorikeetShrink) != 0, expands = (call.phases & kLorikeetExpand) != 0;
  if (!shrinks && !expands) return "there is no phase";
  if (shrinks && (call.x_stride < tables.in || !aligned(call.x, call.x_stride))) return "x must begin every row on 16 bytes";
  if (expands && (call.y_stride < tables.column[tables.slices] || !aligned(call.y, call.y_stride))) {
    return "y must begin every row on 16 bytes";
  }
  if (!aligned(call.v, 0)) return "the scratch must begin on 16 bytes";
  const int most = TileLayout::most_tiles(call.rows, tables.slots + 1, call.tile_rows);
  if (call.most_tiles < 0 || call.most_tiles > most) return "so many rows do not have so many tiles";
  if (call.most_tiles > 65535) return "the step has too many tiles";
  return nullptr;
}

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
int at_most(int64_t value, int64_t bound) { return static_cast<int>(value < 1 ? 1 : value < bound ? value : bound); }

// Grids do not depend on what is in the step, only on how much there may be: a captured graph replays for every mix of so many
// adapters. Blocks share what there is to do, in one wave.
struct Sizes {
  int tiles, planes, processors;

  explicit Sizes(const LorikeetSgmv& call)
      : tiles(call.most_tiles),
        planes(planes_of(call.tables.in)),
        processors(multiprocessors()) {}
};

// Values of fp32 that the planes of v take. Behind them, for many rows, lies their sum in 16 bits.
int64_t plane_values(const LoraTables& tables, int rows) {
  return static_cast<int64_t>(planes_of(tables.in)) * rows * tables.slices * tables.max_rank;
}

uint16_t* whole_of(const LorikeetSgmv& call) { return reinterpret_cast<uint16_t*>(call.v + plane_values(call.tables, call.rows)); }

template <class T>
const char* shrink_few(const LorikeetSgmv& call, const Sizes& sizes, void* stream) {
  const LoraTables& tables = call.tables;
  static const int resident = resident_blocks(shrink_decode<T>, kShrinkThreads, kShrinkShared, kShrinkBlocks);
  const int64_t room = sizes.processors * resident / (sizes.planes * tables.slices);
  const int items = at_most(room, static_cast<int64_t>(sizes.tiles) * (tables.max_rank / kRankTile));
  // Alone, it stands where streams part, which programmatic launches do not cross.
  const bool dependent = call.dependent != 0 && call.alone == 0;
  const Launch launch = {{sizes.planes, tables.slices, items}, kShrinkThreads, stream, dependent, kShrinkShared};
  return enqueue(launch, shrink_decode<T>, tables, call.tiles, call.x, call.x_stride, call.v, call.rows);
}

template <class T>
const char* shrink_many(const LorikeetSgmv& call, const Sizes& sizes, void* stream) {
  const LoraTables& tables = call.tables;
  const bool dependent = call.dependent != 0;
  static const int resident = resident_blocks(shrink_prefill<T>, kPrefillThreads, kShrinkPrefillShared, kPrefillBlocks);
  const int64_t room = sizes.processors * resident / (static_cast<int64_t>(sizes.planes) * sizes.tiles);
  const int sharing = at_most(room, static_cast<int64_t>(tables.slices) * (tables.max_rank / kRankTile));
  const Launch shrink = {{sizes.planes, sharing, sizes.tiles}, kPrefillThreads, stream, dependent, kShrinkPrefillShared};
  const char* wrong = enqueue(shrink, shrink_prefill<T>, tables, call.tiles, call.x, call.x_stride, call.v, call.rows);
  if (wrong != nullptr) return wrong;
  const Launch add = {{sizes.tiles, tables.slices, kAddParts}, kAddThreads, stream, dependent};
  return enqueue(add, add_planes_of_tiles<T>, tables, call.tiles, call.v, sizes.planes, call.rows, whole_of(call));
}

template <class T, bool kAlone>
const char* expand_few(const LorikeetSgmv& call, const Sizes& sizes, void* stream) {
  static const int resident = resident_blocks(expand_decode<T, kAlone>, kExpandDecodeThreads, kExpandDecodeShared, kExpandDecodeBlocks);
  const int64_t room = static_cast<int64_t>(sizes.processors) * resident;
  const int all = strips(call.tables);
  // Runs are long where each warp still has several of them.
  const int run = at_most(static_cast<int64_t>(sizes.tiles) * all / (4 * kExpandWarps * room), kExpandLongestRun);
  // Once every multiprocessor has a block, two warps of each have a run before there are more: a block that finds no room beside
  // shrink begins later. Beside the base product, all four.
  const int64_t items = static_cast<int64_t>(sizes.tiles) * ceil_div(all, run);
  const int blocks = at_most(room, std::max<int64_t>(std::min<int64_t>(items, sizes.processors), ceil_div(items, kAlone ? 4 : 2)));
  const Launch launch = {{blocks, 1, 1}, kExpandDecodeThreads, stream, call.dependent != 0, kExpandDecodeShared};
  return enqueue(launch, expand_decode<T, kAlone>, call.tables, call.tiles, call.v, sizes.planes, call.rows, sizes.tiles, run, call.y,
                 call.y_stride);
}

// How many strips to a run, so that the block with the most of them is done first: to begin a run takes about as long as kBeginning
// strips, and a slice may end within one.
int best_run(const LoraTables& tables, int tiles, int64_t room) {
  constexpr int kBeginning = 2;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int run = 1; run <= kLongestRun; ++run) {
    const int64_t rounds = ceil_div(static_cast<int64_t>(tiles) * runs_of_strips(tables, run), room);
    if (rounds * (run + kBeginning) > least) continue;
    least = rounds * (run + kBeginning);
    best = run;
  }
  return best;
}

template <class T, bool kAlone>
const char* expand_many(const LorikeetSgmv& call, const Sizes& sizes, void* stream) {
  const int64_t room = static_cast<int64_t>(sizes.processors) * kExpandPrefillBlocks;
  const int run = best_run(call.tables, sizes.tiles, room);
  const int blocks = at_most(room, static_cast<int64_t>(sizes.tiles) * runs_of_strips(call.tables, run));
  const Launch launch = {{blocks, 1, 1}, kExpandPrefillThreads, stream, call.dependent != 0};
  return enqueue(launch, expand_prefill<T, kAlone>, call.tables, call.tiles, whole_of(call), run, call.y, call.y_stride);
}

template <class T>
const char* launch(const LorikeetSgmv& call, void* stream) {
  const Sizes sizes(call);
  const bool few = call.tile_rows == kDecodeTile;
  if ((call.phases & kLorikeetShrink) != 0) {
    const char* wrong = few ? shrink_few<T>(call, sizes, stream) : shrink_many<T>(call, sizes, stream);
    if (wrong != nullptr) return wrong;
  }
  if ((call.phases & kLorikeetExpand) == 0) return nullptr;
  if (call.alone != 0) return few ? expand_few<T, true>(call, sizes, stream) : expand_many<T, true>(call, sizes, stream);
  return few ? expand_few<T, false>(call, sizes, stream) : expand_many<T, false>(call, sizes, stream);
}

template <class T>
const char* load_all() {
  if (const char* wrong = load(shrink_decode<T>, kShrinkShared)) return wrong;
  if (const char* wrong = load(shrink_prefill<T>, kShrinkPrefillShared)) return wrong;
  if (const char* wrong = load(add_planes_of_tiles<T>)) return wrong;
  if (const char* wrong = load(expand_decode<T, false>, kExpandDecodeShared)) return wrong;
  if (const char* wrong = load(expand_decode<T, true>, kExpandDecodeShared)) return wrong;
  if (const char* wrong = load(expand_prefill<T, false>)) return wrong;
  return load(expand_prefill<T, true>);
}

}  // namespace
}  // namespace lorikeet

extern "C" const char* lorikeet_load(void) {
  if (const char* wrong = lorikeet::load_all<lorikeet::Bf16>()) return wrong;
  if (const char* wrong = lorikeet::load_all<lorikeet::Fp16>()) return wrong;
  if (const char* wrong = lorikeet::load_after_product()) return wrong;
  return lorikeet::load_rope_and_cache();
}

extern "C" int lorikeet_struct_bytes(int index) {
  const int bytes[] = {sizeof(lorikeet::LoraEntry), sizeof(lorikeet::LoraTile), sizeof(lorikeet::TileLayout), sizeof(LorikeetSgmv),
                       sizeof(LorikeetRopeAndCache), sizeof(LorikeetGated), sizeof(LorikeetAddNorm)};
  return index >= 0 && index < 7 ? bytes[index] : 0;
}

extern "C" int64_t lorikeet_sgmv_scratch(const lorikeet::LoraTables* tables, int rows) {
  return lorikeet::plane_values(*tables, rows) + static_cast<int64_t>(rows) * tables->slices * tables->max_rank / 2;
}

extern "C" const char* lorikeet_sgmv(const LorikeetSgmv* call, void* stream) {
  if (const char* wrong = lorikeet::fault(*call)) return wrong;
  if (call->rows == 0 || call->most_tiles == 0) return nullptr;
  return call->format == kLorikeetBf16 ? lorikeet::launch<lorikeet::Bf16>(*call, stream) : lorikeet::launch<lorikeet::Fp16>(*call, stream);
}

extern "C" void lorikeet_tile_layout(int rows, int slots, int tile_rows, int max_rank, lorikeet::TileLayout* layout) {
  *layout = lorikeet::TileLayout::of(rows, slots, tile_rows, max_rank);
}

extern "C" int lorikeet_schedule(const int32_t* row_slots, int rows, int slots, const int32_t* slot_rank,
                                 const lorikeet::TileLayout* layout, int32_t* buffer) {
  if (rows > layout->rows) return -1;
  for (int i = 0; i < rows; ++i) {
    if (row_slots[i] >= slots) return -1;
  }
  thread_local std::vector<int32_t> counts;
  return lorikeet::schedule_tiles(row_slots, rows, slots, slot_rank, *layout, counts, buffer);
}
