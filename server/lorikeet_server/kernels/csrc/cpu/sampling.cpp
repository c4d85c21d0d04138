#include "sampling.h"

#include <algorithm>
#include <cstring>
#include <functional>
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
// and only these are sorted.
constexpr int kBucketBits = 11, kBuckets = 1 << kBucketBits;
size_t bucket_of(float value) { return key_of(value) >> (32 - kBucketBits); }

// The value at which a row's falling weights have added up to `top_p` of it.
float cut_of(const float* row, int columns, float top_p) {
  std::vector<double> sums(kBuckets, 0.0);
  for (int i = 0; i < columns; ++i) sums[bucket_of(row[i])] += double(row[i]);
  double total = 0.0;
  for (const double sum : sums) total += sum;

  const double share = double(top_p) * total;
  double reached = 0.0;
  size_t bucket = kBuckets - 1;
  while (bucket > 0 && !(reached + sums[bucket] >= share && sums[bucket] > 0.0)) {
    reached += sums[bucket--];
  }
  std::vector<float> inside;
  for (int i = 0; i < columns; ++i) {
    if (bucket_of(row[i]) == bucket) inside.push_back(row[i]);
  }
  std::sort(inside.begin(), inside.end(), std::greater<float>());
  float cut = inside.empty() ? 0.0f : inside.front();
  for (const float weight : inside) {
    if (!(reached < share)) break;
    cut = weight;
    reached += double(weight);
  }
  return cut;
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
  std::vector<int> counts(kBuckets, 0);
  for (int i = 0; i < columns; ++i) ++counts[bucket_of(row[i])];
  size_t bucket = kBuckets;
  int held = 0;
  while (bucket > 0 && held < count) held += counts[--bucket];
  std::vector<std::pair<uint32_t, int>> inside;
  inside.reserve(size_t(held));
  for (int i = 0; i < columns; ++i) {
    if (bucket_of(row[i]) >= bucket) inside.emplace_back(~key_of(row[i]), i);
  }
  std::partial_sort(inside.begin(), inside.begin() + count, inside.end());
  for (int i = 0; i < count; ++i) {
    index[i] = inside[size_t(i)].second;
    values[i] = row[index[i]];
  }
}

}  // namespace

void keep_top_p(const float* weights, int rows, int columns, const float* top_p, float* kept) {
  Pool::instance().run(rows, [&](int row) {
    const float* from = weights + int64_t{row} * columns;
    float* to = kept + int64_t{row} * columns;
    const float cut = cut_of(from, columns, top_p[row]);
    for (int i = 0; i < columns; ++i) to[i] = from[i] >= cut ? from[i] : 0.0f;
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
