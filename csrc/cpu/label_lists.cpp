// The pseudo label memory as lists: of each row its columns, of each column its rows.
//
// A table keeps n lists in one array. List i has counts[i] entries from starts[i] on, and room for sizes[i]. One that
// needs more moves to the end of what is used; the places that it leaves are lost until the table is made afresh.
#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "checks.h"
#include "label_entries.h"

namespace snnet {
namespace {

constexpr int32_t kSmallestSize = 8;

int32_t grown_size(int64_t count) {
  int64_t size = kSmallestSize;
  while (size < count) size *= 2;
  return static_cast<int32_t>(std::min<int64_t>(size, INT32_MAX));
}

// What a reader of a table needs.
struct LabelLists {
  int64_t n, places;
  int32_t* entries;
  int64_t* starts;
  int32_t* counts;

  LabelLists(const Tensor& entries_tensor, const Tensor& starts_tensor, const Tensor& counts_tensor)
      : n(starts_tensor.size(0)), places(entries_tensor.size(0)),
        entries(checked_vector<int32_t>(entries_tensor, "entries", places)),
        starts(checked_vector<int64_t>(starts_tensor, "starts", n)),
        counts(checked_vector<int32_t>(counts_tensor, "counts", n)) {}

  int32_t* list(int64_t i) const { return entries + starts[i]; }

  // Before list i is read: tables that nothing has filled (to_empty()) hold any numbers.
  void check_list(int64_t i) const {
    SNNET_CHECK(starts[i] >= 0 && counts[i] >= 0 && counts[i] <= places - starts[i], "list ", i,
                " must lie in the ", places, " entries of its table, got start ", starts[i], " and count ", counts[i]);
  }
};

struct GrowingLists : LabelLists {
  int32_t* sizes;
  int64_t* used;

  GrowingLists(const Tensor& entries_tensor, const Tensor& starts_tensor, const Tensor& counts_tensor,
               const Tensor& sizes_tensor, const Tensor& used_tensor)
      : LabelLists(entries_tensor, starts_tensor, counts_tensor),
        sizes(checked_vector<int32_t>(sizes_tensor, "sizes", n)) {
    SNNET_CHECK(used_tensor.is_cpu() && used_tensor.scalar_type() == ScalarType::Long && used_tensor.numel() == 1,
                "used must be one int64 on the cpu");
    used = used_tensor.mutable_data_ptr<int64_t>();
    SNNET_CHECK(*used >= 0 && *used <= places, "used must lie in [0, ", places, "], the entries of its table, got ",
                *used);
  }

  // Before list i is written.
  void check_list(int64_t i) const {
    const int64_t start = starts[i];
    const int32_t count = counts[i], size = sizes[i];
    SNNET_CHECK(start >= 0 && count >= 0 && count <= size && size <= places - start, "list ", i, " must lie in the ",
                places, " entries of its table, got start ", start, ", count ", count, " and size ", size);
  }

  // Places at the end that list i takes to hold `count` entries.
  int64_t places_for(int64_t i, int64_t count) const { return count > sizes[i] ? grown_size(count) : 0; }

  // Room for `count` entries in list i; the table has the places.
  void make_room(int64_t i, int64_t count) const {
    if (count <= sizes[i]) return;
    const int32_t size = grown_size(count);
    std::copy_n(list(i), counts[i], entries + *used);
    starts[i] = *used;
    sizes[i] = size;
    *used += size;
  }

  void add(int64_t i, int32_t entry) const {
    make_room(i, int64_t{counts[i]} + 1);
    list(i)[counts[i]++] = entry;
  }

  void replace(int64_t i, const std::vector<int32_t>& wanted) const {
    make_room(i, static_cast<int64_t>(wanted.size()));
    std::copy(wanted.begin(), wanted.end(), list(i));
    counts[i] = static_cast<int32_t>(wanted.size());
  }

  void remove(int64_t i, int32_t entry) const {
    int32_t *begin = list(i), *end = begin + counts[i];
    int32_t* found = std::find(begin, end, entry);
    SNNET_CHECK(found != end, "the lists of rows and columns contradict each other at ", entry, " of ", i);
    *found = *(end - 1);
    --counts[i];
  }
};

// What a write of row i changes.
struct Change {
  int64_t row;
  std::vector<int32_t> wanted, added, removed;  // columns: of the new row, and what differs from the old one
};

std::vector<int32_t> set_columns(const uint8_t* labels, int64_t n) {
  std::vector<int32_t> columns;
  for (int64_t word = 0; 64 * word < n; ++word) {
    for (uint64_t bits = label_word(labels, word) & columns_of_word(word, n); bits != 0; bits &= bits - 1) {
      columns.push_back(static_cast<int32_t>(64 * word + lowest_bit(bits)));
    }
  }
  return columns;
}

// Writes P[index] <- labels to the lists of rows and of columns, and returns zeros, int64 [2]. If a table lacks places,
// writes nothing and returns how many places each table needs.
Tensor write_label_lists_(const Tensor& row_entries, const Tensor& row_starts, const Tensor& row_counts,
                          const Tensor& row_sizes, const Tensor& row_used, const Tensor& column_entries,
                          const Tensor& column_starts, const Tensor& column_counts, const Tensor& column_sizes,
                          const Tensor& column_used, const Tensor& index, const Tensor& labels) {
  const GrowingLists rows(row_entries, row_starts, row_counts, row_sizes, row_used);
  const GrowingLists columns(column_entries, column_starts, column_counts, column_sizes, column_used);
  const int64_t n = columns.n;
  const Tensor positions = checked_index(index, rows.n);
  check_matrix(labels, "labels", ScalarType::Byte, positions.size(0), label_bytes(n));
  const Tensor given = torch::stable::contiguous(labels);
  const auto entries = newest_entries(positions.const_data_ptr<int64_t>(), positions.size(0));
  for (const auto& [row, entry] : entries) rows.check_list(row);
  std::vector<Change> changes(entries.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(entries.size()), grain(label_bytes(n) / 8),
                              [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const auto [row, entry] = entries[e];
      std::vector<int32_t> before(rows.list(row), rows.list(row) + rows.counts[row]);
      std::sort(before.begin(), before.end());
      Change& change = changes[e];
      change.row = row;
      change.wanted = set_columns(given.const_data_ptr<uint8_t>() + entry * label_bytes(n), n);
      const std::vector<int32_t>& wanted = change.wanted;
      std::set_difference(wanted.begin(), wanted.end(), before.begin(), before.end(),
                          std::back_inserter(change.added));
      std::set_difference(before.begin(), before.end(), wanted.begin(), wanted.end(),
                          std::back_inserter(change.removed));
    }
  });
  Tensor needed = torch::stable::new_zeros(index, {2}, ScalarType::Long);
  int64_t* places = needed.mutable_data_ptr<int64_t>();
  std::unordered_map<int32_t, int64_t> most;  // upper bound per column: entries may come before others go
  for (const Change& change : changes) {
    places[0] += rows.places_for(change.row, static_cast<int64_t>(change.wanted.size()));
    for (const int32_t column : change.added) ++most[column];
    if (change.removed.empty()) continue;
    const int32_t low = change.removed.front(), high = change.removed.back();
    SNNET_CHECK(low >= 0 && high < n, "entries of row ", change.row, " must lie in [0, ", n, "), got ",
                low < 0 ? low : high);
    for (const int32_t column : change.removed) columns.check_list(column);
  }
  for (const auto& [column, added] : most) {
    columns.check_list(column);
    // A list that moves more than once takes less than twice the last size.
    places[1] += 2 * columns.places_for(column, columns.counts[column] + added);
  }
  const bool fits = *rows.used + places[0] <= rows.places && *columns.used + places[1] <= columns.places;
  if (!fits) return needed;
  places[0] = places[1] = 0;
  for (const Change& change : changes) {
    const auto row = static_cast<int32_t>(change.row);
    for (const int32_t column : change.removed) columns.remove(column, row);
    for (const int32_t column : change.added) columns.add(column, row);
    rows.replace(row, change.wanted);
  }
  return needed;
}

// Bits uint8 [B, label_bytes(n)] of the lists at index, whose entries lie in [0, n); an index of -1 gives an empty label.
Tensor gather_label_lists(const Tensor& entries, const Tensor& starts, const Tensor& counts, const Tensor& index,
                          int64_t n) {
  const int64_t width = label_bytes(n);
  const LabelLists lists(entries, starts, counts);
  const Tensor positions = checked_index(index, lists.n, -1);
  Tensor gathered = torch::stable::new_zeros(index, {positions.size(0), width}, ScalarType::Byte);
  const int64_t* at = positions.const_data_ptr<int64_t>();
  uint8_t* bits = gathered.mutable_data_ptr<uint8_t>();
  for (int64_t b = 0; b < positions.size(0); ++b) {
    if (at[b] < 0) continue;
    lists.check_list(at[b]);
    const int32_t *entry = lists.list(at[b]), *end = entry + lists.counts[at[b]];
    for (; entry < end; ++entry) {
      const auto column = static_cast<uint32_t>(*entry);
      SNNET_CHECK(column < n, "entries of list ", at[b], " must lie in [0, ", n, "), got ", *entry);
      set_bit(bits + b * width, column);
    }
  }
  return gathered;
}

// The entries of the lists at index, one list after the other, int32 [E]; and how many each has, int32 [B].
std::tuple<Tensor, Tensor> gather_list_entries(const Tensor& entries, const Tensor& starts, const Tensor& counts,
                                               const Tensor& index) {
  const LabelLists lists(entries, starts, counts);
  const Tensor positions = checked_index(index, lists.n);
  const int64_t* at = positions.const_data_ptr<int64_t>();
  const int64_t size = positions.size(0);
  Tensor sizes = torch::stable::new_empty(index, {size}, ScalarType::Int);
  int32_t* number = sizes.mutable_data_ptr<int32_t>();
  int64_t total = 0;
  for (int64_t b = 0; b < size; ++b) {
    lists.check_list(at[b]);
    total += number[b] = lists.counts[at[b]];
  }
  Tensor gathered = torch::stable::new_empty(index, {total}, ScalarType::Int);
  int32_t* out = gathered.mutable_data_ptr<int32_t>();
  for (int64_t b = 0; b < size; ++b) out = std::copy_n(lists.list(at[b]), number[b], out);
  return {gathered, sizes};
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("write_label_lists_", TORCH_BOX(&snnet::write_label_lists_));
  m.impl("gather_label_lists", TORCH_BOX(&snnet::gather_label_lists));
  m.impl("gather_list_entries", TORCH_BOX(&snnet::gather_list_entries));
}
