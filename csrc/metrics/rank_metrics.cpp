// Ranks of a query's matches in its similarity row, found by counting: no row is sorted.
//
// Who is a match, junk or dropped is decided by the caller (snnet/retrieval/rank_metrics.py); here entries are counted.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../common/sources.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Indices = py::array_t<std::int64_t, py::array::c_style>;

// Matches counted in one pass over a row: few enough that their thresholds stay in registers.
constexpr std::int64_t kGroup = 8;
// From this many matches on, one binary search an entry costs less than the passes.
constexpr std::int64_t kSearchFrom = 256;
// Below every key, that of -infinity too, so an entry with it is never counted.
constexpr std::int32_t kExcluded = std::numeric_limits<std::int32_t>::min();
// A thread is not worth starting for fewer similarities than this.
constexpr std::int64_t kEntriesPerThread = 1 << 16;

// Gallery columns of each query: those of query q are columns[starts[q]] .. columns[starts[q + 1] - 1].
struct Lists {
  const std::int64_t* starts;
  const std::int64_t* columns;

  const std::int64_t* begin(std::int64_t query) const { return columns + starts[query]; }
  const std::int64_t* end(std::int64_t query) const { return columns + starts[query + 1]; }
};

// Buffers of one thread, allocated before it starts.
struct Scratch {
  std::vector<std::int32_t> keys;           // [gallery]
  std::vector<std::int64_t> match_keys;     // [most matches of a query]
  std::vector<std::int64_t> above_exactly;  // [most matches of a query + 1]
};

// Integers that order as the similarities do; -0 and +0 get the same. True if a NaN was among them.
bool similarity_keys(const float* similarity, std::int64_t size, std::int32_t* keys) {
  static_assert(std::numeric_limits<float>::is_iec559 && sizeof(float) == 4, "needs IEEE 754 binary32");
  std::int32_t has_nan = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, &similarity[i], sizeof bits);
    const std::int32_t magnitude = bits & 0x7fffffff;
    has_nan |= magnitude > 0x7f800000;
    keys[i] = bits < 0 ? -magnitude : magnitude;
  }
  return has_nan != 0;
}

// Adds to above[g] how many of the keys [begin, end) are larger than thresholds[g].
void count_above(const std::int32_t* begin, const std::int32_t* end, const std::int32_t* thresholds,
                 std::int32_t* above) {
  std::int32_t threshold[kGroup];  // copies: a vectoriser must see that the counts do not overwrite them
  std::int32_t count[kGroup] = {};
  for (std::int64_t g = 0; g < kGroup; ++g) threshold[g] = thresholds[g];
  const std::int64_t size = end - begin;
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int32_t key = begin[i];
    for (std::int64_t g = 0; g < kGroup; ++g) count[g] += key > threshold[g];
  }
  for (std::int64_t g = 0; g < kGroup; ++g) above[g] += count[g];
}

// Ranks by passes over the row, a group of matches a pass; columns rise.
//
// An entry before the match in the gallery is ahead of it when its key is larger or equal (key > own - 1),
// one behind when it is larger (key > own): the threshold goes up by 1 where the pass reaches the match.
void ranks_by_passes(const std::vector<std::int32_t>& keys, const std::int64_t* columns, std::int64_t matches,
                     std::int64_t* ranks) {
  const std::int32_t* row = keys.data();
  for (std::int64_t first = 0; first < matches; first += kGroup) {
    const std::int64_t size = std::min(kGroup, matches - first);
    std::int32_t thresholds[kGroup];
    std::int32_t above[kGroup] = {};
    std::fill_n(thresholds, kGroup, std::numeric_limits<std::int32_t>::max());
    for (std::int64_t g = 0; g < size; ++g) thresholds[g] = row[columns[first + g]] - 1;
    std::int64_t from = 0;
    for (std::int64_t g = 0; g < size; ++g) {
      const std::int64_t to = columns[first + g];
      count_above(row + from, row + to, thresholds, above);
      thresholds[g] += 1;
      from = to;
    }
    count_above(row + from, row + keys.size(), thresholds, above);
    for (std::int64_t g = 0; g < size; ++g) ranks[first + g] = above[g] + 1;
  }
  std::sort(ranks, ranks + matches);
}

// Ranks by a binary search of each entry among the matches, in time that hardly grows with their number.
void ranks_by_search(const std::vector<std::int32_t>& keys, const std::int64_t* columns, std::int64_t matches,
                     Scratch& scratch, std::int64_t* ranks) {
  const std::int64_t gallery = static_cast<std::int64_t>(keys.size());
  // The position in the low half: of equal similarities the earlier is the larger, and no two are equal.
  const auto unique_key = [&](std::int64_t column) {
    return static_cast<std::int64_t>(keys[column]) * (std::int64_t{1} << 32) + (gallery - 1 - column);
  };
  std::int64_t* match_keys = scratch.match_keys.data();
  std::int64_t* above_exactly = scratch.above_exactly.data();
  for (std::int64_t m = 0; m < matches; ++m) match_keys[m] = unique_key(columns[m]);
  std::sort(match_keys, match_keys + matches);
  std::fill_n(above_exactly, matches + 1, 0);
  for (std::int64_t column = 0; column < gallery; ++column) {
    const std::int64_t key = unique_key(column);
    const std::int64_t* base = match_keys;
    for (std::int64_t left = matches; left > 1;) {
      const std::int64_t half = left / 2;
      base += (base[half - 1] < key) * half;
      left -= half;
    }
    ++above_exactly[(base - match_keys) + (*base < key)];
  }
  std::int64_t ahead = 0;
  for (std::int64_t m = matches; m-- > 0;) {
    ahead += above_exactly[m + 1];
    ranks[matches - 1 - m] = ahead + 1;
  }
}

void check_lists(const Indices& starts, const Indices& columns, std::int64_t queries, std::int64_t gallery,
                 const std::string& name) {
  const auto fail = [&](const std::string& what) { throw std::invalid_argument(name + ": " + what); };
  if (starts.ndim() != 1 || starts.size() != queries + 1) fail("needs queries + 1 starts");
  if (columns.ndim() != 1) fail("needs a flat array of columns");
  const std::int64_t* start = starts.data();
  const std::int64_t* column = columns.data();
  if (start[0] != 0 || start[queries] != columns.size()) fail("starts must span the columns");
  for (std::int64_t q = 0; q < queries; ++q) {
    if (start[q] > start[q + 1]) fail("starts must not fall");
  }
  for (std::int64_t q = 0; q < queries; ++q) {
    for (std::int64_t i = start[q]; i < start[q + 1]; ++i) {
      if (column[i] < 0 || column[i] >= gallery) fail("a column is outside the gallery");
      if (i > start[q] && column[i] <= column[i - 1]) fail("the columns of a query must rise");
    }
  }
}

struct Problem {
  const float* similarity;  // [queries, gallery]
  std::int64_t queries;
  std::int64_t gallery;
  Lists matches;
  Lists junk;
  const std::int64_t* dropped;
  std::int64_t num_dropped;
  std::int64_t* ranks;  // as long as matches.columns
};

// True if the query's row has a NaN; its ranks are then not written.
bool rank_query(const Problem& problem, std::int64_t query, Scratch& scratch) {
  std::vector<std::int32_t>& keys = scratch.keys;
  const float* row = problem.similarity + query * problem.gallery;
  if (similarity_keys(row, problem.gallery, keys.data())) return true;
  const std::int64_t* columns = problem.matches.begin(query);
  const std::int64_t matches = problem.matches.end(query) - columns;
  if (matches == 0) return false;
  for (std::int64_t i = 0; i < problem.num_dropped; ++i) keys[problem.dropped[i]] = kExcluded;
  for (auto column = problem.junk.begin(query); column != problem.junk.end(query); ++column) {
    keys[*column] = kExcluded;
  }
  std::int64_t* ranks = problem.ranks + problem.matches.starts[query];
  if (matches < kSearchFrom) {
    ranks_by_passes(keys, columns, matches, ranks);
  } else {
    ranks_by_search(keys, columns, matches, scratch, ranks);
  }
  return false;
}

// True if a NaN was met. Each query's ranks depend on its row alone, so not on the number of threads.
bool rank_queries(const Problem& problem, std::int64_t threads) {
  std::int64_t most_matches = 0;
  for (std::int64_t q = 0; q < problem.queries; ++q) {
    most_matches = std::max<std::int64_t>(most_matches, problem.matches.end(q) - problem.matches.begin(q));
  }
  if (most_matches < kSearchFrom) most_matches = 0;
  threads = std::min({threads, problem.queries, problem.queries * problem.gallery / kEntriesPerThread + 1});
  std::vector<Scratch> scratch(static_cast<std::size_t>(std::max<std::int64_t>(threads, 1)));
  for (Scratch& own : scratch) {
    own.keys.resize(problem.gallery);
    own.match_keys.resize(most_matches);
    own.above_exactly.resize(most_matches + 1);
  }

  std::atomic<bool> has_nan{false};
  snnet::for_each_item(problem.queries, threads, [&](std::int64_t query, std::int64_t thread) {
    if (rank_query(problem, query, scratch[thread])) has_nan = true;
  });
  return has_nan;
}

std::pair<Indices, bool> count_ranks(const Floats& similarity, const Indices& match_starts,
                                     const Indices& matches, const Indices& junk_starts, const Indices& junk,
                                     const Indices& dropped, std::int64_t threads) {
  if (similarity.ndim() != 2) throw std::invalid_argument("similarity: needs 2 dimensions");
  const std::int64_t queries = similarity.shape(0);
  const std::int64_t gallery = similarity.shape(1);
  if (gallery > std::numeric_limits<std::int32_t>::max()) throw std::invalid_argument("gallery: too large");
  check_lists(match_starts, matches, queries, gallery, "matches");
  check_lists(junk_starts, junk, queries, gallery, "junk");
  if (dropped.ndim() != 1) throw std::invalid_argument("dropped: needs a flat array");
  for (std::int64_t i = 0; i < dropped.size(); ++i) {
    if (dropped.data()[i] < 0 || dropped.data()[i] >= gallery) {
      throw std::invalid_argument("dropped: a column is outside the gallery");
    }
  }

  Indices ranks(matches.size());
  const Problem problem{similarity.data(),
                        queries,
                        gallery,
                        {match_starts.data(), matches.data()},
                        {junk_starts.data(), junk.data()},
                        dropped.data(),
                        dropped.size(),
                        ranks.mutable_data()};
  bool has_nan;
  {
    py::gil_scoped_release release;
    has_nan = rank_queries(problem, threads);
  }
  return {std::move(ranks), has_nan};
}

}  // namespace

PYBIND11_MODULE(_rank_metrics, module) {
  module.doc() = "Ranks of each query's matches, by counting.";
  module.def("count_ranks", &count_ranks, py::arg("similarity").noconvert(),
             py::arg("match_starts").noconvert(), py::arg("matches").noconvert(),
             py::arg("junk_starts").noconvert(), py::arg("junk").noconvert(), py::arg("dropped").noconvert(),
             py::arg("threads"), R"(Ranks of the matches of each query, and whether similarity has a NaN.

similarity: float32 [queries, gallery]. matches and junk: int64 gallery columns, one list after the other,
that of query q from starts[q] to starts[q + 1], rising. dropped: int64 gallery columns that no query ranks.
Ranks: int64, as long as matches, rising within a query; undefined where there is a NaN.)");
}
