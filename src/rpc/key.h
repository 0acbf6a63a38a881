// ClusterKey: the secret that every process of a cluster's daemons knows; proof of it is asked at each
// connection.
#pragma once

#include <array>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace skate::rpc {

using Digest = std::array<uint8_t, 32>;

class ClusterKey {
 public:
  static constexpr size_t kBytesMin = 16;
  static constexpr size_t kBytesMax = 4096;

  static ClusterKey random();
  /// kInvalid when too short or too long to be a key.
  static Result<ClusterKey> from_bytes(std::string bytes);
  /// kDenied when others than the owner may read the file.
  static Result<ClusterKey> read_file(const std::string& path);
  /// Creates the file with mode 0600; kExists when it is there already.
  Result<void> write_file(const std::string& path) const;

  /// HMAC-SHA256 over the parts, one after the other.
  Digest sign(std::initializer_list<std::span<const uint8_t>> parts) const;
  /// The key itself: only for who has proved that it may have it.
  const std::string& secret() const { return bytes_; }
  friend bool operator==(const ClusterKey&, const ClusterKey&) = default;

 private:
  explicit ClusterKey(std::string bytes) : bytes_(std::move(bytes)) {}
  std::string bytes_;
};

/// Takes the same time wherever the first difference is.
bool equal_in_constant_time(const Digest& a, const Digest& b);

}  // namespace skate::rpc
