// The batch entries of a write to the pseudo label memory that count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace snnet {

// (row, entry) by rising row; of a repeated index the last entry.
inline std::vector<std::pair<int64_t, int64_t>> newest_entries(const int64_t* index, int64_t batch_size) {
  std::vector<std::pair<int64_t, int64_t>> entries(batch_size);
  for (int64_t b = 0; b < batch_size; ++b) entries[b] = {index[b], b};
  std::sort(entries.begin(), entries.end());
  std::size_t kept = 0;
  for (std::size_t e = 0; e < entries.size(); ++e) {
    if (e + 1 == entries.size() || entries[e + 1].first != entries[e].first) entries[kept++] = entries[e];
  }
  entries.resize(kept);
  return entries;
}

}  // namespace snnet
