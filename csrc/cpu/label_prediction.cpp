// Label prediction (MPLP) without lists, from tiles of products: candidates of a row, the rank of each by counting, the
// decision.
#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <vector>

#include "../common/cycle_check.h"
#include "inquiry.h"
#include "products.h"
#include "rank_counts.h"

namespace snnet {
namespace {

constexpr int64_t kNeighborhood = 256;  // most similar images of an anchor that are looked at first
constexpr int64_t kLookedNear = 256;    // candidates of a sample that are compared with them
constexpr int64_t kCandidatesAtOnce = 16;
constexpr int64_t kCandidatesHeld = int64_t{1} << 19;  // of the samples that are at work together
constexpr int64_t kPairsHeld = int64_t{1} << 16;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool comes_first(const Entry& a, const Entry& b) { return comes_before(a, b); }

// The most similar images of an anchor: complete for similarities above the floor.
struct Neighborhood {
  std::vector<Entry> entries;
  float floor = -kInfinity;

  // Takes the most similar of `found`, which are in no order afterwards.
  void add(Entry* found, int64_t count) {
    count = cut(found, count);
    entries.insert(entries.end(), found, found + count);
    entries.resize(cut(entries.data(), static_cast<int64_t>(entries.size())));
  }

  void finish() { std::sort(entries.begin(), entries.end(), comes_first); }

 private:
  int64_t cut(Entry* from, int64_t count) {
    if (count <= kNeighborhood) return count;
    std::nth_element(from, from + kNeighborhood, from + count, comes_first);
    floor = std::max(floor, from[kNeighborhood].value);  // the largest of those that go
    return kNeighborhood;
  }
};

struct Sample {
  std::vector<Entry> candidates;
  Neighborhood neighborhood;  // of the anchor
  bool has_neighborhood = false;

  int64_t count() const { return static_cast<int64_t>(candidates.size()); }
  int32_t anchor() const { return candidates[0].column; }
};

class Prediction {
 public:
  Prediction(const Inquiry& inquiry, const PredictionOptions& options, const RowLengths& lengths, int64_t begin,
             int64_t end)
      : memory_(inquiry.memory), values_(const_floats(memory_)), n_(memory_.size(0)), d_(memory_.size(1)),
        options_(options), lengths_(lengths), index_(inquiry.index + begin), samples_(end - begin),
        rows_(inquiry.query_rows == nullptr ? nullptr : inquiry.query_rows + begin * n_) {}

  // False where the candidates are too many to be held.
  bool find_candidates() {
    if (rows_ != nullptr) {
      collect_given();
    } else {
      scan(std::vector<int64_t>(index_, index_ + samples_.size()), samples_, true);
    }
    if (overflows()) return false;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      Sample& sample = samples_[s];
      if (is_checked(sample)) std::sort(sample.candidates.begin(), sample.candidates.end(), comes_first);
      first_inconsistent_.push_back(sample.count());
      // What scan() found is the neighbourhood of the image itself.
      if (is_checked(sample) && sample.anchor() != index_[s]) sample.has_neighborhood = false;
    }
    return true;
  }

  void walk() {
    find_neighborhoods();
    const int64_t size = static_cast<int64_t>(samples_.size());
    for (int64_t position = 0;;) {
      std::vector<int64_t> walking;
      for (int64_t s = 0; s < size; ++s) {
        if (is_checked(samples_[s]) && position < first_inconsistent_[s]) walking.push_back(s);
      }
      if (walking.empty()) return;
      const int64_t step = kPairsHeld / static_cast<int64_t>(walking.size());
      std::vector<std::vector<RankPair>> undecided(walking.size());
      torch::stable::parallel_for(0, static_cast<int64_t>(walking.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t w = begin; w < end; ++w) look(walking[w], position, step, undecided[w]);
      });
      std::vector<RankPair> pairs;
      for (const auto& own : undecided) pairs.insert(pairs.end(), own.begin(), own.end());
      std::stable_sort(pairs.begin(), pairs.end(),
                       [](const RankPair& a, const RankPair& b) { return a.position < b.position; });
      walk_pairs(memory_, lengths_, pairs, first_inconsistent_);
      position += step;
    }
  }

  void decide(uint8_t* labels) const {
    const int64_t width = label_bytes(n_);
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      const Sample& sample = samples_[s];
      decide_labels(sample.candidates.data(), sample.count(), first_inconsistent_[s], index_[s],
                    labels + s * width);
    }
  }

 private:
  int64_t rank_of(const Sample& sample) const {
    return largest_consistent_rank(sample.count(), options_.min_rank);
  }

  bool is_checked(const Sample& sample) const { return needs_check(sample.count(), options_.min_rank, n_); }

  // A single sample's candidates are always held.
  bool overflows() const { return samples_.size() > 1 && held_ > kCandidatesHeld; }

  void hold(const Entry* found, int64_t count, Sample& sample) {
    held_ += count;
    if (!overflows()) sample.candidates.insert(sample.candidates.end(), found, found + count);
  }

  void collect_given() {
    const int64_t size = static_cast<int64_t>(samples_.size());
    torch::stable::parallel_for(0, size, grain(n_), [&](int64_t begin, int64_t end) {
      std::vector<Entry> found(n_);
      for (int64_t s = begin; s < end; ++s) {
        const int64_t count =
            vector_kernels().collect_above(rows_ + s * n_, n_, options_.threshold, 0, found.data());
        hold(found.data(), count, samples_[s]);
      }
    });
  }

  // Products of the rows at positions [samples] with the whole memory: candidates where asked, neighbourhoods.
  void scan(const std::vector<int64_t>& positions, std::vector<Sample>& samples, bool candidates) {
    const Tensor queries = rows_at(memory_, positions);
    const int64_t size = static_cast<int64_t>(positions.size()), step = tile_columns(n_, d_, size);
    for (int64_t first = 0; first < n_; first += step) {
      if (candidates && overflows()) return;
      const int64_t columns = std::min(step, n_ - first);
      const auto column = static_cast<int32_t>(first);
      Tensor all = memory_;
      const Tensor products = inner_products(queries, torch::stable::narrow(all, 0, first, columns));
      torch::stable::parallel_for(0, size, grain(columns), [&](int64_t begin, int64_t end) {
        const VectorKernels& kernels = vector_kernels();
        std::vector<Entry> found(columns);
        for (int64_t s = begin; s < end; ++s) {
          const float* row = const_floats(products) + s * columns;
          if (candidates) {
            hold(found.data(), kernels.collect_above(row, columns, options_.threshold, column, found.data()),
                 samples[s]);
          }
          Neighborhood& near = samples[s].neighborhood;
          near.add(found.data(), kernels.collect_above(row, columns, near.floor, column, found.data()));
        }
      });
    }
    for (Sample& sample : samples) {
      sample.neighborhood.finish();
      sample.has_neighborhood = true;
    }
  }

  // Neighbourhoods of anchors that are not the sample itself.
  void find_neighborhoods() {
    std::vector<int64_t> missing, anchors;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      if (!is_checked(samples_[s]) || samples_[s].has_neighborhood) continue;
      missing.push_back(static_cast<int64_t>(s));
      anchors.push_back(samples_[s].anchor());
    }
    if (missing.empty()) return;
    std::vector<Sample> found(missing.size());
    scan(anchors, found, false);
    for (std::size_t m = 0; m < missing.size(); ++m) {
      samples_[missing[m]].neighborhood = std::move(found[m].neighborhood);
    }
  }

  // Checks candidates [from, from + step) of a sample in the neighbourhood of the anchor. The count there often shows
  // that a candidate is inconsistent. It is the exact rank if no image outside of the neighbourhood can be more similar
  // to the candidate than the anchor is.
  void look(int64_t s, int64_t from, int64_t step, std::vector<RankPair>& undecided) {
    const Sample& sample = samples_[s];
    const VectorKernels& kernels = vector_kernels();
    const int64_t rank = rank_of(sample), last = std::min(from + step, sample.count());
    const float* anchor = values_ + sample.anchor() * d_;
    const bool exact = lengths_.all_short && kernels.dot(anchor, anchor, d_) >= 1 - kUnitTolerance;
    for (int64_t first = from; first < last; first += kCandidatesAtOnce) {
      const int64_t size = std::min(kCandidatesAtOnce, last - first);
      const float* rows[kCandidatesAtOnce];
      float bars[kCandidatesAtOnce];
      int64_t above[kCandidatesAtOnce] = {};
      for (int64_t j = 0; j < size; ++j) rows[j] = values_ + sample.candidates[first + j].column * d_;
      kernels.dots(rows, size, anchor, d_, bars);
      const bool near = first < kLookedNear;
      if (near) count_near(sample, rows, bars, size, exact, above);
      for (int64_t j = 0; j < size; ++j) {
        if (above[j] > rank) {
          first_inconsistent_[s] = first + j;
          return;
        }
        if (near && exact && lowest_counted_similarity(bars[j]) >= sample.neighborhood.floor) continue;
        undecided.push_back({static_cast<int32_t>(s), static_cast<int32_t>(first + j),
                             sample.candidates[first + j].column, sample.anchor(), bars[j], 0, rank, 0, 0});
      }
    }
  }

  // Adds to `above` the images of the neighbourhood that are above the bars.
  void count_near(const Sample& sample, const float* const* rows, const float* bars, int64_t size, bool exact,
                  int64_t* above) const {
    float products[kCandidatesAtOnce], needed = kInfinity;
    for (int64_t j = 0; j < size; ++j) {
      needed = std::min(needed, exact ? lowest_counted_similarity(bars[j]) : -kInfinity);
    }
    for (const Entry& entry : sample.neighborhood.entries) {
      if (entry.value <= needed) return;
      if (entry.column == sample.anchor()) continue;
      vector_kernels().dots(rows, size, values_ + entry.column * d_, d_, products);
      for (int64_t j = 0; j < size; ++j) above[j] += products[j] > bars[j];
    }
  }

  Tensor memory_;
  const float* values_;
  int64_t n_, d_;
  PredictionOptions options_;
  const RowLengths& lengths_;
  const int64_t* index_;
  std::vector<Sample> samples_;
  std::vector<int64_t> first_inconsistent_;  // of each sample: the first position known to be, else the count
  const float* rows_;                        // given similarity rows, or null
  std::atomic<int64_t> held_{0};             // candidates
};

// Samples [begin, end), in halves where they have too many candidates.
void predict(const Inquiry& inquiry, const PredictionOptions& options, const RowLengths& lengths, int64_t begin,
             int64_t end, uint8_t* labels) {
  {
    Prediction prediction(inquiry, options, lengths, begin, end);
    if (prediction.find_candidates()) {
      prediction.walk();
      prediction.decide(labels + begin * label_bytes(inquiry.memory.size(0)));
      return;
    }
  }
  const int64_t middle = begin + (end - begin) / 2;
  predict(inquiry, options, lengths, begin, middle, labels);
  predict(inquiry, options, lengths, middle, end, labels);
}

// -> labels uint8 [B, label_bytes(n)]
Tensor mplp(const Tensor& memory, const Tensor& index, const std::optional<Tensor>& query_rows, double threshold,
            int64_t min_rank) {
  const Inquiry inquiry(memory, index, query_rows);
  const PredictionOptions options = checked_prediction(threshold, min_rank);
  const int64_t batch_size = inquiry.batch_size;
  Tensor labels = torch::stable::new_zeros(memory, {batch_size, label_bytes(memory.size(0))}, ScalarType::Byte);
  if (batch_size == 0) return labels;
  const RowLengths lengths = measure_rows(memory);
  for (int64_t begin = 0; begin < batch_size; begin += kSamplesAtOnce) {
    predict(inquiry, options, lengths, begin, std::min(begin + kSamplesAtOnce, batch_size),
            labels.mutable_data_ptr<uint8_t>());
  }
  return labels;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) { m.impl("mplp", TORCH_BOX(&snnet::mplp)); }
