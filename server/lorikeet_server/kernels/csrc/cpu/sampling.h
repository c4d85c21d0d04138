// What sampling needs of whole rows of a vocabulary, each row on one thread. Weights are
// probabilities relative to any whole.
#pragma once
#include <cstdint>

namespace lorikeet {

// kept[row][column] is the weight where top_p[row] leaves it, else 0: the likeliest, as few as add
// up to that share of the row, and whatever equals the last of them.
void keep_top_p(const float* weights, int rows, int columns, const float* top_p, float* kept);

// What rows are drawn by, [rows] each. Off: top_k 0, the others 1.
struct Filters {
  const float* temperature;
  const int64_t* top_k;
  const float *top_p, *typical_p;
};

// Sets to 0 those of the weights of `scores` that one filter after the other does not leave.
void keep(const float* scores, int rows, int columns, const Filters& by, float* weights);

// index[row]: the first column at which the row's sums pass uniform[row] of its whole, the last one
// if none does. columns > 0.
void invert(const float* weights, int rows, int columns, const double* uniform, int64_t* index);

// The first `count` <= columns of each row in a stable sort by falling score: values and columns,
// [rows][count]. NaN comes first.
void best_of(const float* scores, int rows, int columns, int count, float* values, int64_t* index);

// What some rows of scores are penalised by. Of lane l, output[l][column] counts how often the
// token was produced, and seen[l][column] says whether the sequence holds it at all.
struct Penalties {
  int32_t count, columns;
  const int64_t *rows, *lanes;  // [count]
  const float (*factors)[3];    // [count]: repetition, frequency, presence
  const int32_t* output;        // [lanes][columns]
  const uint8_t* seen;          // [lanes][columns]
};
void penalise(float* scores, const Penalties& by);

}  // namespace lorikeet
