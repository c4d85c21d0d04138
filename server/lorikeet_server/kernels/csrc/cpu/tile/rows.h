// Work on one row: norms, rotation, activation, cache writes, the arg max.
#pragma once
#include <array>
#include <bit>

namespace lorikeet::LORIKEET_ISA {

void rms_norm(const float* x, float* residual, const float* weight, int n, float eps, float* out) {
  Vec squares = Vec::zero();
  for_vectors(n, [&](int i, int count) {
    Vec value = load_up_to(x + i, count);
    if (residual) {
      value = value + load_up_to(residual + i, count);
      store_up_to(value, residual + i, count);
    }
    squares = fma(value, value, squares);
  });
  const float* source = residual ? residual : x;
  const Vec factor = Vec::set(1.0f / __builtin_sqrtf(sum_lanes(squares) / float(n) + eps));
  for_vectors(n, [&](int i, int count) {
    store_up_to(load_up_to(source + i, count) * factor * load_up_to(weight + i, count), out + i,
                count);
  });
}

void add(const float* x, float* y, int n) {
  for_vectors(n, [&](int i, int count) {
    store_up_to(load_up_to(x + i, count) + load_up_to(y + i, count), y + i, count);
  });
}

void rope(float* head, const float* cos_sin, int head_dim) {
  const int half = head_dim / 2;
  for_vectors(half, [&](int i, int count) {
    const Vec cos = load_up_to(cos_sin + i, count), sin = load_up_to(cos_sin + half + i, count);
    const Vec first = load_up_to(head + i, count), second = load_up_to(head + half + i, count);
    store_up_to(first * cos - second * sin, head + i, count);
    store_up_to(second * cos + first * sin, head + half + i, count);
  });
}

// Where a position's key and value lie, and their scales if elements have any.
template <typename T>
struct KvPlace {
  T *key, *value;  // the key's elements are kKeyTile apart
  float *key_scale = nullptr, *value_scale = nullptr;

  KvPlace(const KvCache& cache, int64_t slot, int kv_head, int kv_heads, int head_dim) {
    const int64_t head = slot / cache.block_size * kv_heads + kv_head;
    const int64_t place = slot % cache.block_size;
    const int64_t index = (head * cache.block_size + place) / kKeyTile;
    const int within = int(place % kKeyTile), stride = round_up(head_dim, 16);
    T* const keys = tile_at(static_cast<T*>(cache.k), index, head_dim);
    T* const values = tile_at(static_cast<T*>(cache.v), index, stride);
    key = keys + within;
    value = values + within * stride;
    if constexpr (kTileScales<T> > 0) {
      key_scale = scales_of(keys, head_dim) + within;
      value_scale = scales_of(values, stride) + within;
    }
  }
};

template <typename T>
void write_kv_as(const float* k, const float* v, const KvCache& cache, int64_t slot, int kv_head,
                 int kv_heads, int head_dim) {
  const KvPlace<T> to(cache, slot, kv_head, kv_heads, head_dim);
  for_vectors(head_dim, [&](int i, int count) {
    T column[kWidth];
    load_up_to(k + i, count).store(column);
    for (int d = 0; d < count; ++d) to.key[(i + d) * kKeyTile] = column[d];
    store_up_to(load_up_to(v + i, count), to.value + i, count);
  });
}

// Rounds a vector to integers, kLargestCode for its largest element, kStride apart, and returns their
// scale. What is not finite makes the scale so.
template <int kStride>
inline float to_codes(const float* x, int n, int16_t* codes) {
  Vec sizes = Vec::zero(), poison = Vec::zero();
  for_vectors(n, [&](int i, int count) {
    const Vec value = load_up_to(x + i, count);
    sizes = max_of(size_of(value), sizes);
    poison = fma(value, Vec::zero(), poison);
  });
  const float largest = max_lanes(sizes), poisoned = sum_lanes(poison);
  const bool any = largest > kSmallestScaled && poisoned == 0.0f;
  const Vec factor = Vec::set(any ? kLargestCode / largest : 0.0f);
  // Added to so small a number, 1.5 * 2^23 leaves the nearest integer in the low bits.
  const Vec shift = Vec::set(12582912.0f);
  for_vectors(n, [&](int i, int count) {
    float shifted[kWidth];
    (any ? load_up_to(x + i, count) * factor + shift : shift).store(shifted);
    const auto bits = std::bit_cast<std::array<uint32_t, kWidth>>(shifted);
    for (int d = 0; d < count; ++d) codes[(i + d) * kStride] = int16_t(bits[d]);
  });
  return largest / kLargestCode + poisoned;
}

void write_kv_in_integers(const float* k, const float* v, const KvCache& cache, int64_t slot,
                          int kv_head, int kv_heads, int head_dim) {
  const KvPlace<int16_t> to(cache, slot, kv_head, kv_heads, head_dim);
  *to.key_scale = to_codes<kKeyTile>(k, head_dim, to.key);
  *to.value_scale = to_codes<1>(v, head_dim, to.value);
}

void write_kv(const float* k, const float* v, const KvCache& cache, int64_t slot, int kv_head,
              int kv_heads, int head_dim) {
  switch (cache.dtype) {
    case DType::kFloat32:
      return write_kv_as<float>(k, v, cache, slot, kv_head, kv_heads, head_dim);
    case DType::kFloat16:
      return write_kv_as<half_t>(k, v, cache, slot, kv_head, kv_heads, head_dim);
    case DType::kBFloat16:
      return write_kv_as<bfloat16_t>(k, v, cache, slot, kv_head, kv_heads, head_dim);
    case DType::kInt16:
      return write_kv_in_integers(k, v, cache, slot, kv_head, kv_heads, head_dim);
    default:
      return;  // packed weights only
  }
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
  const Vec one = Vec::set(1.0f);
  for_vectors(n, [&](int i, int count) {
    const Vec g = load_up_to(gate + i, count);
    store_up_to(g / (one + exp_of(Vec::zero() - g)) * load_up_to(up + i, count), out + i, count);
  });
}

// Of those that are numbers.
inline float largest_of(const float* x, int n) {
  constexpr int kChains = 4;  // each waits for its last comparison
  const Vec lowest = Vec::set(-__builtin_inff());
  Vec largest[kChains] = {lowest, lowest, lowest, lowest};
  int i = 0;
  for (; i + kChains * kWidth <= n; i += kChains * kWidth) {
    unrolled<kChains>([&](auto c) LORIKEET_INLINED {
      largest[c] = max_of(Vec::load(x + i + c * kWidth), largest[c]);
    });
  }
  for (; i < n; ++i) largest[0] = max_of(Vec::set(x[i]), largest[0]);
  return max_lanes(max_of(max_of(largest[0], largest[1]), max_of(largest[2], largest[3])));
}

// Where the first `value` is, or 0 if there is none.
inline int first_of(const float* x, int n, float value) {
  int i = 0;
  while (i + kWidth <= n && lanes_from(Vec::load(x + i), Vec::set(value)) == 0) i += kWidth;
  for (; i < n; ++i) {  // from the first that may be it: what is not a number is none
    if (x[i] == value) return i;
  }
  return 0;
}

void weigh(const float* scores, int n, float temperature, float* weights) {
  const Vec best = Vec::set(largest_of(scores, n)), divisor = Vec::set(temperature);
  for_vectors(n, [&](int i, int count) {
    const Vec score = load_up_to(scores + i, count);
    store_up_to(exp_of((score - best) / divisor), weights + i, count);
  });
}

void greedy(const float* logits, int n, float* maximum, int* index, float* sum) {
  *maximum = largest_of(logits, n);
  *index = first_of(logits, n, *maximum);
  const Vec shift = Vec::set(*maximum == -__builtin_inff() ? 0.0f : *maximum);
  Vec total = Vec::zero();
  float rest = 0.0f;
  for_vectors(n, [&](int i, int count) {
    if (count == kWidth) {
      total = total + exp_of(Vec::load(logits + i) - shift);
    } else {
      for (int j = i; j < n; ++j) {
        float lanes[kWidth];
        exp_of(Vec::set(logits[j]) - shift).store(lanes);
        rest += lanes[0];
      }
    }
  });
  *sum = sum_lanes(total) + rest;
}

}  // namespace lorikeet::LORIKEET_ISA
