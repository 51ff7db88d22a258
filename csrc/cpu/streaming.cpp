// Label prediction without a cache: candidates and their ranks from tiles of products.
#include "streaming.h"

#include <cmath>
#include <limits>
#include <unordered_map>

#include "products.h"
#include "selection.h"

namespace snnet {
namespace {

constexpr int64_t kRowsAtOnce = 512;               // candidate rows in one product
constexpr int64_t kNeighborhood = 256;  // most similar images of an anchor that are looked at first
constexpr int64_t kCandidatesAtOnce = 16;
constexpr int64_t kShortestSplit = 64;  // dimensions from which on a product of half of them is worth a look
constexpr int64_t kFewColumns = 16;     // up to one in so many columns are looked at one by one
constexpr double kUnitTolerance = 2e-5;  // of a squared length

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The most similar images of an anchor: complete for similarities above the floor.
struct Neighborhood {
  std::vector<Entry> entries;
  float floor = -kInfinity;

  void cut() {
    if (static_cast<int64_t>(entries.size()) <= kNeighborhood) return;
    std::nth_element(entries.begin(), entries.begin() + kNeighborhood, entries.end(), comes_first);
    floor = std::max(floor, entries[kNeighborhood].value);  // the largest of those that go
    entries.resize(kNeighborhood);
  }

  void finish() {
    cut();
    std::sort(entries.begin(), entries.end(), comes_first);
  }

  static bool comes_first(const Entry& a, const Entry& b) { return comes_before(a, b); }
};

struct Sample {
  std::vector<Entry> candidates;
  Neighborhood neighborhood;  // of the anchor
  int64_t first_inconsistent = 0;
  bool has_neighborhood = false;

  int64_t count() const { return static_cast<int64_t>(candidates.size()); }
  int64_t anchor() const { return candidates[0].column; }
};

// One candidate whose rank is not known yet.
struct Pair {
  int64_t sample;
  int64_t position;
  float bar;      // S[p, a]
  int64_t row;    // of its column among the distinct rows
  int64_t above;
};

// What is known of the lengths of the memory's rows.
struct RowLengths {
  int64_t head;             // dimensions of a row's first part
  std::vector<float> rest;  // length of the other part, a little too long
  bool all_short;           // none is longer than 1
  float slack;              // above the difference of two roundings of a product
};

class Prediction {
 public:
  Prediction(const Inquiry& inquiry, const PredictionOptions& options, const RowLengths& lengths, int64_t begin,
             int64_t end)
      : memory_(inquiry.memory), values_(const_floats(memory_)), n_(memory_.size(0)), d_(memory_.size(1)),
        options_(options), lengths_(lengths), index_(inquiry.index + begin), samples_(end - begin) {
    if (inquiry.query_rows != nullptr) {
      collect_given(inquiry.query_rows + begin * n_);
    } else {
      std::vector<int64_t> positions(index_, index_ + samples_.size());
      scan(positions, true);
    }
    order_candidates();
  }

  void walk() {
    find_neighborhoods();
    std::vector<std::vector<Pair>> undecided(samples_.size());
    const int64_t size = static_cast<int64_t>(samples_.size());
    torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) look_near(s, undecided[s]);
    });
    std::vector<Pair> pairs;
    for (const auto& own : undecided) pairs.insert(pairs.end(), own.begin(), own.end());
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const Pair& a, const Pair& b) { return a.position < b.position; });
    for (std::size_t done = 0; done < pairs.size();) done = count_ranks(pairs, done);
  }

  void decide(uint8_t* labels) const {
    const int64_t width = label_bytes(n_);
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      const Sample& sample = samples_[s];
      decide_labels(sample.candidates.data(), sample.count(), sample.first_inconsistent, index_[s],
                    options_.strict, labels + s * width);
    }
  }

 private:
  int64_t rank_of(const Sample& sample) const {
    return largest_consistent_rank(sample.count(), options_.min_rank, options_.strict);
  }

  bool walks(const Sample& sample) const {
    return needs_walk(sample.count(), options_.strict) && rank_of(sample) < n_ - 1;
  }

  void collect_given(const float* rows) {
    const int64_t size = static_cast<int64_t>(samples_.size());
    torch::stable::parallel_for(0, size, grain(n_), [&](int64_t begin, int64_t end) {
      std::vector<Entry> found(n_);
      for (int64_t s = begin; s < end; ++s) {
        const int64_t count =
            vector_kernels().collect_above(rows + s * n_, n_, options_.threshold, 0, found.data());
        samples_[s].candidates.assign(found.begin(), found.begin() + count);
      }
    });
  }

  // Products of the rows at positions [samples] with the whole memory: candidates where asked, neighbourhoods.
  void scan(const std::vector<int64_t>& positions, bool candidates) {
    const Tensor queries = rows_at(memory_, positions);
    const int64_t size = static_cast<int64_t>(positions.size()), step = tile_columns(n_, d_, size);
    for (int64_t first = 0; first < n_; first += step) {
      const int64_t columns = std::min(step, n_ - first);
      Tensor all = memory_;
      const Tensor products = inner_products(queries, torch::stable::narrow(all, 0, first, columns));
      const float* rows = const_floats(products);
      torch::stable::parallel_for(0, size, grain(columns), [&](int64_t begin, int64_t end) {
        std::vector<Entry> found(columns);
        for (int64_t s = begin; s < end; ++s) {
          const float* row = rows + s * columns;
          if (candidates) append(row, columns, options_.threshold, first, found, samples_[s].candidates);
          Neighborhood& near = samples_[s].neighborhood;
          append(row, columns, near.floor, first, found, near.entries);
          near.cut();
        }
      });
    }
    for (Sample& sample : samples_) {
      sample.neighborhood.finish();
      sample.has_neighborhood = true;
    }
  }

  static void append(const float* row, int64_t columns, float bar, int64_t first, std::vector<Entry>& found,
                     std::vector<Entry>& to) {
    const int64_t count =
        vector_kernels().collect_above(row, columns, bar, static_cast<int32_t>(first), found.data());
    to.insert(to.end(), found.begin(), found.begin() + count);
  }

  void order_candidates() {
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      Sample& sample = samples_[s];
      std::sort(sample.candidates.begin(), sample.candidates.end(), Neighborhood::comes_first);
      sample.first_inconsistent = sample.count();
      // What scan() found is the neighbourhood of the image itself.
      if (sample.count() > 0 && sample.anchor() != index_[s]) sample.has_neighborhood = false;
    }
  }

  // Neighbourhoods of anchors that are not the sample itself.
  void find_neighborhoods() {
    std::vector<int64_t> missing, anchors;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      if (!walks(samples_[s]) || samples_[s].has_neighborhood) continue;
      missing.push_back(static_cast<int64_t>(s));
      anchors.push_back(samples_[s].anchor());
    }
    if (missing.empty()) return;
    std::vector<Sample> all(missing.size());
    all.swap(samples_);
    scan(anchors, false);
    all.swap(samples_);
    for (std::size_t m = 0; m < missing.size(); ++m) {
      all_to(missing[m]).neighborhood = std::move(all[m].neighborhood);
      all_to(missing[m]).has_neighborhood = true;
    }
  }

  Sample& all_to(int64_t s) { return samples_[s]; }

  // Ranks within the anchor's neighbourhood: often enough to show that a candidate is inconsistent, and all
  // there is to count where nothing outside can be more similar to the candidate than the anchor is.
  void look_near(int64_t s, std::vector<Pair>& undecided) {
    Sample& sample = samples_[s];
    if (!walks(sample)) return;
    const VectorKernels& kernels = vector_kernels();
    const int64_t rank = rank_of(sample);
    const float* anchor = values_ + sample.anchor() * d_;
    const bool exact = lengths_.all_short && kernels.dot(anchor, anchor, d_) >= 1 - kUnitTolerance;
    for (int64_t first = 0; first < sample.count(); first += kCandidatesAtOnce) {
      const int64_t size = std::min(kCandidatesAtOnce, sample.count() - first);
      const float* rows[kCandidatesAtOnce];
      float bars[kCandidatesAtOnce], products[kCandidatesAtOnce], needed = kInfinity;
      int64_t above[kCandidatesAtOnce] = {};
      for (int64_t j = 0; j < size; ++j) {
        rows[j] = values_ + static_cast<int64_t>(sample.candidates[first + j].column) * d_;
      }
      kernels.dots(rows, size, anchor, d_, bars);
      for (int64_t j = 0; j < size; ++j) {
        needed = std::min(needed, exact ? lowest_counted_similarity(bars[j]) : -kInfinity);
      }
      for (const Entry& entry : sample.neighborhood.entries) {
        if (entry.value <= needed) break;
        if (entry.column == sample.anchor()) continue;
        kernels.dots(rows, size, values_ + static_cast<int64_t>(entry.column) * d_, d_, products);
        for (int64_t j = 0; j < size; ++j) above[j] += products[j] > bars[j];
      }
      for (int64_t j = 0; j < size; ++j) {
        if (above[j] > rank) {
          sample.first_inconsistent = first + j;
          return;
        }
        const bool complete = exact && lowest_counted_similarity(bars[j]) >= sample.neighborhood.floor;
        if (!complete) undecided.push_back({s, first + j, bars[j], 0, 0});
      }
    }
  }

  bool walking(const Pair& pair) const { return pair.position < samples_[pair.sample].first_inconsistent; }

  // Ranks over all columns for pairs[begin, ...) on as many candidate rows as fit; returns where it stopped.
  std::size_t count_ranks(const std::vector<Pair>& pairs, std::size_t begin) {
    std::vector<Pair> active;
    std::vector<int64_t> rows;
    std::unordered_map<int64_t, int64_t> row_at;
    std::size_t end = begin;
    for (; end < pairs.size(); ++end) {
      Pair pair = pairs[end];
      if (!walking(pair)) continue;
      const int64_t candidate = samples_[pair.sample].candidates[pair.position].column;
      const auto [place, is_new] = row_at.try_emplace(candidate, static_cast<int64_t>(rows.size()));
      if (is_new && static_cast<int64_t>(rows.size()) == kRowsAtOnce) break;
      if (is_new) rows.push_back(candidate);
      pair.row = place->second;
      active.push_back(pair);
    }
    if (!active.empty()) count_tiles(active, rows);
    return end;
  }

  // Products of the first dimensions bound the whole: S[p,l] <= head + |rest of p| |rest of l|. Far columns are
  // left out by that, which saves the products of the other dimensions; where many columns are near, the whole
  // products are made. Either way they only sort columns out: what decides is the dot product of the rows, made
  // in the same order for the bar and for what is held against it, so that equal rows never count.
  void count_tiles(std::vector<Pair>& active, std::vector<int64_t>& rows) {
    Tensor candidates = rows_at(memory_, rows);
    bool by_heads = lengths_.head < d_;
    const int64_t step = tile_columns(n_, d_, static_cast<int64_t>(rows.size()));
    for (int64_t first = 0; first < n_ && !active.empty(); first += step) {
      const int64_t columns = std::min(step, n_ - first);
      Tensor all = memory_;
      const Tensor tile = torch::stable::narrow(all, 0, first, columns);
      std::vector<uint8_t> counted(active.size(), 0);
      if (by_heads) {
        Tensor tile_view = tile;
        const Tensor heads = inner_products(torch::stable::narrow(candidates, 1, 0, lengths_.head),
                                            torch::stable::narrow(tile_view, 1, 0, lengths_.head));
        count_tile(active, const_floats(heads), first, columns, true, counted);
      }
      const auto left = std::count(counted.begin(), counted.end(), 0);
      if (left > 0) count_tile(active, const_floats(inner_products(candidates, tile)), first, columns, false, counted);
      by_heads = by_heads && 4 * left < static_cast<int64_t>(active.size());
      drop_finished(active);
      shrink(active, rows, candidates);
    }
  }

  // Counts a tile for the pairs that are not marked as counted, and marks them; by heads only those with few
  // columns left.
  void count_tile(std::vector<Pair>& active, const float* products, int64_t first, int64_t columns, bool by_heads,
                  std::vector<uint8_t>& counted) {
    const int64_t size = static_cast<int64_t>(active.size());
    torch::stable::parallel_for(0, size, grain(columns), [&](int64_t begin, int64_t end) {
      const VectorKernels& kernels = vector_kernels();
      std::vector<Entry> found(columns);
      for (int64_t p = begin; p < end; ++p) {
        if (counted[p]) continue;
        Pair& pair = active[p];
        const float* row = products + pair.row * columns;
        const int64_t candidate = samples_[pair.sample].candidates[pair.position].column;
        const auto column = static_cast<int32_t>(first);
        const float low = pair.bar - lengths_.slack;
        const int64_t size_found =
            by_heads ? kernels.collect_reaching(row, lengths_.rest.data() + first, lengths_.rest[candidate], columns,
                                                low, column, found.data())
                     : kernels.collect_above(row, columns, low, column, found.data());
        if (by_heads && size_found > columns / kFewColumns) continue;
        counted[p] = 1;
        count_entries(pair, candidate, found.data(), size_found, by_heads ? kInfinity : pair.bar + lengths_.slack);
      }
    });
    for (const Pair& pair : active) {
      Sample& sample = samples_[pair.sample];
      if (pair.above > rank_of(sample)) {
        sample.first_inconsistent = std::min(sample.first_inconsistent, pair.position);
      }
    }
  }

  // Adds the columns among `entries` whose product is above the bar; a value above `sure` needs no second look.
  void count_entries(Pair& pair, int64_t candidate, const Entry* entries, int64_t size, float sure) const {
    const Sample& sample = samples_[pair.sample];
    const int64_t rank = rank_of(sample);
    const float* rows[kCandidatesAtOnce];
    float products[kCandidatesAtOnce];
    int64_t waiting = 0;
    const auto look = [&] {
      vector_kernels().dots(rows, waiting, values_ + candidate * d_, d_, products);
      for (int64_t i = 0; i < waiting; ++i) pair.above += products[i] > pair.bar;
      waiting = 0;
    };
    for (int64_t e = 0; e < size && pair.above <= rank; ++e) {
      if (entries[e].column == sample.anchor()) continue;
      if (entries[e].value > sure) {
        ++pair.above;
        continue;
      }
      rows[waiting++] = values_ + static_cast<int64_t>(entries[e].column) * d_;
      if (waiting == kCandidatesAtOnce) look();
    }
    if (pair.above <= rank) look();
  }

  void drop_finished(std::vector<Pair>& active) const {
    active.erase(std::remove_if(active.begin(), active.end(), [&](const Pair& pair) { return !walking(pair); }),
                 active.end());
  }

  // Leaves rows that no pair needs any more out of the coming products, where these are many.
  void shrink(std::vector<Pair>& active, std::vector<int64_t>& rows, Tensor& candidates) const {
    std::vector<int64_t> place(rows.size(), -1), kept;
    for (const Pair& pair : active) {
      if (place[pair.row] >= 0) continue;
      place[pair.row] = static_cast<int64_t>(kept.size());
      kept.push_back(rows[pair.row]);
    }
    if (kept.empty() || 8 * kept.size() > 7 * rows.size()) return;
    for (Pair& pair : active) pair.row = place[pair.row];
    rows = kept;
    candidates = rows_at(memory_, rows);
  }

  Tensor memory_;
  const float* values_;
  int64_t n_, d_;
  PredictionOptions options_;
  const RowLengths& lengths_;
  const int64_t* index_;
  std::vector<Sample> samples_;
};

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
  const double longest = n > 0 ? *std::max_element(whole.begin(), whole.end()) : 0;
  lengths.all_short = longest <= 1 + kUnitTolerance;
  // Of one rounding each term's share is at most d epsilon / 2.
  lengths.slack =
      static_cast<float>(2 * static_cast<double>(d + 8) * std::numeric_limits<float>::epsilon() * longest);
  return lengths;
}

}  // namespace

void predict_streaming(const Inquiry& inquiry, const PredictionOptions& options, uint8_t* labels) {
  if (inquiry.batch_size == 0) return;
  const RowLengths lengths = measure_rows(inquiry.memory);
  const int64_t width = label_bytes(inquiry.memory.size(0));
  for (int64_t begin = 0; begin < inquiry.batch_size; begin += kSamplesAtOnce) {
    Prediction prediction(inquiry, options, lengths, begin, std::min(begin + kSamplesAtOnce, inquiry.batch_size));
    prediction.walk();
    prediction.decide(labels + begin * width);
  }
}

}  // namespace snnet
