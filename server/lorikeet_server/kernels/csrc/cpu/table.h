// What each instruction set implements: single-threaded work on one tile, on raw pointers. Threads,
// shapes and tiles are chosen in ops.cpp, once for all instruction sets.
#pragma once
#include "fetching.h"
#include "types.h"

namespace lorikeet {

struct ShrinkTile {  // v[i][0..ranks) = x[rows[i]] . A[0..ranks)
  const float* x;
  int64_t x_stride;
  const int32_t* rows;
  int row_count;
  const void* a;  // first rank of the tile
  DType dtype;
  int ranks, in;
  float* v;
  int64_t v_stride;
};

struct Expansion {  // y[rows[i]] = g * (y + scale * v[i] B^T)
  const LoraEntry* entry;  // of B, g and scale
  const float* v;          // [row_count][rank], rows v_stride apart
  const int32_t* rows;
  int row_count;
};

struct ExpandTile {  // some columns of the expansions of one slice
  const Expansion* expansions;
  int count;
  int64_t v_stride;
  int width, panel;  // of B
  DType dtype;
  int first, columns;
  float* y;  // row 0, the slice's first column
  int64_t y_stride;
};

struct AttentionTile {  // queries of one sequence and one key/value head
  const float* q;       // first query, first head of the group
  int64_t q_stride;
  int query_count, group;  // rows = query_count * group
  int first_position;      // of the first query
  int window;              // as in Heads
  int key_begin, key_end;  // key_begin is a multiple of kKeyChunk
  const int32_t* blocks;   // block table of the sequence
  KvCache cache;
  int kv_head, kv_heads, head_dim;
  float scale, soft_cap;   // as in Heads
  float* out;  // [query][group][head_dim], rows out_stride apart: normalised, or the raw sum where
               // `partial`
  int64_t out_stride;
  float* partial;  // null, or [rows][2]: maximum and sum of the one chunk
};

struct KernelTable {
  const char* name;
  int panel;  // columns of a panel: 16 or 32
  // One panel: y[row][0..columns) = x[row] . panel. columns <= panel.
  void (*linear_panel)(const float* x, int64_t x_stride, int rows, const void* panel, DType dtype,
                       int in, float* y, int64_t y_stride, int columns, Fetching* fetching);
  // residual may be null; where given, x + residual is written back to residual and normalised.
  void (*rms_norm)(const float* x, float* residual, const float* weight, int n, float eps,
                   float* out);
  void (*add)(const float* x, float* y, int n);  // y += x
  void (*rope)(float* head, const float* cos_sin, int head_dim);
  void (*write_kv)(const float* k, const float* v, const KvCache& cache, int64_t slot, int kv_head,
                   int kv_heads, int head_dim);
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  void (*shrink)(const ShrinkTile& tile);
  void (*expand)(const ExpandTile& tile);
  void (*attention)(const AttentionTile& tile);
  // Adds chunk `from` to the running state `to`; sums are not normalised.
  void (*merge)(float* to, float* to_stats, const float* from, const float* from_stats,
                int head_dim);
  // Maximum, its lowest index, and the sum of exp(logit - maximum).
  void (*greedy)(const float* logits, int n, float* maximum, int* index, float* sum);
  void (*weigh)(const float* scores, int n, float temperature, float* weights);  // as Ops::weigh
  // Null where integers are not faster than floats.
  void (*to_integers)(const float* x, int in, int16_t* codes, BlockOfRow* blocks);  // one row
  void (*linear_panel_of_integers)(const RowsOfIntegers& x, int rows, const void* panel,
                                   DType dtype, int in, float* y, int64_t y_stride, int columns,
                                   Fetching* fetching);
};

const KernelTable* portable_table();
const KernelTable* avx2_table();    // null when built for another architecture
const KernelTable* avx512_table();  // null when built for another architecture

}  // namespace lorikeet
