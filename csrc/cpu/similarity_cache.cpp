// The momentum update of the exemplar memory and, by the recurrence, of the cached similarity matrix.
#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <vector>

#include "../common/recurrence.h"
#include "cache_blocks.h"
#include "checks.h"
#include "memory_rows.h"
#include "products.h"
#include "vector.h"

namespace snnet {
namespace {

constexpr int64_t kTile = 64;  // columns of the cache that are transposed at once
constexpr int64_t kPart = 8 * kBlockColumns;  // columns of a task: their blocks are a byte of their own in each row
static_assert(kPart % kTile == 0);
constexpr int64_t kFreshFloats = int64_t{2} << 20;  // of rows that are computed afresh at once

// Everything an update reads and writes; n images, d dimensions, B entries.
struct Update {
  Tensor memory_tensor;
  float* memory;            // [n, d]
  float* cache;             // [n, n] or null
  const int64_t* index;     // [B]
  const float* features;    // [B, d]
  const float* similarity;  // [B, n]
  const float* gram;        // [B, B]
  int64_t n, d, batch_size;
  float alpha, beta;
  CacheBlocks blocks;

  MemoryRows rows() const { return {memory, index, features, d, alpha, beta}; }
};


// s at the batch's own positions, as the memory stands: after a round it differs from the given s there only, so
// that repeated indices need no copies of its rows.
struct BatchSimilarity {
  std::vector<int64_t> positions;  // the distinct ones
  std::vector<int64_t> place;      // of each entry's position among them
  std::vector<float> values;       // [B, distinct positions]

  explicit BatchSimilarity(const Update& u) : place(u.batch_size) {
    std::unordered_map<int64_t, int64_t> seen;
    for (int64_t b = 0; b < u.batch_size; ++b) {
      const auto [found, is_new] = seen.try_emplace(u.index[b], static_cast<int64_t>(positions.size()));
      if (is_new) positions.push_back(u.index[b]);
      place[b] = found->second;
    }
    values.reserve(u.batch_size * positions.size());
    for (int64_t b = 0; b < u.batch_size; ++b) {
      for (int64_t position : positions) values.push_back(u.similarity[b * u.n + position]);
    }
  }

  float* row(int64_t b) { return values.data() + b * static_cast<int64_t>(positions.size()); }
  const float* row(int64_t b) const { return values.data() + b * static_cast<int64_t>(positions.size()); }
  // s of entry b with the position of entry c.
  float at(int64_t b, int64_t c) const { return row(b)[place[c]]; }
};

// S' inside the batch [b, b] of a round, symmetric; read from the rows before they are blended.
std::vector<float> batch_block(const Update& u, const Round& round, const BatchSimilarity& similarity,
                               const std::vector<float>& lengths) {
  const int64_t count = static_cast<int64_t>(round.size());
  std::vector<float> block(count * count);
  torch::stable::parallel_for(0, count, grain(4 * count), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t c = 0; c <= b; ++c) {
        const float before = u.cache[u.index[round[b]] * u.n + u.index[round[c]]];
        const float cross = similarity.at(round[b], round[c]) + similarity.at(round[c], round[b]);
        block[b * count + c] = blended_pair(before, cross, u.gram[round[b] * u.batch_size + round[c]], u.alpha,
                                            u.beta, lengths[b], lengths[c]);
      }
    }
  });
  return block;
}

// Marks the blocks of the new rows among columns [begin, end), and in the rows of these columns the blocks that hold a
// new value above the floor. Columns whose rows are new too have their marks from those rows.
void mark_blocks(const Update& u, const std::vector<int64_t>& rising, int64_t begin, int64_t end) {
  for (int64_t i : rising) {
    const float* row = u.cache + i * u.n;
    uint64_t marks = vector_kernels().high_blocks(row + begin, u.n - begin, u.blocks.floor);
    u.blocks.row(i)[begin / kPart] = static_cast<uint8_t>(marks);
    for (; marks != 0; marks &= marks - 1) {
      const int64_t first = begin + lowest_bit(marks) * kBlockColumns;
      for (int64_t l = first; l < std::min(first + kBlockColumns, end); ++l) {
        if (!(row[l] > u.blocks.floor) || std::binary_search(rising.begin(), rising.end(), l)) continue;
        set_bit(u.blocks.row(l), i / kBlockColumns);
      }
    }
  }
}

// Columns [begin, end) of the new rows, written to the columns of the rows' transpose: S'[l, i] = S'[i, l].
void write_columns(const Update& u, const std::vector<int64_t>& rising, int64_t begin, int64_t end) {
  const int64_t count = static_cast<int64_t>(rising.size());
  std::vector<float> tile(kTile * count);
  auto own = std::lower_bound(rising.begin(), rising.end(), begin);
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t last = std::min(first + kTile, end);
    for (int64_t r = 0; r < count; ++r) {
      const float* row = u.cache + rising[r] * u.n;
      for (int64_t l = first; l < last; ++l) tile[(l - first) * count + r] = row[l];
    }
    for (int64_t l = first; l < last; ++l) {
      if (own != rising.end() && *own == l) {  // a row of the round: complete already
        ++own;
        continue;
      }
      float* row = u.cache + l * u.n;
      for (int64_t r = 0; r < count; ++r) row[rising[r]] = tile[(l - first) * count + r];
    }
  }
}

// Rows of the cache by products with the updated memory, for the entries whose old error would grow.
void recompute_rows(const Update& u, const Round& round, const std::vector<int64_t>& grows,
                    std::vector<float>& block) {
  const int64_t count = static_cast<int64_t>(round.size()), size = static_cast<int64_t>(grows.size());
  const int64_t step = std::max<int64_t>(1, kFreshFloats / u.n);
  for (int64_t first = 0; first < size; first += step) {
    std::vector<int64_t> positions;
    for (int64_t g = first; g < std::min(first + step, size); ++g) positions.push_back(u.index[round[grows[g]]]);
    const Tensor fresh = inner_products(rows_at(u.memory_tensor, positions), u.memory_tensor);
    for (std::size_t g = 0; g < positions.size(); ++g) {
      const float* row = const_floats(fresh) + static_cast<int64_t>(g) * u.n;
      std::copy_n(row, u.n, u.cache + positions[g] * u.n);
      const int64_t own = grows[first + static_cast<int64_t>(g)];
      for (int64_t c = 0; c < count; ++c) {
        block[std::max(own, c) * count + std::min(own, c)] = row[u.index[round[c]]];
      }
    }
  }
}

// The rows of a round outside the batch: S'[i, l].
void blend_cache_rows(const Update& u, const Round& round, const std::vector<float>& lengths) {
  constexpr int64_t kLength = 4096;
  const int64_t parts = (u.n + kLength - 1) / kLength;
  const VectorKernels& kernels = vector_kernels();
  const int64_t count = static_cast<int64_t>(round.size());
  torch::stable::parallel_for(0, count * parts, grain(kLength), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / parts, first = task % parts * kLength;
      kernels.blend_similarities(u.cache + u.index[round[r]] * u.n + first,
                                 u.similarity + round[r] * u.n + first, u.alpha, u.beta, lengths[r],
                                 std::min(kLength, u.n - first));
    }
  });
}

// The same at the positions of the whole batch, where s has changed since: blended from what stood there before.
std::vector<float> before_blending(const Update& u, const Round& round, const std::vector<int64_t>& positions) {
  std::vector<float> before;
  before.reserve(round.size() * positions.size());
  for (int64_t b : round) {
    for (int64_t position : positions) before.push_back(u.cache[u.index[b] * u.n + position]);
  }
  return before;
}

void blend_changed(const Update& u, const Round& round, const BatchSimilarity& similarity,
                   const std::vector<float>& lengths, const std::vector<float>& before) {
  const std::size_t size = similarity.positions.size();
  for (std::size_t r = 0; r < round.size(); ++r) {
    for (std::size_t p = 0; p < size; ++p) {
      u.cache[u.index[round[r]] * u.n + similarity.positions[p]] = blended_similarity(
          before[r * size + p], similarity.row(round[r])[p], u.alpha, u.beta, lengths[r]);
    }
  }
}

// `is_first`: s is that of the memory as it stands.
void update_cache(const Update& u, const Round& round, const BatchSimilarity& similarity,
                  const std::vector<float>& lengths, bool is_first) {
  const int64_t count = static_cast<int64_t>(round.size()), n = u.n;
  std::vector<float> block = batch_block(u, round, similarity, lengths);
  const std::vector<float> before = is_first ? std::vector<float>{} : before_blending(u, round, similarity.positions);
  blend_cache_rows(u, round, lengths);
  if (!is_first) blend_changed(u, round, similarity, lengths, before);
  std::vector<int64_t> grows;
  for (int64_t r = 0; r < count; ++r) {
    if (error_grows(lengths[r], u.alpha)) grows.push_back(r);
  }
  if (!grows.empty()) recompute_rows(u, round, grows, block);
  std::vector<int64_t> rising(round.size());
  for (int64_t b = 0; b < count; ++b) {
    rising[b] = u.index[round[b]];
    for (int64_t c = 0; c < count; ++c) {
      u.cache[rising[b] * n + u.index[round[c]]] = block[std::max(b, c) * count + std::min(b, c)];
    }
  }
  std::sort(rising.begin(), rising.end());
  torch::stable::parallel_for(0, (n + kPart - 1) / kPart, grain(8 * count * kPart), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kPart, last = std::min(first + kPart, n);
      write_columns(u, rising, first, last);
      if (u.blocks.bits != nullptr) mark_blocks(u, rising, first, last);
    }
  });
}

// s of the later entries meets the memory as it is after a round.
void correct_later(const Update& u, const Round& round, const std::vector<float>& lengths, const Round& later,
                   BatchSimilarity& similarity) {
  for (int64_t e : later) {
    for (std::size_t r = 0; r < round.size(); ++r) {
      const int64_t i = u.index[round[r]];
      float& value = similarity.row(e)[similarity.place[round[r]]];
      value = error_grows(lengths[r], u.alpha)
                  ? static_cast<float>(vector_kernels().dot(u.features + e * u.d, u.memory + i * u.d, u.d))
                  : blended_similarity(value, u.gram[e * u.batch_size + round[r]], u.alpha, u.beta, lengths[r]);
    }
  }
}

void update_rounds(const Update& u) {
  std::vector<Round> rounds = occurrence_rounds(u.index, u.batch_size);
  std::optional<BatchSimilarity> similarity;
  if (u.cache != nullptr) similarity.emplace(u);
  for (std::size_t turn = 0; turn < rounds.size(); ++turn) {
    const std::vector<float> lengths = blend_rows(u.rows(), rounds[turn]);
    if (u.cache == nullptr || rounds[turn].empty()) continue;
    update_cache(u, rounds[turn], *similarity, lengths, turn == 0);
    for (std::size_t next = turn + 1; next < rounds.size(); ++next) {
      correct_later(u, rounds[turn], lengths, rounds[next], *similarity);
    }
  }
}

// M[index] <- normalize(alpha M[index] + (1 - alpha) f), and the cache.
void update_memory_(const Tensor& memory, const Tensor& index, const Tensor& features, const Tensor& momentum,
                    const std::optional<Tensor>& cache, const std::optional<Tensor>& similarity,
                    const std::optional<Tensor>& block_bits, double block_floor) {
  const int64_t n = rows_of(memory, "memory"), d = memory.size(1);
  check_storage(memory, "memory", ScalarType::Float, n, d);
  const Tensor positions = checked_index(index, n);
  const int64_t batch_size = positions.size(0);
  check_matrix(features, "features", ScalarType::Float, batch_size, d);
  const float alpha = checked_momentum(momentum);
  SNNET_CHECK(cache || !block_bits, "block_bits are given without a cache");
  if (cache) check_storage(*cache, "cache", ScalarType::Float, n, n);
  if (similarity) check_matrix(*similarity, "similarity", ScalarType::Float, batch_size, n);
  if (batch_size == 0) return;
  const Tensor live = torch::stable::contiguous(features);
  Update update{memory, floats(memory), nullptr, positions.const_data_ptr<int64_t>(), const_floats(live),
                nullptr, nullptr,       n,       d,  batch_size,                      alpha, 1.0f - alpha,
                CacheBlocks(block_bits, block_floor, n)};
  Tensor s, gram;
  if (cache) {
    s = similarity ? torch::stable::contiguous(*similarity) : batch_products(live, memory);
    gram = inner_products(live, live);
    update.cache = floats(*cache);
    update.similarity = const_floats(s);
    update.gram = const_floats(gram);
  }
  update_rounds(update);
}

// The blocks of a cache [n, n] that hold a value above the floor: uint8 [n, block_row_bytes(n)].
Tensor mark_cache_blocks(const Tensor& cache, double floor) {
  const int64_t n = rows_of(cache, "cache");
  check_storage(cache, "cache", ScalarType::Float, n, n);
  SNNET_CHECK(std::isfinite(floor), "floor must be finite, got ", floor);
  Tensor bits = torch::stable::new_zeros(cache, {n, block_row_bytes(n)}, ScalarType::Byte);
  const CacheBlocks blocks(bits, floor, n);
  const float* values = const_floats(cache);
  torch::stable::parallel_for(0, n, grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t first = 0; first < n; first += kPart) {
        blocks.row(i)[first / kPart] = vector_kernels().high_blocks(values + i * n + first, n - first, blocks.floor);
      }
    }
  });
  return bits;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("update_memory_", TORCH_BOX(&snnet::update_memory_));
  m.impl("mark_cache_blocks", TORCH_BOX(&snnet::mark_cache_blocks));
}
