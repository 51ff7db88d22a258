// Labels of a batch whose lists are divided over processes: what each of them tells the others, and what follows of it.
//
// Rows are counted from the first own one, columns from the first image of all.
#include <algorithm>
#include <functional>
#include <tuple>
#include <vector>

#include "neighbor_lists.h"

namespace snnet {
namespace {

constexpr int64_t kTold = 4;  // numbers in front of the candidates of a sample

struct Matrix32 {
  Tensor held;
  const int32_t* values;
  int64_t columns;

  Matrix32(const Tensor& given, const char* name, int64_t rows)
      : held(torch::stable::contiguous(given)), values(nullptr), columns(given.dim() == 2 ? given.size(1) : 0) {
    check_matrix(given, name, ScalarType::Int, rows, columns);
    values = held.const_data_ptr<int32_t>();
  }

  const int32_t* row(int64_t i) const { return values + i * columns; }
};

// Who works on the samples at `index` int64 [B], where the rows of each process end before ends int64 [R]: the process of
// each sample; the samples by process, then as they come; where each of them stands in blocks of the most that one process
// has, one block a process; all int64 [B]; and how many each process has, int64 [R].
std::tuple<Tensor, Tensor, Tensor, Tensor> divided_samples(const Tensor& index, const Tensor& ends) {
  const int64_t ranks = ends.size(0);
  const int64_t* last = checked_vector<const int64_t>(ends, "ends", ranks);
  SNNET_CHECK(ranks > 0, "ends must have an entry for each process");
  const Tensor positions = checked_index(index, last[ranks - 1]);
  const int64_t size = positions.size(0);
  const int64_t* at = positions.const_data_ptr<int64_t>();
  Tensor owner = torch::stable::new_empty(index, {size}), order = torch::stable::new_empty(index, {size});
  Tensor places = torch::stable::new_empty(index, {size}), counts = torch::stable::new_zeros(index, {ranks});
  int64_t *rank = owner.mutable_data_ptr<int64_t>(), *sample = order.mutable_data_ptr<int64_t>();
  int64_t *place = places.mutable_data_ptr<int64_t>(), *count = counts.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < size; ++b) {
    rank[b] = std::upper_bound(last, last + ranks, at[b]) - last;
    place[b] = count[rank[b]]++;
  }
  const int64_t most = *std::max_element(count, count + ranks);
  std::vector<int64_t> start(ranks);
  for (int64_t r = 1; r < ranks; ++r) start[r] = start[r - 1] + count[r - 1];
  for (int64_t b = 0; b < size; ++b) {
    sample[start[rank[b]] + place[b]] = b;
    place[b] += rank[b] * most;
  }
  return {owner, order, places, counts};
}

// What the lists of own rows [m] tell of their images, int32 [m, 4 + places]: how many candidates are above the
// threshold; the nearest other image, -1 without one; what the list does not tell, 1 for the candidates and 2 for the
// nearest; 0; and the candidates in falling order, -1 behind the last.
Tensor listed_candidates(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                         const Tensor& row, int64_t first, double threshold, int64_t places) {
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  const Tensor positions = checked_index(row, lists.n);
  const int64_t size = positions.size(0), width = kTold + places;
  SNNET_CHECK(places >= lists.capacity, "places must be at least those of a list, ", lists.capacity, ", got ", places);
  Tensor found = torch::stable::new_empty(row, {size, width}, ScalarType::Int);
  const int64_t* at = positions.const_data_ptr<int64_t>();
  int32_t* told = found.mutable_data_ptr<int32_t>();
  const auto bar = static_cast<float>(threshold);
  torch::stable::parallel_for(0, size, grain(4 * lists.capacity), [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> keys;
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = at[e];
      uint64_t nearest = 0;  // the key of the nearest other image
      keys.clear();
      for (int32_t j = 0; j < lists.counts[i]; ++j) {
        const float value = lists.values_of(i)[j];
        const uint64_t key = selection_key(value, lists.columns_of(i)[j]);
        if (value > bar) keys.push_back(key);
        if (lists.columns_of(i)[j] != first + i) nearest = std::max(nearest, key);
      }
      std::sort(keys.begin(), keys.end(), std::greater<>());
      int32_t* out = told + e * width;
      const auto column = [](uint64_t key) { return column_of_key(key); };  // a pointer to it is not always inlined
      std::fill(std::transform(keys.begin(), keys.end(), out + kTold, column), out + width, -1);
      constexpr float kNothing = -std::numeric_limits<float>::infinity();
      const float largest = nearest == 0 ? kNothing : value_of_key(nearest), floor = lists.floors[i];
      out[0] = static_cast<int32_t>(keys.size());
      out[1] = largest == kNothing ? -1 : column_of_key(nearest);
      // What is not listed may be as large as the floor, and come first by its column.
      out[2] = (floor > bar) + 2 * !(largest > floor || floor == kNothing);
      out[3] = 0;
    }
  });
  return found;
}

// Of the candidates int32 [B, w] of all samples, -1 where there is none, those that stand in own rows p: whether more
// than max(number, min_rank) images are more similar to p than the sample's anchor is. Int8 [B, w]: 2 where the list of p
// does not tell, 3 for all others, and for samples whose candidates need no check.
Tensor listed_verdicts(const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                       int64_t first, int64_t images, const Tensor& candidates, const Tensor& anchor,
                       const Tensor& number, int64_t min_rank) {
  const NeighborLists lists = checked_lists(columns, values, counts, floors);
  const int64_t size = rows_of(candidates, "candidates");
  const Matrix32 asked(candidates, "candidates", size);
  const Tensor anchors = torch::stable::contiguous(anchor), numbers = torch::stable::contiguous(number);
  const int32_t* of = checked_vector<const int32_t>(anchors, "anchor", size);
  const int32_t* many = checked_vector<const int32_t>(numbers, "number", size);
  Tensor verdicts = torch::stable::new_empty(candidates, {size, asked.columns}, ScalarType::Char);
  int8_t* out = verdicts.mutable_data_ptr<int8_t>();
  std::fill_n(out, size * asked.columns, kElsewhere);
  torch::stable::parallel_for(0, size, grain(2 * lists.capacity * asked.columns), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (!needs_check(many[b], min_rank, images)) continue;
      const int64_t rank = largest_consistent_rank(many[b], min_rank);
      const auto is_own = [&](int64_t j) { return asked.row(b)[j] >= first && asked.row(b)[j] < first + lists.n; };
      for (int64_t j = 0; j < asked.columns; ++j) {
        constexpr int64_t kAhead = 4;  // the rows are anywhere in memory
        if (j + kAhead < asked.columns && is_own(j + kAhead)) lists.prefetch_row(asked.row(b)[j + kAhead] - first);
        if (!is_own(j)) continue;
        out[b * asked.columns + j] = lists.verdict_of(asked.row(b)[j] - first, of[b], rank);
      }
    }
  });
  return verdicts;
}

// A walk over the candidates int32 [B, w] from `position` int64 [B] on, of which each process has told verdicts int8
// [R, B, w]. It ends at ends int64 [B] or at the first that is inconsistent, and stops in front of one that is untold;
// both move. Without `stops` nothing moves where one is untold. The positives but index [B], (sample, column); and int64
// [2]: how many samples have not ended, and how many have met an untold one.
std::tuple<Tensor, Tensor, Tensor> walk_candidates_(const Tensor& position, const Tensor& ends, const Tensor& verdicts,
                                                    const Tensor& candidates, const Tensor& index, bool stops) {
  const int64_t size = rows_of(candidates, "candidates");
  const Matrix32 chunk(candidates, "candidates", size);
  const int64_t width = chunk.columns, ranks = verdicts.dim() == 3 ? verdicts.size(0) : 0;
  SNNET_CHECK(verdicts.is_cpu() && verdicts.scalar_type() == ScalarType::Char && ranks > 0 && verdicts.is_contiguous() &&
                  verdicts.size(1) == size && verdicts.size(2) == width,
              "verdicts must be contiguous int8 [R, ", size, ", ", width, "] on the cpu");
  const int8_t* verdict = verdicts.const_data_ptr<int8_t>();
  const int64_t* own = checked_vector<const int64_t>(index, "index", size);
  int64_t* at = checked_vector<int64_t>(position, "position", size);
  int64_t* last = checked_vector<int64_t>(ends, "ends", size);
  const auto verdict_of = [&](int64_t b, int64_t j) {  // one process knows
    int8_t found = kElsewhere;
    for (int64_t r = 0; r < ranks; ++r) found = std::min(found, verdict[(r * size + b) * width + j]);
    return found;
  };
  std::vector<int64_t> passed(size);
  std::vector<char> has_ended(size);
  Tensor told = torch::stable::new_zeros(position, {2});
  int64_t *left = told.mutable_data_ptr<int64_t>(), *untold = left + 1;
  for (int64_t b = 0; b < size; ++b) {
    if (at[b] >= last[b]) continue;
    int8_t found = kConsistent;
    while (passed[b] < width) {
      found = verdict_of(b, passed[b]);
      if (found == kInconsistent || found == kUntold) break;
      ++passed[b];
    }
    has_ended[b] = passed[b] < width && found == kInconsistent;
    *untold += passed[b] < width && found == kUntold;
  }
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t b = 0; b < size; ++b) {
    if (at[b] < last[b] && (stops || *untold == 0)) {
      int64_t after = at[b] + passed[b];
      if (has_ended[b]) after = std::max<int64_t>(after, 2);  // positive whatever the check says
      after = std::min(after, last[b]);
      for (int64_t j = 0; j < std::min(after - at[b], width); ++j) {
        const int32_t column = chunk.row(b)[j];
        if (column >= 0 && column != own[b]) found.push_back({b, column});
      }
      at[b] = after;
      if (has_ended[b]) last[b] = after;
    }
    *left += at[b] < last[b];
  }
  const auto pairs = static_cast<int64_t>(found.size());
  Tensor samples = torch::stable::new_empty(position, {pairs}), columns = torch::stable::new_empty(position, {pairs});
  int64_t *sample = samples.mutable_data_ptr<int64_t>(), *column = columns.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < pairs; ++e) std::tie(sample[e], column[e]) = found[e];
  return {samples, columns, told};
}

// The label sets of all samples in the n own columns from `first` on, of what all processes have told.
//
// Main positives are the pairs (sample, column) int64 [E]; symmetric ones stand in entries int32 [R, most], of each
// process sample by sample, sizes int32 [B] of those that it owns (`owner` int64 [B]); `neighbors` uint8 [B, L] are the
// own columns of the neighbours' labels, which have told[r, b] positives in those of rank r. Main and symmetric labels
// uint8 [B, L]; positives of the three sets in all columns int64 [B, 3]; how many of the second and third set are main
// ones too, in the own columns, int32 [B, 2].
std::tuple<Tensor, Tensor, Tensor, Tensor> own_label_sets(const Tensor& sample, const Tensor& column,
                                                          const Tensor& owner, const Tensor& sizes,
                                                          const Tensor& entries, const Tensor& neighbors,
                                                          const Tensor& told, int64_t first, int64_t n) {
  const int64_t batch_size = owner.size(0), ranks = rows_of(entries, "entries"), width = label_bytes(n);
  const int64_t pairs = sample.size(0);
  const int64_t* samples = checked_vector<const int64_t>(sample, "sample", pairs);
  const int64_t* columns = checked_vector<const int64_t>(column, "column", pairs);
  const int64_t* owners = checked_vector<const int64_t>(owner, "owner", batch_size);
  const Tensor given_sizes = torch::stable::contiguous(sizes);
  const int32_t* size = checked_vector<const int32_t>(given_sizes, "sizes", batch_size);
  const Matrix32 listed(entries, "entries", ranks), of_neighbors(told, "told", ranks);
  SNNET_CHECK(of_neighbors.columns == batch_size, "told must have ", batch_size, " columns");
  check_storage(neighbors, "neighbors", ScalarType::Byte, batch_size, width);
  Tensor main = torch::stable::new_zeros(neighbors, {batch_size, width});
  Tensor symmetric = torch::stable::new_zeros(neighbors, {batch_size, width});
  Tensor positives = torch::stable::new_zeros(neighbors, {batch_size, 3}, ScalarType::Long);
  Tensor common = torch::stable::new_zeros(neighbors, {batch_size, 2}, ScalarType::Int);
  uint8_t *main_bits = main.mutable_data_ptr<uint8_t>(), *symmetric_bits = symmetric.mutable_data_ptr<uint8_t>();
  const uint8_t* neighbor_bits = neighbors.const_data_ptr<uint8_t>();
  int64_t* number = positives.mutable_data_ptr<int64_t>();
  int32_t* both = common.mutable_data_ptr<int32_t>();
  const auto set_own = [&](uint8_t* bits, int64_t b, int64_t l) {
    if (l >= first && l < first + n) set_bit(bits + b * width, l - first);
  };
  for (int64_t e = 0; e < pairs; ++e) {
    SNNET_CHECK(samples[e] >= 0 && samples[e] < batch_size, "sample must lie in [0, ", batch_size, "), got ",
                samples[e]);
    set_own(main_bits, samples[e], columns[e]);
    ++number[3 * samples[e]];
  }
  std::vector<int64_t> read(ranks);
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t rank = owners[b];
    SNNET_CHECK(rank >= 0 && rank < ranks, "owner must lie in [0, ", ranks, "), got ", rank);
    SNNET_CHECK(size[b] >= 0 && read[rank] + size[b] <= listed.columns, "sizes of rank ", rank, " are more than ",
                listed.columns, " entries");
    for (int32_t j = 0; j < size[b]; ++j) set_own(symmetric_bits, b, listed.row(rank)[read[rank]++]);
    number[3 * b + 1] = size[b];
    for (int64_t r = 0; r < ranks; ++r) number[3 * b + 2] += of_neighbors.row(r)[b];
  }
  for (int64_t b = 0; b < batch_size; ++b) {
    for (int64_t word = 0; 64 * word < n; ++word) {
      const uint64_t bits = label_word(main_bits + b * width, word);
      both[2 * b] += count_bits(bits & label_word(symmetric_bits + b * width, word));
      both[2 * b + 1] += count_bits(bits & label_word(neighbor_bits + b * width, word));
    }
  }
  return {main, symmetric, positives, common};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("divided_samples", TORCH_BOX(&snnet::divided_samples));
  m.impl("listed_candidates", TORCH_BOX(&snnet::listed_candidates));
  m.impl("listed_verdicts", TORCH_BOX(&snnet::listed_verdicts));
  m.impl("walk_candidates_", TORCH_BOX(&snnet::walk_candidates_));
  m.impl("own_label_sets", TORCH_BOX(&snnet::own_label_sets));
}
