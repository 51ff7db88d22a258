#include "rank_counts.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "products.h"

namespace snnet {
namespace {

constexpr int64_t kRowsAtOnce = 512;    // candidate rows in one product
constexpr int64_t kLookedAtOnce = 16;   // rows in one call for dot products
constexpr int64_t kShortestSplit = 64;  // dimensions from which on a product of half of them is worth a look
constexpr int64_t kFewColumns = 16;     // up to one in so many columns are looked at one by one
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// How a tile of products is held against the bars.
enum class Tile {
  heads,    // of the first dimensions only: what may reach the bar is looked at, where that is little
  rounded,  // what is within the slack of the bar is counted as unsure
  looked,   // what is within the slack is looked at
};

// Matrix products only exclude columns. The dot product of two rows decides. It sums in the same order for the bar and
// for the value compared with it, so that equal rows never count.
class RankCount {
 public:
  RankCount(const Tensor& memory, const RowLengths& lengths, std::vector<int64_t>& first_inconsistent)
      : memory_(memory), values_(const_floats(memory)), n_(memory.size(0)), d_(memory.size(1)), lengths_(lengths),
        first_inconsistent_(first_inconsistent) {}

  // Walks pairs[begin, ...) on as many candidate rows as fit; returns where it stopped.
  std::size_t walk(const std::vector<RankPair>& pairs, std::size_t begin) {
    active_.clear();
    rows_.clear();
    std::unordered_map<int32_t, int32_t> row_at;
    std::size_t end = begin;
    for (; end < pairs.size(); ++end) {
      if (!walking(pairs[end])) continue;
      const auto [place, is_new] = row_at.try_emplace(pairs[end].candidate, static_cast<int32_t>(rows_.size()));
      if (is_new && static_cast<int64_t>(rows_.size()) == kRowsAtOnce) break;
      if (is_new) rows_.push_back(pairs[end].candidate);
      active_.push_back(pairs[end]);
      active_.back().row = place->second;
    }
    if (active_.empty()) return end;
    count_tiles(false);
    keep([](const RankPair& pair) { return pair.above + pair.unsure > pair.rank; });
    for (RankPair& pair : active_) pair.above = pair.unsure = 0;
    if (!active_.empty()) count_tiles(true);
    return end;
  }

 private:
  bool walking(const RankPair& pair) const { return pair.position < first_inconsistent_[pair.sample]; }

  // Products of the first dimensions bound the whole: S[p,l] <= head + |rest of p| |rest of l|. Far columns are
  // left out by that, which saves the products of the other dimensions; where many columns are near, the whole
  // products are made.
  void count_tiles(bool look) {
    Tensor candidates = rows_at(memory_, rows_);
    bool by_heads = lengths_.head < d_;
    const int64_t step = tile_columns(n_, d_, static_cast<int64_t>(rows_.size()));
    for (int64_t first = 0; first < n_ && !active_.empty(); first += step) {
      const int64_t columns = std::min(step, n_ - first);
      Tensor all = memory_;
      const Tensor tile = torch::stable::narrow(all, 0, first, columns);
      counted_.assign(active_.size(), 0);
      place_.resize(rows_.size());
      std::iota(place_.begin(), place_.end(), 0);
      if (by_heads) {
        Tensor whole = tile;
        const Tensor heads = inner_products(torch::stable::narrow(candidates, 1, 0, lengths_.head),
                                            torch::stable::narrow(whole, 1, 0, lengths_.head));
        count_tile(const_floats(heads), first, columns, Tile::heads);
      }
      const int64_t left = std::count(counted_.begin(), counted_.end(), 0);
      if (left > 0) {
        const Tensor products = inner_products(rows_left(candidates), tile);
        count_tile(const_floats(products), first, columns, look ? Tile::looked : Tile::rounded);
      }
      by_heads = by_heads && 4 * left < static_cast<int64_t>(active_.size());
      for (const RankPair& pair : active_) {
        int64_t& first_of_sample = first_inconsistent_[pair.sample];
        if (pair.above > pair.rank) first_of_sample = std::min<int64_t>(first_of_sample, pair.position);
      }
      keep([](const RankPair&) { return true; });
      shrink(candidates);
    }
  }

  // The rows of the pairs that are not counted yet, where these are not most of them; place_ says where they stand.
  Tensor rows_left(const Tensor& candidates) {
    std::vector<int32_t> place(rows_.size(), -1), needed;
    for (std::size_t p = 0; p < active_.size(); ++p) {
      if (counted_[p] || place[active_[p].row] >= 0) continue;
      place[active_[p].row] = static_cast<int32_t>(needed.size());
      needed.push_back(rows_[active_[p].row]);
    }
    if (8 * needed.size() > 7 * rows_.size()) return candidates;
    place_ = place;
    return rows_at(memory_, needed);
  }

  // Counts a tile for the pairs that are not marked as counted, and marks them.
  void count_tile(const float* products, int64_t first, int64_t columns, Tile kind) {
    const int64_t size = static_cast<int64_t>(active_.size());
    torch::stable::parallel_for(0, size, grain(columns), [&](int64_t begin, int64_t end) {
      std::vector<Entry> found(kind == Tile::rounded ? 0 : columns);
      for (int64_t p = begin; p < end; ++p) {
        if (counted_[p]) continue;
        const float* row = products + place_[active_[p].row] * columns;
        counted_[p] = kind == Tile::rounded ? count_rounded(active_[p], row, first, columns)
                                            : count_looked(active_[p], row, first, columns, kind, found.data());
      }
    });
  }

  bool count_rounded(RankPair& pair, const float* row, int64_t first, int64_t columns) const {
    const VectorKernels& kernels = vector_kernels();
    const float low = pair.bar - lengths_.slack, high = pair.bar + lengths_.slack;
    int64_t reaching = kernels.count_above(row, columns, low, kNoLimit);
    if (reaching == 0) return true;
    int64_t sure = kernels.count_above(row, columns, high, kNoLimit);
    const int64_t anchor = pair.anchor - first;
    if (anchor >= 0 && anchor < columns) {
      reaching -= row[anchor] > low;
      sure -= row[anchor] > high;
    }
    pair.above += sure;
    pair.unsure += reaching - sure;
    return true;
  }

  // False where by heads too many columns are left.
  bool count_looked(RankPair& pair, const float* row, int64_t first, int64_t columns, Tile kind, Entry* found) const {
    const VectorKernels& kernels = vector_kernels();
    const auto column = static_cast<int32_t>(first);
    const float low = pair.bar - lengths_.slack;
    const bool by_heads = kind == Tile::heads;
    const int64_t size = by_heads
                             ? kernels.collect_reaching(row, lengths_.rest.data() + first,
                                                        lengths_.rest[pair.candidate], columns, low, column, found)
                             : kernels.collect_above(row, columns, low, column, found);
    if (by_heads && size > columns / kFewColumns) return false;
    const float sure = by_heads ? std::numeric_limits<float>::infinity() : pair.bar + lengths_.slack;
    look_at(pair, found, size, sure);
    return true;
  }

  // Counts the columns among `entries` whose dot product is above the bar; a value above `sure` needs no look.
  void look_at(RankPair& pair, const Entry* entries, int64_t size, float sure) const {
    const float* rows[kLookedAtOnce];
    float products[kLookedAtOnce];
    int64_t waiting = 0;
    const auto look = [&] {
      vector_kernels().dots(rows, waiting, values_ + pair.candidate * d_, d_, products);
      for (int64_t i = 0; i < waiting; ++i) pair.above += products[i] > pair.bar;
      waiting = 0;
    };
    for (int64_t e = 0; e < size && pair.above <= pair.rank; ++e) {
      if (entries[e].column == pair.anchor) continue;
      if (entries[e].value > sure) {
        ++pair.above;
        continue;
      }
      rows[waiting++] = values_ + entries[e].column * d_;
      if (waiting == kLookedAtOnce) look();
    }
    if (pair.above <= pair.rank) look();
  }

  // Leaves out the pairs whose sample's walk has ended, and those that are not wanted.
  template <class Wanted>
  void keep(const Wanted& wanted) {
    active_.erase(std::remove_if(active_.begin(), active_.end(),
                                 [&](const RankPair& pair) { return !walking(pair) || !wanted(pair); }),
                  active_.end());
  }

  // Leaves rows that no pair needs any more out of the coming products, where these are many.
  void shrink(Tensor& candidates) {
    std::vector<int32_t> place(rows_.size(), -1), kept;
    for (const RankPair& pair : active_) {
      if (place[pair.row] >= 0) continue;
      place[pair.row] = static_cast<int32_t>(kept.size());
      kept.push_back(rows_[pair.row]);
    }
    if (kept.empty() || 8 * kept.size() > 7 * rows_.size()) return;
    for (RankPair& pair : active_) pair.row = place[pair.row];
    rows_ = kept;
    candidates = rows_at(memory_, rows_);
  }

  Tensor memory_;
  const float* values_;
  int64_t n_, d_;
  const RowLengths& lengths_;
  std::vector<int64_t>& first_inconsistent_;
  std::vector<RankPair> active_;
  std::vector<uint8_t> counted_;  // of the active pairs, in this tile
  std::vector<int32_t> rows_;     // distinct candidates
  std::vector<int32_t> place_;    // of each of them in the product of this tile
};

}  // namespace

RowLengths measure_rows(const Tensor& memory) {
  const int64_t n = memory.size(0), d = memory.size(1);
  RowLengths lengths{d >= kShortestSplit ? d / 2 : d, std::vector<float>(n), false, 0};
  std::vector<double> whole(n);
  torch::stable::parallel_for(0, n, grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      const float* row = const_floats(memory) + l * d;
      const float* other = row + lengths.head;
      const double rest = vector_kernels().dot(other, other, d - lengths.head);
      whole[l] = vector_kernels().dot(row, row, lengths.head) + rest;
      lengths.rest[l] = static_cast<float>(std::sqrt(rest) * (1 + 1e-6));
    }
  });
  double longest = 0;
  for (double length : whole) longest = length > longest ? length : longest;  // a NaN is above nothing
  lengths.all_short = longest <= 1 + kUnitTolerance;
  // Of one rounding each term's share is at most d epsilon / 2.
  lengths.slack =
      static_cast<float>(2 * static_cast<double>(d + 8) * std::numeric_limits<float>::epsilon() * longest);
  return lengths;
}

void walk_pairs(const Tensor& memory, const RowLengths& lengths, const std::vector<RankPair>& pairs,
                std::vector<int64_t>& first_inconsistent) {
  RankCount ranks(memory, lengths, first_inconsistent);
  for (std::size_t done = 0; done < pairs.size();) done = ranks.walk(pairs, done);
}

}  // namespace snnet
