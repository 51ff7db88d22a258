// Label prediction (MPLP) and nearest neighbours from neighbour lists; a product of a row where its list does not tell.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "neighbor_lists.h"
#include "products.h"
#include "selection.h"

namespace snnet {
namespace {

constexpr int64_t kProductFloats = int64_t{4} << 20, kFewestRows = 64;  // that are multiplied at once

bool comes_first(const Entry& a, const Entry& b) { return comes_before(a, b); }

// Rows of S by products, for those images in `rows` (distinct): calls use(position in rows, row [n]) in parallel.
template <class Use>
void multiply_rows(const Tensor& memory, const std::vector<int64_t>& rows, const Use& use) {
  const int64_t n = memory.size(0), count = static_cast<int64_t>(rows.size());
  const int64_t step = std::max(kFewestRows, kProductFloats / std::max<int64_t>(n, 1));
  for (int64_t first = 0; first < count; first += step) {
    const int64_t size = std::min(step, count - first);
    const std::vector<int64_t> part(rows.begin() + first, rows.begin() + first + size);
    const Tensor products = inner_products(rows_at(memory, part), memory);
    torch::stable::parallel_for(0, size, grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) use(first + r, const_floats(products) + r * n);
    });
  }
}

std::vector<int64_t> distinct(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

class ListPrediction {
 public:
  ListPrediction(const Tensor& memory, const int64_t* index, int64_t batch_size, const NeighborLists& lists,
                 const float* query_rows, const PredictionOptions& options)
      : memory_(memory), index_(index), lists_(lists), query_rows_(query_rows), options_(options),
        samples_(batch_size) {}

  void predict(uint8_t* labels) {
    find_candidates();
    std::vector<int64_t> walking(samples_.size());
    for (std::size_t s = 0; s < samples_.size(); ++s) walking[s] = static_cast<int64_t>(s);
    while (!walking.empty()) walking = walk(walking);
    const int64_t width = label_bytes(lists_.n);
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      const Sample& sample = samples_[s];
      decide_labels(sample.candidates.data(), sample.count(), sample.position, index_[s],
                    labels + static_cast<int64_t>(s) * width);
    }
  }

  int64_t products() const { return products_; }

 private:
  struct Sample {
    std::vector<Entry> candidates;
    int64_t position = 0;    // the candidate that is looked at; in the end the first inconsistent one
    bool has_ended = false;  // a product has shown that this one is inconsistent

    int64_t count() const { return static_cast<int64_t>(candidates.size()); }
  };

  int64_t rank_of(const Sample& sample) const {
    return largest_consistent_rank(sample.count(), options_.min_rank);
  }

  // `found` has room for n entries. Few are candidates: most of its pages are never touched.
  void take(const float* row, int64_t n, Entry* found, Sample& sample) const {
    const int64_t count = vector_kernels().collect_above(row, n, options_.threshold, 0, found);
    sample.candidates.assign(found, found + count);
  }

  void find_candidates() {
    const int64_t size = static_cast<int64_t>(samples_.size());
    torch::stable::parallel_for(0, size, grain(query_rows_ != nullptr ? lists_.n : 2 * lists_.capacity),
                                [&](int64_t begin, int64_t end) {
      const std::unique_ptr<Entry[]> found(new Entry[query_rows_ != nullptr ? lists_.n : lists_.capacity]);
      for (int64_t s = begin; s < end; ++s) {
        Sample& sample = samples_[s];
        const int64_t i = index_[s];
        if (query_rows_ != nullptr) {
          take(query_rows_ + s * lists_.n, lists_.n, found.get(), sample);
        } else if (!(lists_.floors[i] > options_.threshold)) {
          take(lists_.values_of(i), lists_.counts[i], found.get(), sample);
          for (Entry& entry : sample.candidates) entry.column = lists_.columns_of(i)[entry.column];
        }
      }
    });
    if (query_rows_ == nullptr) multiply_incomplete();
    torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        std::sort(samples_[s].candidates.begin(), samples_[s].candidates.end(), comes_first);
      }
    });
  }

  // Candidates of the samples whose lists end above the threshold.
  void multiply_incomplete() {
    std::vector<int64_t> which, rows;
    for (std::size_t s = 0; s < samples_.size(); ++s) {
      if (!(lists_.floors[index_[s]] > options_.threshold)) continue;
      which.push_back(static_cast<int64_t>(s));
      rows.push_back(index_[s]);
    }
    products_ += static_cast<int64_t>(rows.size());
    multiply_rows(memory_, rows, [&](int64_t r, const float* row) {
      const std::unique_ptr<Entry[]> found(new Entry[lists_.n]);
      take(row, lists_.n, found.get(), samples_[which[r]]);
    });
  }

  // Checks the candidates of each sample while lists decide, then one more by a product. Returns the samples that are
  // not decided yet.
  std::vector<int64_t> walk(const std::vector<int64_t>& walking) {
    constexpr int64_t kAhead = 32;  // lists of candidates that are fetched before the first is looked at
    std::vector<char> is_untold(walking.size());
    torch::stable::parallel_for(0, static_cast<int64_t>(walking.size()), grain(64 * lists_.capacity),
                                [&](int64_t begin, int64_t end) {
      for (int64_t w = begin; w < end; ++w) {
        Sample& sample = samples_[walking[w]];
        const int64_t rank = rank_of(sample);
        if (!needs_check(sample.count(), options_.min_rank, lists_.n)) sample.position = sample.count();
        for (int64_t p = sample.position; p < std::min(sample.count(), sample.position + kAhead); ++p) {
          lists_.prefetch_row(sample.candidates[p].column);
        }
        Verdict verdict = kConsistent;
        for (; sample.position < sample.count(); ++sample.position) {
          verdict = lists_.verdict_of(sample.candidates[sample.position].column, sample.candidates[0].column, rank);
          if (verdict != kConsistent) break;
        }
        is_untold[w] = verdict == kUntold;
      }
    });
    std::vector<int64_t> untold, rows;
    for (std::size_t w = 0; w < walking.size(); ++w) {
      if (!is_untold[w]) continue;
      untold.push_back(walking[w]);
      rows.push_back(samples_[walking[w]].candidates[samples_[walking[w]].position].column);
    }
    const std::vector<int64_t> images = distinct(rows);
    products_ += static_cast<int64_t>(images.size());
    std::vector<std::vector<int64_t>> asked(images.size());
    for (std::size_t u = 0; u < untold.size(); ++u) {
      asked[std::lower_bound(images.begin(), images.end(), rows[u]) - images.begin()].push_back(untold[u]);
    }
    multiply_rows(memory_, images, [&](int64_t r, const float* row) {
      for (int64_t s : asked[r]) {
        Sample& sample = samples_[s];
        const int64_t rank = rank_of(sample);
        const float bar = row[sample.candidates[0].column];
        sample.has_ended = vector_kernels().count_above(row, lists_.n, bar, rank) > rank;
        if (!sample.has_ended) ++sample.position;
      }
    });
    std::vector<int64_t> goes_on;
    for (int64_t s : untold) {
      if (!samples_[s].has_ended) goes_on.push_back(s);
    }
    return goes_on;
  }

  Tensor memory_;
  const int64_t* index_;
  NeighborLists lists_;
  const float* query_rows_;  // [B, n] in place of the rows of the index, or null
  PredictionOptions options_;
  std::vector<Sample> samples_;
  int64_t products_ = 0;
};

// What an inquiry of lists is about, checked.
struct ListInquiry {
  Tensor index;
  NeighborLists lists;

  ListInquiry(const Tensor& memory, const Tensor& positions, const Tensor& columns, const Tensor& values,
               const Tensor& counts, const Tensor& floors)
      : index(checked_index(positions, rows_of(memory, "memory"))),
        lists(columns, values, counts, floors, memory.size(0)) {
    check_storage(memory, "memory", ScalarType::Float, lists.n, memory.size(1));
    lists.check_counts();
    for (int64_t b = 0; b < index.size(0); ++b) lists.check_columns_of(index.const_data_ptr<int64_t>()[b]);
  }

  const int64_t* positions() const { return index.const_data_ptr<int64_t>(); }
};

Tensor count_tensor(const Tensor& like, int64_t count) {
  Tensor made = torch::stable::new_empty(like, {}, ScalarType::Long);
  *made.mutable_data_ptr<int64_t>() = count;
  return made;
}

// -> labels uint8 [B, label_bytes(n)], rows that were multiplied int64 []
std::tuple<Tensor, Tensor> mplp_from_lists(const Tensor& memory, const Tensor& index, const Tensor& columns,
                                           const Tensor& values, const Tensor& counts, const Tensor& floors,
                                           const std::optional<Tensor>& query_rows, double threshold,
                                           int64_t min_rank) {
  const ListInquiry checked(memory, index, columns, values, counts, floors);
  const PredictionOptions options = checked_prediction(threshold, min_rank);
  const int64_t n = checked.lists.n, batch_size = checked.index.size(0);
  std::optional<Tensor> queries;
  if (query_rows) {
    check_matrix(*query_rows, "query_rows", ScalarType::Float, batch_size, n);
    queries = torch::stable::contiguous(*query_rows);
  }
  Tensor labels = torch::stable::new_zeros(memory, {batch_size, label_bytes(n)}, ScalarType::Byte);
  ListPrediction prediction(memory, checked.positions(), batch_size, checked.lists,
                            queries ? const_floats(*queries) : nullptr, options);
  prediction.predict(labels.mutable_data_ptr<uint8_t>());
  return {labels, count_tensor(memory, prediction.products())};
}

// The k nearest others of a row as keys, falling.
void keep_others(std::vector<uint64_t>& keys, int64_t own, int64_t k, int64_t* neighbors, float* similarity) {
  keys.erase(std::remove_if(keys.begin(), keys.end(), [&](uint64_t key) { return column_of_key(key) == own; }),
             keys.end());
  keep_largest(keys, k);
  for (int64_t j = 0; j < k; ++j) {
    const bool is_there = j < static_cast<int64_t>(keys.size());
    neighbors[j] = is_there ? column_of_key(keys[j]) : -1;
    similarity[j] = is_there ? value_of_key(keys[j]) : -std::numeric_limits<float>::infinity();
  }
}

// -> index int64 [B, k], similarity [B, k], rows that were multiplied int64 []
std::tuple<Tensor, Tensor, Tensor> nearest_from_lists(const Tensor& memory, const Tensor& index, const Tensor& columns,
                                                      const Tensor& values, const Tensor& counts,
                                                      const Tensor& floors, int64_t k) {
  const ListInquiry checked(memory, index, columns, values, counts, floors);
  SNNET_CHECK(k >= 1 && k < std::numeric_limits<int32_t>::max(), "k must be at least 1, got ", k);
  const NeighborLists& lists = checked.lists;
  const int64_t n = lists.n, batch_size = checked.index.size(0);
  Tensor neighbors = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Long);
  Tensor similarity = torch::stable::new_empty(memory, {batch_size, k}, ScalarType::Float);
  int64_t* at = neighbors.mutable_data_ptr<int64_t>();
  float* value = floats(similarity);
  std::vector<char> is_told(batch_size);
  torch::stable::parallel_for(0, batch_size, grain(8 * lists.capacity), [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t i = checked.positions()[b];
      keys.clear();
      lists.add_keys(i, keys);
      keep_others(keys, i, k, at + b * k, value + b * k);
      // An unlisted entry may equal the floor. If it has the lower column, it comes before a listed entry of that
      // value.
      is_told[b] = value[b * k + k - 1] > lists.floors[i] || lists.floors[i] == -std::numeric_limits<float>::infinity();
    }
  });
  std::vector<int64_t> untold, rows;
  for (int64_t b = 0; b < batch_size; ++b) {
    if (is_told[b]) continue;
    untold.push_back(b);
    rows.push_back(checked.positions()[b]);
  }
  multiply_rows(memory, rows, [&](int64_t r, const float* row) {
    SelectionScratch scratch;
    std::vector<uint64_t> keys = select_largest(row, n, k + 1, scratch);
    keep_others(keys, rows[r], k, at + untold[r] * k, value + untold[r] * k);
  });
  return {neighbors, similarity, count_tensor(memory, static_cast<int64_t>(rows.size()))};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("mplp_from_lists", TORCH_BOX(&snnet::mplp_from_lists));
  m.impl("nearest_from_lists", TORCH_BOX(&snnet::nearest_from_lists));
}
