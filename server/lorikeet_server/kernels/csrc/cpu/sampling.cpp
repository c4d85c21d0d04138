#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "pool.h"

namespace lorikeet {
namespace {

// Orders as numbers do; 0 and -0 are equal.
uint32_t key_of(float value) {
  uint32_t bits;
  value += 0.0f;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Numbers that are near in size share a bucket: one pass over a row finds the buckets that matter,
// and only these are looked at again.
constexpr int kBucketBits = 11, kBuckets = 1 << kBucketBits;
size_t bucket_of(float value) { return key_of(value) >> (32 - kBucketBits); }

// The key at which a row's weights, by falling keys, have added up to `part` of their whole.
uint32_t cut_of(const float* keys, const float* weights, int columns, float part) {
  std::vector<double> sums(kBuckets, 0.0);
  for (int i = 0; i < columns; ++i) sums[bucket_of(keys[i])] += double(weights[i]);
  double total = 0.0;
  for (const double sum : sums) total += sum;

  const double share = double(part) * total;
  double reached = 0.0;
  size_t bucket = kBuckets - 1;
  while (bucket > 0 && !(reached + sums[bucket] >= share && sums[bucket] > 0.0)) {
    reached += sums[bucket--];
  }
  std::vector<std::pair<uint32_t, float>> inside;
  for (int i = 0; i < columns; ++i) {
    if (bucket_of(keys[i]) == bucket) inside.emplace_back(key_of(keys[i]), weights[i]);
  }
  if (inside.empty()) return 0;  // of a row of NaN
  const auto above = [](const auto& one, const auto& other) { return one.first > other.first; };
  auto first = inside.begin(), last = inside.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, above);
    double upper = reached;
    for (auto it = first; it != middle; ++it) upper += double(it->second);
    if (upper < share) {
      reached = upper;
      first = middle;
    } else {
      last = middle;
    }
  }
  return first->first;
}

void keep_share(const float* keys, int columns, float part, float* weights) {
  const uint32_t cut = cut_of(keys, weights, columns, part);
  for (int i = 0; i < columns; ++i) weights[i] = key_of(keys[i]) >= cut ? weights[i] : 0.0f;
}

// A token's surprise less the entropy is the mean of the relative scores less its own: the logarithm
// of the whole stands in both.
void keep_typical(const float* scores, int columns, float temperature, float part, float* weights) {
  const float best = *std::max_element(scores, scores + columns);
  std::vector<float> keys(size_t(columns), -std::numeric_limits<float>::infinity());
  double total = 0.0, mean = 0.0;
  for (int i = 0; i < columns; ++i) {
    if (!(weights[i] > 0.0f)) continue;
    keys[size_t(i)] = (scores[i] - best) / temperature;
    total += double(weights[i]);
    mean += double(keys[size_t(i)] * weights[i]);
  }
  mean /= total;
  for (float& key : keys) key = -float(std::abs(double(key) - mean));
  keep_share(keys.data(), columns, part, weights);
}

// In the order of a stable sort by falling score.
using Rank = std::pair<uint32_t, int>;
Rank rank_of(const float* scores, int i) { return {~key_of(scores[i]), i}; }

// The first `count` ranks, and others of the buckets that hold them.
std::vector<Rank> candidates(const float* scores, int columns, int count) {
  std::vector<int> counts(kBuckets, 0);
  for (int i = 0; i < columns; ++i) ++counts[bucket_of(scores[i])];
  size_t bucket = kBuckets;
  int held = 0;
  while (bucket > 0 && held < count) held += counts[--bucket];
  std::vector<Rank> found;
  found.reserve(size_t(held));
  for (int i = 0; i < columns; ++i) {
    if (bucket_of(scores[i]) >= bucket) found.push_back(rank_of(scores, i));
  }
  return found;
}

void keep_best(const float* scores, int columns, int count, float* weights) {
  std::vector<Rank> found = candidates(scores, columns, count);
  const auto last = found.begin() + count - 1;
  std::nth_element(found.begin(), last, found.end());
  for (int i = 0; i < columns; ++i) {
    if (*last < rank_of(scores, i)) weights[i] = 0.0f;
  }
}

constexpr int kChunk = 1024;

// Four sums at once hide the latency of an addition.
double sum_of(const float* p, int count) {
  double sum[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int lane = 0; lane < 4; ++lane) sum[lane] += double(p[i + lane]);
  }
  for (; i < count; ++i) sum[0] += double(p[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

int64_t invert_row(const float* row, int columns, double uniform) {
  std::vector<double> reached;  // at the end of each chunk
  double total = 0.0;
  for (int first = 0; first < columns; first += kChunk) {
    total += sum_of(row + first, std::min(kChunk, columns - first));
    reached.push_back(total);
  }
  const double target = uniform * total;
  size_t chunk = 0;
  while (chunk < reached.size() && !(reached[chunk] > target)) ++chunk;
  if (chunk == reached.size()) return columns - 1;
  const int first = int(chunk) * kChunk, end = std::min(first + kChunk, columns);
  double sum = chunk == 0 ? 0.0 : reached[chunk - 1];
  int last = first;  // that adds anything: sums in another order may stop just short of the target
  for (int i = first; i < end; ++i) {
    sum += double(row[i]);
    if (row[i] > 0.0f) last = i;
    if (sum > target) return i;
  }
  return last;
}

void best_of_row(const float* row, int columns, int count, float* values, int64_t* index) {
  std::vector<Rank> found = candidates(row, columns, count);
  std::partial_sort(found.begin(), found.begin() + count, found.end());
  for (int i = 0; i < count; ++i) {
    index[i] = found[size_t(i)].second;
    values[i] = row[index[i]];
  }
}

}  // namespace

void keep_top_p(const float* weights, int rows, int columns, const float* top_p, float* kept) {
  Pool::instance().run(rows, [&](int row) {
    const float* from = weights + int64_t{row} * columns;
    float* to = kept + int64_t{row} * columns;
    std::copy(from, from + columns, to);
    keep_share(from, columns, top_p[row], to);
  });
}

void keep(const float* scores, int rows, int columns, const Filters& by, float* weights) {
  Pool::instance().run(rows, [&](int row) {
    const float* from = scores + int64_t{row} * columns;
    float* to = weights + int64_t{row} * columns;
    const int64_t top_k = by.top_k[row];
    if (0 < top_k && top_k < columns) keep_best(from, columns, int(top_k), to);
    if (by.top_p[row] < 1.0f) keep_share(to, columns, by.top_p[row], to);
    if (by.typical_p[row] < 1.0f) {
      keep_typical(from, columns, by.temperature[row], by.typical_p[row], to);
    }
  });
}

void best_of(const float* scores, int rows, int columns, int count, float* values,
             int64_t* index) {
  Pool::instance().run(rows, [&](int row) {
    best_of_row(scores + int64_t{row} * columns, columns, count, values + int64_t{row} * count,
                index + int64_t{row} * count);
  });
}

void invert(const float* weights, int rows, int columns, const double* uniform,
            int64_t* index) {
  Pool::instance().run(rows, [&](int row) {
    index[row] = invert_row(weights + int64_t{row} * columns, columns, uniform[row]);
  });
}

void penalise(float* scores, const Penalties& by) {
  Pool::instance().run(by.count, [&](int i) {
    float* row = scores + by.rows[i] * by.columns;
    const int64_t lane = by.lanes[i] * by.columns;
    const auto [repetition, frequency, presence] = by.factors[i];
    for (int c = 0; c < by.columns; ++c) {
      const float score = row[c], repeated = score < 0 ? score * repetition : score / repetition;
      const auto count = float(by.output[lane + c]);
      const float less = frequency * count + (count > 0 ? presence : 0.0f);
      row[c] = (by.seen[lane + c] ? repeated : score) - less;
    }
  });
}

}  // namespace lorikeet
