// The momentum update of the exemplar memory and of its symmetric neighbour lists, without a product with the memory.
//
// A pair that is listed follows the recurrence of the similarity matrix. A pair that is not is at or below the floors of
// both rows, so that s = f Mᵀ tells which few may rise above one of them: for those a product of two rows decides.
#include <iterator>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "../common/recurrence.h"
#include "checks.h"
#include "memory_rows.h"
#include "neighbor_lists.h"
#include "products.h"
#include "risen.h"
#include "vector.h"

namespace snnet {
namespace {

struct Pair {
  int32_t row, column;
  float value;
};

// An entry of a list.
struct Listed {
  int32_t row, column, place;
};

// Lists in which i lists l exactly where l lists i; mirrors[i, j] is the place of i in the row columns[i, j].
class SymmetricLists : public NeighborLists {
 public:
  SymmetricLists(const NeighborLists& lists, int32_t* mirror_places) : NeighborLists(lists), mirrors(mirror_places) {}

  int32_t* mirrors_of(int64_t i) const { return mirrors + i * capacity; }

  void set_value(int64_t i, int64_t place, float value) const {
    values_of(i)[place] = value;
    values_of(columns_of(i)[place])[mirrors_of(i)[place]] = value;
  }

  void raise_floors(const Pair& pair) const {
    floors[pair.row] = std::max(floors[pair.row], pair.value);
    floors[pair.column] = std::max(floors[pair.column], pair.value);
  }

  // Both rows have room.
  void insert(const Pair& pair) const {
    const int32_t place = append(pair.row, pair.column, pair.value);
    const int32_t other = pair.row == pair.column ? place : append(pair.column, pair.row, pair.value);
    mirrors_of(pair.row)[place] = other;
    mirrors_of(pair.column)[other] = place;
  }

  // The last entries of row i are wanted soon.
  void prefetch_last(int64_t i) const {
    const int64_t last = i * capacity + counts[i] - 1;
    __builtin_prefetch(columns + last, 1);
    __builtin_prefetch(values + last, 1);
    __builtin_prefetch(mirrors + last, 1);
  }

  void prefetch_all(int64_t i) const {
    for (int32_t j = 0; j < counts[i]; j += kLine) {
      __builtin_prefetch(columns_of(i) + j);
      __builtin_prefetch(mirrors_of(i) + j);
      __builtin_prefetch(values_of(i) + j, 1);
    }
  }

  // Where an entry of row i is mirrored is wanted soon.
  void prefetch_mirror(int64_t i, int32_t place) const {
    if (place < 0) return;  // the row is empty
    const int64_t mirror = columns_of(i)[place] * capacity + mirrors_of(i)[place];
    __builtin_prefetch(columns + mirror, 1);
    __builtin_prefetch(mirrors + mirror, 1);
  }

  // Takes l out of row i, where it probably stands at `place`, and i out of row l.
  void remove(int32_t i, int32_t l, int32_t place = 0) const {
    if (place >= counts[i] || columns_of(i)[place] != l) place = place_of(i, l);
    if (place == counts[i]) return;
    check_mirror(i, place);
    const int32_t other = mirrors_of(i)[place];
    erase(i, place);
    if (l != i) erase(l, other);
  }

  // What a moved row lists, and where that is mirrored, lies in the tables.
  void check_row(int64_t i) const {
    check_columns_of(i);
    if (all_within(mirrors_of(i), counts[i], capacity - 1)) return;
    for (int32_t j = 0; j < counts[i]; ++j) {
      const int32_t place = mirrors_of(i)[j];
      SNNET_CHECK(place >= 0 && place < capacity, "lists.mirrors must lie in [0, ", capacity, "), got ", place);
    }
  }

  int32_t* mirrors;  // [n, capacity]

 private:
  void check_mirror(int32_t i, int32_t place) const {
    const int32_t l = columns_of(i)[place], other = mirrors_of(i)[place];
    SNNET_CHECK(l >= 0 && l < n && other >= 0 && other < counts[l] && columns_of(l)[other] == i,
                "lists must be symmetric, but row ", i, " lists ", l, " at a place that is not mirrored");
  }

  int32_t append(int32_t i, int32_t column, float value) const {
    SNNET_CHECK(counts[i] < capacity, "lists must be symmetric, but row ", i, " has no room for its mirrored entries");
    return NeighborLists::append(i, column, value);
  }

  // The last entry of row i takes the place.
  void erase(int32_t i, int32_t place) const {
    const int32_t last = counts[i] - 1;
    if (place != last) check_mirror(i, last);
    NeighborLists::erase(i, place);
    int32_t* places = mirrors_of(i);
    if (place != last) {
      const int32_t l = columns_of(i)[place];
      places[place] = l == i ? place : places[last];  // it may be the row itself
      mirrors_of(l)[places[place]] = place;
    }
    places[last] = -1;
  }
};

// One round of an update: its rows have moved already.
class ListUpdate {
 public:
  ListUpdate(const SymmetricLists& lists, const MemoryRows& rows, const Round& round,
             const Blended& moved, const std::vector<const float*>& similarity)
      : lists_(lists), rows_(rows), round_(round), lengths_(moved.lengths), similarity_(similarity),
        count_(static_cast<int64_t>(round.size())), entry_of_(lists.n, -1), places_(count_ * count_, -1),
        dropped_(round.size()), risen_(round.size()), products_(inner_products(moved.rows, moved.rows)) {
    for (int64_t r = 0; r < count_; ++r) entry_of_[row_of(r)] = static_cast<int32_t>(r);
  }

  void run() {
    torch::stable::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      std::vector<char> is_listed(lists_.n);
      const std::unique_ptr<Entry[]> rising(new Entry[lists_.n]);
      for (int64_t r = begin; r < end; ++r) {
        look_ahead(r, r + 1 < end, is_listed);
        find_risen(r, is_listed, rising.get());
        follow_listed(r, is_listed);
        take_moved(r);
      }
    });
    drop();
    insert_risen();
  }

 private:
  int64_t row_of(int64_t r) const { return rows_.index[round_[r]]; }
  const float* memory_row(int64_t i) const { return rows_.memory + i * rows_.d; }

  float product(int64_t i, int64_t l) const {
    return static_cast<float>(vector_kernels().dot(memory_row(i), memory_row(l), rows_.d));
  }

  bool is_above_a_floor(int64_t i, int64_t l, float value) const {
    return value > lists_.floors[i] || value > lists_.floors[l];
  }

  // Marks what row r lists, and fetches what is read after the look at s, which takes a while: the mirrored entries,
  // which are anywhere in memory, and the next row.
  void look_ahead(int64_t r, bool has_next, std::vector<char>& is_listed) const {
    const int64_t i = row_of(r);
    const int32_t *columns = lists_.columns_of(i), *mirrors = lists_.mirrors_of(i);
    for (int32_t j = 0; j < lists_.counts[i]; ++j) {
      is_listed[columns[j]] = 1;
      __builtin_prefetch(lists_.values_of(columns[j]) + mirrors[j], 1);
    }
    if (has_next) lists_.prefetch_all(row_of(r + 1));
  }

  // S'[i, l] of the pairs of a moved row with unmoved ones that it lists; takes the marks off.
  void follow_listed(int64_t r, std::vector<char>& is_listed) {
    const int64_t i = row_of(r);
    const float* s = similarity_[r];
    const bool afresh = error_grows(lengths_[r], rows_.alpha);
    const int32_t* columns = lists_.columns_of(i);
    for (int32_t j = 0; j < lists_.counts[i]; ++j) {
      const int32_t l = columns[j];
      is_listed[l] = 0;
      if (entry_of_[l] >= 0) {
        places_[r * count_ + entry_of_[l]] = j;
        continue;
      }
      const float value = afresh ? product(i, l)
                                 : blended_similarity(lists_.values_of(i)[j], s[l], rows_.alpha, rows_.beta,
                                                      lengths_[r]);
      lists_.set_value(i, j, value);
      if (!is_above_a_floor(i, l, value)) dropped_[r].push_back({static_cast<int32_t>(i), l, j});
    }
  }

  // Unlisted pairs of a moved row with unmoved ones that are above a floor now.
  void find_risen(int64_t r, const std::vector<char>& is_listed, Entry* rising) {
    const int64_t i = row_of(r);
    const MovedRow moved{memory_row(i), similarity_[r], lengths_[r], lists_.floors[i]};
    const OtherRows others{rows_.memory, lists_.floors, lists_.n, rows_.d, rows_.alpha, rows_.beta};
    const auto is_taken = [&](int32_t l) { return is_listed[l] != 0 || entry_of_[l] >= 0; };
    find_risen_pairs(moved, others, rising, is_taken, [&](int32_t l, float product) {
      risen_[r].push_back({static_cast<int32_t>(i), l, product});
    });
  }

  // Pairs of moved rows: products.
  void take_moved(int64_t r) {
    const float* products = const_floats(products_) + r * count_;
    const int64_t i = row_of(r);
    for (int64_t c = 0; c <= r; ++c) {
      const int64_t l = row_of(c);
      const int32_t place = places_[r * count_ + c];
      const Pair pair{static_cast<int32_t>(i), static_cast<int32_t>(l), products[c]};
      if (place >= 0) lists_.set_value(i, place, pair.value);
      if (is_above_a_floor(i, l, pair.value) == (place >= 0)) continue;
      if (place >= 0) {
        dropped_[r].push_back({pair.row, pair.column, place});
      } else {
        risen_[r].push_back(pair);
      }
    }
  }

  // What has fallen below both floors leaves the lists. From the last place of a row to the first: those before stay.
  void drop() {
    std::vector<Listed> all;
    for (const auto& entries : dropped_) all.insert(all.end(), entries.rbegin(), entries.rend());
    constexpr std::size_t kSoon = 4, kLater = 8;  // what an entry leads to is anywhere in memory, and leads on
    for (std::size_t e = 0; e < all.size(); ++e) {
      if (e + kLater < all.size()) {
        lists_.prefetch_mirror(all[e + kLater].row, all[e + kLater].place);
        lists_.prefetch_last(all[e + kLater].column);
      }
      if (e + kSoon < all.size()) {
        const int32_t l = all[e + kSoon].column;
        lists_.prefetch_mirror(l, lists_.counts[l] - 1);
      }
      lists_.remove(all[e].row, all[e].column, all[e].place);
    }
  }

  // A row keeps the first `capacity` of what it lists and what is new to it; a pair without room in one of its rows
  // raises the floors of both.
  void insert_risen() {
    std::unordered_map<int32_t, std::vector<uint64_t>> fresh;  // what is new to each row
    for (const auto& pairs : risen_) {
      for (const Pair& pair : pairs) {
        fresh[pair.row].push_back(selection_key(pair.value, pair.column));
        if (pair.row != pair.column) fresh[pair.column].push_back(selection_key(pair.value, pair.row));
      }
    }
    std::unordered_map<int32_t, uint64_t> last;  // the smallest key that a row has room for, where not for all
    std::vector<Pair> removed;
    for (auto& [i, keys] : fresh) {
      if (lists_.counts[i] + static_cast<int64_t>(keys.size()) <= lists_.capacity) continue;
      lists_.add_keys(i, keys);
      std::nth_element(keys.begin(), keys.begin() + lists_.capacity - 1, keys.end(), std::greater<>());
      last[i] = keys[lists_.capacity - 1];
      for (int32_t j = 0; j < lists_.counts[i]; ++j) {
        const Pair pair{i, lists_.columns_of(i)[j], lists_.values_of(i)[j]};
        if (selection_key(pair.value, pair.column) < last[i]) removed.push_back(pair);
      }
    }
    for (const Pair& pair : removed) {
      lists_.remove(pair.row, pair.column);
      lists_.raise_floors(pair);
    }
    const auto has_room = [&](int32_t i, int32_t column, float value) {
      const auto found = last.find(i);
      return found == last.end() || selection_key(value, column) >= found->second;
    };
    for (const auto& pairs : risen_) {
      for (const Pair& pair : pairs) {
        if (has_room(pair.row, pair.column, pair.value) && has_room(pair.column, pair.row, pair.value)) {
          lists_.insert(pair);
        } else {
          lists_.raise_floors(pair);
        }
      }
    }
  }

  const SymmetricLists& lists_;
  const MemoryRows& rows_;
  const Round& round_;
  const std::vector<float>& lengths_;
  const std::vector<const float*>& similarity_;  // [n] of each entry of the round
  int64_t count_;
  std::vector<int32_t> entry_of_;  // [n], the entry that moved a row, or -1
  std::vector<int32_t> places_;    // [r, c] is where the row of entry r lists that of entry c, or -1
  std::vector<std::vector<Listed>> dropped_;
  std::vector<std::vector<Pair>> risen_;
  Tensor products_;  // of the moved rows with each other
};

// s of each batch entry as the memory stands: copies only of those that meet rows moved by entries before them.
class LiveSimilarity {
 public:
  LiveSimilarity(const Tensor& similarity, const Tensor& features, const std::vector<Round>& rounds)
      : rows_(similarity.size(0)) {
    const int64_t n = similarity.size(1);
    for (int64_t b = 0; b < std::ssize(rows_); ++b) rows_[b] = const_floats(similarity) + b * n;
    for (std::size_t turn = 1; turn < rounds.size(); ++turn) {
      waiting_.insert(waiting_.end(), rounds[turn].begin(), rounds[turn].end());
    }
    copies_.resize(waiting_.size() * n);
    float* next = copies_.data();
    for (int64_t b : waiting_) {
      rows_[b] = std::copy_n(rows_[b], n, next) - n;
      next += n;
    }
    if (!waiting_.empty()) features_ = rows_at(features, waiting_);
  }

  // The last `later` entries, which are those of later rounds, meet the rows that `round` has moved.
  void follow(const MemoryRows& rows, const Round& round, int64_t later) {
    if (later == 0) return;
    std::vector<int64_t> positions;
    for (int64_t b : round) positions.push_back(rows.index[b]);
    const int64_t first = std::ssize(waiting_) - later;
    const Tensor features = torch::stable::narrow(*features_, 0, first, later);
    const Tensor products = inner_products(features, rows_at(rows.tensor, positions));
    const float* product = const_floats(products);
    for (int64_t w = first; w < first + later; ++w) {
      for (int64_t i : positions) const_cast<float*>(rows_[waiting_[w]])[i] = *product++;
    }
  }

  std::vector<const float*> of(const Round& round) const {
    std::vector<const float*> found;
    for (int64_t b : round) found.push_back(rows_[b]);
    return found;
  }

 private:
  std::vector<const float*> rows_;  // [B]
  Round waiting_;                   // the entries of the second round, then of the third, ...
  std::optional<Tensor> features_;  // theirs
  std::vector<float> copies_;
};

// M[index] <- normalize(alpha M[index] + (1 - alpha) f)
void update_memory_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum) {
  const CheckedUpdate update = checked_update(memory, index, features, momentum);
  for (Round& round : occurrence_rounds(update.rows.index, update.batch_size)) blend_rows(update.rows, round);
}

// The same, and its lists.
void update_memory_lists_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum,
                          const Tensor& columns, const Tensor& values, const Tensor& counts, const Tensor& floors,
                          const Tensor& mirrors, const std::optional<Tensor>& similarity) {
  const CheckedUpdate update =
      checked_update(memory, index, features, momentum, columns, values, counts, floors, mirrors);
  const MemoryRows& rows = update.rows;
  const int64_t n = update.n, batch_size = update.batch_size;
  const NeighborLists tables(columns, values, counts, floors, n);
  check_storage(mirrors, "lists.mirrors", ScalarType::Int, n, tables.capacity);
  SNNET_CHECK(tables.capacity > 0 || n == 0, "lists.columns must have at least one place a row");
  if (similarity) check_matrix(*similarity, "similarity", ScalarType::Float, batch_size, n);
  if (batch_size == 0) return;
  const SymmetricLists lists(tables, mirrors.mutable_data_ptr<int32_t>());
  lists.check_counts();
  for (int64_t b = 0; b < batch_size; ++b) lists.check_row(rows.index[b]);
  const Tensor s = similarity ? apart_from(*similarity, memory, columns, values, counts, floors, mirrors) : inner_products(update.live, memory);
  std::vector<Round> rounds = occurrence_rounds(rows.index, batch_size);
  LiveSimilarity current(s, update.live, rounds);
  int64_t later = batch_size;
  for (Round& round : rounds) {
    later -= std::ssize(round);
    const Blended moved = blend_rows(rows, round);
    if (round.empty()) continue;
    ListUpdate(lists, rows, round, moved, current.of(round)).run();
    current.follow(rows, round, later);
  }
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("update_memory_", TORCH_BOX(&snnet::update_memory_));
  m.impl("update_memory_lists_", TORCH_BOX(&snnet::update_memory_lists_));
}
