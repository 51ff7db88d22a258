// Labels as bits: pack, unpack, and the pseudo label memory with its transpose.
#include <algorithm>

#include "../common/apart.h"
#include "checks.h"
#include "label_entries.h"
#include "prefetch.h"

namespace snnet {
namespace {

// labels: bool [B, n] -> uint8 [B, label_bytes(n)]
Tensor pack_labels(const Tensor& labels) {
  SNNET_CHECK(labels.dim() == 2 && labels.scalar_type() == ScalarType::Bool, "labels must be bool [B, n]");
  const Tensor flags = torch::stable::contiguous(labels);
  const int64_t batch_size = flags.size(0), n = flags.size(1), width = label_bytes(n);
  Tensor packed = torch::stable::new_empty(flags, {batch_size, width}, ScalarType::Byte);
  const auto* source = reinterpret_cast<const uint8_t*>(flags.const_data_ptr<bool>());
  uint8_t* target = packed.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, batch_size, grain(width), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* own = source + row * n;
      for (int64_t byte = 0; byte < n / 8; ++byte) {
        unsigned bits = 0;
        for (int bit = 0; bit < 8; ++bit) bits |= static_cast<unsigned>(own[8 * byte + bit] != 0) << bit;
        target[row * width + byte] = static_cast<uint8_t>(bits);
      }
      for (int64_t byte = n / 8; byte < width; ++byte) target[row * width + byte] = pack_byte(own, n, byte);
    }
  });
  return packed;
}

// labels: uint8 [B, label_bytes(n)] -> bool [B, n]
Tensor unpack_labels(const Tensor& labels, int64_t n) {
  SNNET_CHECK(n >= 0 && labels.dim() == 2 && labels.scalar_type() == ScalarType::Byte &&
                      labels.size(1) == label_bytes(n),
                  "labels must be uint8 [B, label_bytes(n)]");
  const Tensor packed = torch::stable::contiguous(labels);
  const int64_t batch_size = packed.size(0), width = packed.size(1);
  Tensor flags = torch::stable::new_empty(packed, {batch_size, n}, ScalarType::Bool);
  const uint8_t* source = packed.const_data_ptr<uint8_t>();
  bool* target = flags.mutable_data_ptr<bool>();
  torch::stable::parallel_for(0, batch_size, grain(n / 4), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* own = source + row * width;
      bool* out = target + row * n;
      for (int64_t byte = 0; byte < n / 8; ++byte) {
        const unsigned bits = own[byte];
        for (int bit = 0; bit < 8; ++bit) out[8 * byte + bit] = (bits >> bit) & 1;
      }
      for (int64_t column = n / 8 * 8; column < n; ++column) out[column] = bit_at(own, column);
    }
  });
  return flags;
}

// P[index] <- labels; in the transpose the bits that change are flipped.
void write_labels_(const Tensor& row_bits, const Tensor& column_bits, const Tensor& index, const Tensor& labels) {
  const int64_t n = rows_of(row_bits, "row_bits"), width = label_bytes(n);
  check_storage(row_bits, "row_bits", ScalarType::Byte, n, width);
  check_storage(column_bits, "column_bits", ScalarType::Byte, n, width);
  const Tensor positions = checked_index(index, n);
  const int64_t batch_size = positions.size(0);
  check_matrix(labels, "labels", ScalarType::Byte, batch_size, width);
  const Tensor given = apart_from(labels, row_bits, column_bits);
  const auto entries = newest_entries(positions.const_data_ptr<int64_t>(), batch_size);
  uint8_t* rows = row_bits.mutable_data_ptr<uint8_t>();
  uint8_t* columns = column_bits.mutable_data_ptr<uint8_t>();
  const uint8_t* source = given.const_data_ptr<uint8_t>();
  // Each task has a range of columns of P, so rows of the transpose, to itself.
  torch::stable::parallel_for(0, width / 8, grain(4 * batch_size), [&](int64_t begin, int64_t end) {
    for (std::size_t e = 0; e < entries.size(); ++e) {
      const auto [row, entry] = entries[e];
      if (e + 1 < entries.size()) prefetch(rows + entries[e + 1].first * width + 8 * begin, 8 * (end - begin));
      uint8_t* own = rows + row * width;
      const uint8_t* wanted = source + entry * width;
      for (int64_t word = begin; word < end; ++word) {
        const uint64_t exists = columns_of_word(word, n);
        uint64_t changed = (label_word(own, word) ^ label_word(wanted, word)) & exists;
        for (; changed != 0; changed &= changed - 1) {
          const int64_t column = 64 * word + lowest_bit(changed);
          flip_bit(own, column);
          flip_bit(columns + column * width, row);
        }
      }
    }
  });
}

// bits[index]; an index of -1 gives an empty label.
Tensor gather_labels(const Tensor& bits, const Tensor& index) {
  const int64_t n = rows_of(bits, "bits"), width = label_bytes(n);
  check_storage(bits, "bits", ScalarType::Byte, n, width);
  const Tensor positions = checked_index(index, n, -1);
  const int64_t batch_size = positions.size(0);
  Tensor gathered = torch::stable::new_empty(bits, {batch_size, width}, ScalarType::Byte);
  const int64_t* at = positions.const_data_ptr<int64_t>();
  const uint8_t* source = bits.const_data_ptr<uint8_t>();
  uint8_t* target = gathered.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, batch_size, grain(width / 8), [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (b + 1 < end && at[b + 1] >= 0) prefetch(source + at[b + 1] * width, width);
      if (at[b] < 0) {
        std::fill_n(target + b * width, width, uint8_t{0});
      } else {
        std::copy_n(source + at[b] * width, width, target + b * width);
      }
    }
  });
  return gathered;
}

}  // namespace
}  // namespace snnet

STABLE_TORCH_LIBRARY_IMPL(snnet, CPU, m) {
  m.impl("pack_labels", TORCH_BOX(&snnet::pack_labels));
  m.impl("unpack_labels", TORCH_BOX(&snnet::unpack_labels));
  m.impl("write_labels_", TORCH_BOX(&snnet::write_labels_));
  m.impl("gather_labels", TORCH_BOX(&snnet::gather_labels));
}
