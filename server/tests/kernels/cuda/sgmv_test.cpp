// The SGMV kernels, run by the emulator over the matrix of formats, widths, ranks and popularities, against fp64.
#define LORIKEET_EMULATE
#include <algorithm>
#include <random>
#include <string>

#include "lorikeet/expand.cuh"
#include "lorikeet/schedule.h"
#include "lorikeet/shrink.cuh"

namespace lorikeet {
namespace {

std::mt19937 chance(17);

template <class T>
std::vector<uint16_t> noise(size_t count, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<uint16_t> values(count);
  for (auto& value : values) value = T::from_float(normal(chance));
  return values;
}

struct Shape {
  int in;
  std::vector<int> out;
};

// Adapters of one fused module, as a device would hold them. Rank 0: the slot does not target the slice.
template <class T>
struct Adapters {
  Shape shape;
  int slots, max_rank = kRankTile;
  std::vector<std::vector<uint16_t>> storage;
  std::vector<std::vector<float>> dora;
  std::vector<int64_t> a, b, g;
  std::vector<int32_t> rank, column{0};
  std::vector<float> scale;

  Adapters(Shape shape, std::vector<int> ranks) : shape(std::move(shape)), slots(static_cast<int>(ranks.size())) {
    for (size_t slice = 0; slice < this->shape.out.size(); ++slice) {
      const int out = this->shape.out[slice];
      column.push_back(column.back() + out);
      for (int slot = 0; slot < slots; ++slot) {
        // Every fifth slot leaves one slice out.
        const int live = slot % 5 == 4 && slice == this->shape.out.size() - 1 && slice > 0 ? 0 : ranks[slot];
        const int padded = (live + kRankUnit - 1) / kRankUnit * kRankUnit;
        max_rank = std::max(max_rank, (padded + kRankTile - 1) / kRankTile * kRankTile);
        auto down = noise<T>(static_cast<size_t>(padded) * this->shape.in, 0.05f);
        std::fill(down.begin() + static_cast<size_t>(live) * this->shape.in, down.end(), 0);
        auto up = noise<T>(static_cast<size_t>(out) * padded, 0.1f);
        storage.push_back(std::move(down));
        a.push_back(live ? reinterpret_cast<int64_t>(storage.back().data()) : 0);
        storage.push_back(std::move(up));
        b.push_back(live ? reinterpret_cast<int64_t>(storage.back().data()) : 0);
        dora.push_back(std::vector<float>(out, 0.5f + 0.25f * static_cast<float>(slot % 3)));
        g.push_back(live && slot % 3 == 2 ? reinterpret_cast<int64_t>(dora.back().data()) : 0);
        rank.push_back(padded);
        scale.push_back(live ? 2.0f / static_cast<float>(1 + slot % 4) : 0.0f);
      }
    }
  }

  LoraTables tables() const {
    return {a.data(), b.data(), g.data(), rank.data(), scale.data(), column.data(), static_cast<int>(shape.out.size()), slots,
            shape.in, max_rank};
  }
};

enum class Path { kDecode, kPrefill };

template <class T>
std::vector<uint16_t> run(const Adapters<T>& adapters, const std::vector<int32_t>& row_slots, const std::vector<uint16_t>& x,
                          std::vector<uint16_t> y, Path path) {
  const LoraTables tables = adapters.tables();
  const int rows = static_cast<int>(row_slots.size());
  const int tile_rows = path == Path::kDecode ? kDecodeTile : kPrefillTile;
  const auto layout = TileLayout::of(rows, tables.slots, tile_rows);
  std::vector<int32_t> buffer(layout.size(), -1), counts;
  schedule_tiles(row_slots.data(), rows, tables.slots, tile_rows, layout, counts, buffer.data());
  const LoraTiles tiles{&buffer[layout.permutation()], &buffer[layout.first()], &buffer[layout.count()],
                        &buffer[layout.slot()], &buffer[layout.total()]};
  const int planes = path == Path::kDecode ? chunks_of(tables.in) : 1;
  const int out = adapters.column.back(), rank_tiles = tables.slices * tables.max_rank / kRankTile;
  std::vector<float> v(static_cast<size_t>(planes) * rows * tables.slices * tables.max_rank, NAN);  // poisoned
  const int all_columns = column_tiles(out) + tables.slices - 1;
  if (path == Path::kDecode) {
    launch({planes, rank_tiles, layout.tiles}, kThreads, shrink_decode<T>, tables, tiles, x.data(), int64_t{tables.in}, v.data(), rows);
    launch({all_columns, layout.tiles, 1}, kThreads, expand<T, kDecodeTile>, tables, tiles, v.data(), planes, rows, y.data(), int64_t{out});
  } else {
    launch({rank_tiles, layout.tiles, 1}, kThreads, shrink_prefill<T>, tables, tiles, x.data(), int64_t{tables.in}, v.data());
    launch({all_columns, layout.tiles, 1}, kThreads, expand<T, kPrefillTile>, tables, tiles, v.data(), 1, rows, y.data(), int64_t{out});
  }
  return y;
}

// The largest error of a row against fp64, relative to the row's norm.
template <class T>
double error(const Adapters<T>& adapters, const std::vector<int32_t>& row_slots, const std::vector<uint16_t>& x,
             const std::vector<uint16_t>& y0, const std::vector<uint16_t>& y) {
  const int in = adapters.shape.in, out = adapters.column.back();
  double worst = 0;
  for (size_t row = 0; row < row_slots.size(); ++row) {
    double square = 0, difference = 0;
    for (size_t slice = 0; slice < adapters.shape.out.size(); ++slice) {
      const int slot = row_slots[row];
      const size_t where = slice * adapters.slots + std::max(slot, 0);
      const int rank = slot < 0 || adapters.a[where] == 0 ? 0 : adapters.rank[where];
      const auto* a = reinterpret_cast<const uint16_t*>(adapters.a[where]);
      const auto* b = reinterpret_cast<const uint16_t*>(adapters.b[where]);
      std::vector<double> v(rank, 0.0);
      for (int k = 0; k < rank; ++k) {
        for (int i = 0; i < in; ++i) v[k] += double{T::to_float(a[k * in + i])} * T::to_float(x[row * in + i]);
      }
      for (int c = 0; c < adapters.shape.out[slice]; ++c) {
        const size_t at = row * out + adapters.column[slice] + c;
        double want = T::to_float(y0[at]);
        for (int k = 0; k < rank; ++k) want += adapters.scale[where] * v[k] * T::to_float(b[c * rank + k]);
        if (rank && adapters.g[where]) want *= reinterpret_cast<const float*>(adapters.g[where])[c];
        square += want * want;
        difference += (want - T::to_float(y[at])) * (want - T::to_float(y[at]));
      }
    }
    const double relative = std::sqrt(difference / square);
    worst = relative >= worst ? relative : worst;
    if (std::isnan(relative)) return relative;
  }
  return worst;
}

std::vector<int32_t> popularity(const std::string& kind, int rows, int slots) {
  std::vector<int32_t> chosen(rows);
  for (int i = 0; i < rows; ++i) {
    if (kind == "distinct") chosen[i] = i % slots;
    else if (kind == "identical") chosen[i] = slots / 2;
    else if (kind == "uniform") chosen[i] = static_cast<int>(chance() % slots);
    else if (kind == "skewed") chosen[i] = std::min<int>(slots - 1, std::geometric_distribution<int>(0.4)(chance));
    else chosen[i] = static_cast<int>(chance() % (slots + 1)) - 1;  // some rows of the base
  }
  std::shuffle(chosen.begin(), chosen.end(), chance);
  return chosen;
}

int passed = 0, failed = 0;

void expect(bool holds, const std::string& what) {
  (holds ? passed : failed)++;
  if (!holds) std::printf("FAILED %s\n", what.c_str());
}

template <class T>
void check(const std::string& format, double tolerance, const Shape& shape, const std::vector<int>& ranks, int rows, const std::string& kind) {
  const Adapters<T> adapters(shape, ranks);
  const auto slots = popularity(kind, rows, adapters.slots);
  const int out = adapters.column.back();
  const auto x = noise<T>(static_cast<size_t>(rows) * shape.in, 1.0f);
  const auto y = noise<T>(static_cast<size_t>(rows) * out, 1.0f);
  const std::string name = format + " in " + std::to_string(shape.in) + " rows " + std::to_string(rows) + " " + kind + " rank " +
                           std::to_string(ranks.front()) + ".." + std::to_string(ranks.back());
  const auto decoded = run<T>(adapters, slots, x, y, Path::kDecode);
  const double worst = rows ? error<T>(adapters, slots, x, y, decoded) : 0.0;
  expect(worst < tolerance, name + ": error " + std::to_string(worst));
  expect(decoded == run<T>(adapters, slots, x, y, Path::kPrefill), name + ": prefill has other bits than decode");
  if (rows < 2) return;
  // Each row alone, and in reversed order: the same bits.
  std::vector<int32_t> reversed(slots.rbegin(), slots.rend());
  std::vector<uint16_t> back_x, back_y, back;
  for (int row = rows - 1; row >= 0; --row) {
    back_x.insert(back_x.end(), x.begin() + int64_t{row} * shape.in, x.begin() + int64_t{row + 1} * shape.in);
    back_y.insert(back_y.end(), y.begin() + int64_t{row} * out, y.begin() + int64_t{row + 1} * out);
  }
  const auto mirrored = run<T>(adapters, reversed, back_x, back_y, Path::kDecode);
  for (int row = rows - 1; row >= 0; --row) back.insert(back.end(), mirrored.begin() + int64_t{row} * out, mirrored.begin() + int64_t{row + 1} * out);
  expect(back == decoded, name + ": a row's bits depend on its place");
  const std::vector<uint16_t> one_x(x.begin(), x.begin() + shape.in), one_y(y.begin(), y.begin() + out);
  const auto alone = run<T>(adapters, {slots[0]}, one_x, one_y, Path::kDecode);
  expect(std::equal(alone.begin(), alone.end(), decoded.begin()), name + ": a row's bits depend on its mates");
}

void check_schedule() {
  for (int rows : {0, 1, 7, 8, 9, 64, 65, 255, 256, 257, 1000}) {
    for (int slots : {1, 3, 64, 300}) {
      for (int tile_rows : {kDecodeTile, kPrefillTile}) {
        const auto wanted = popularity("base", rows, slots);
        const auto layout = TileLayout::of(rows, slots, tile_rows);
        std::vector<int32_t> buffer(layout.size(), -7), counts;
        const int tiles = schedule_tiles(wanted.data(), rows, slots, tile_rows, layout, counts, buffer.data());
        std::vector<int> seen(rows, 0);
        bool right = tiles <= layout.tiles && buffer[layout.total()] == tiles;
        for (int tile = 0; right && tile < tiles; ++tile) {
          const int count = buffer[layout.count() + tile];
          right = count > 0 && count <= tile_rows;
          for (int i = 0; right && i < count; ++i) {
            const int row = buffer[layout.permutation() + buffer[layout.first() + tile] + i];
            right = row >= 0 && row < rows && wanted[row] == buffer[layout.slot() + tile];
            if (right) ++seen[row];
          }
        }
        for (int row = 0; right && row < rows; ++row) right = seen[row] == (wanted[row] >= 0 ? 1 : 0);
        expect(right, "schedule of " + std::to_string(rows) + " rows, " + std::to_string(slots) + " slots");
      }
    }
  }
}

}  // namespace
}  // namespace lorikeet

int main() {
  using namespace lorikeet;
  check_schedule();
  const Shape qkv{576, {576, 192, 192}}, wide{1544, {136}}, small{64, {64, 8}};
  for (const std::string kind : {"distinct", "identical", "uniform", "skewed", "base"}) {
    check<Bf16>("bf16", 1e-2, qkv, {8, 16, 64, 8, 32}, 13, kind);
    check<Fp16>("fp16", 2e-3, qkv, {1, 12, 24, 5, 4}, 9, kind);
    check<Bf16>("bf16", 1e-2, wide, {16, 40, 128}, 17, kind);
    check<Fp16>("fp16", 2e-3, small, {3, 300, 8, 512}, 70, kind);
  }
  for (int rows : {0, 1, 7, 8, 9, 64, 65}) check<Bf16>("bf16", 1e-2, small, {8, 16, 2}, rows, "uniform");
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
