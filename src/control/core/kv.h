// KvTable: small durable values by (namespace, name). Pure. Bounded by bytes in all.
#pragma once

#include <map>

#include "base/result.h"
#include "control/core/outbox.h"

namespace skate::control {

class KvTable {
 public:
  static constexpr uint64_t kBytesMax = uint64_t{2} << 30;

  using Key = std::pair<std::string, std::string>;

  /// kFull when the values would take more than kBytesMax.
  Result<wire::KvReply> apply(const wire::Kv& request, Outbox& out);
  void recover(Key key, std::string value);
  size_t size() const { return values_.size(); }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t erase(std::map<Key, std::string>::iterator at, Outbox& out);

  std::map<Key, std::string> values_;
  uint64_t bytes_ = 0;
};

}  // namespace skate::control
