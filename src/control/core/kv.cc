#include "control/core/kv.h"

namespace skate::control {

namespace {
uint64_t cost(const std::pair<std::string, std::string>& key, const std::string& value) {
  return key.first.size() + key.second.size() + value.size();
}
}  // namespace

uint64_t KvTable::erase(std::map<Key, std::string>::iterator at, Outbox& out) {
  bytes_ -= cost(at->first, at->second);
  out.erase(Table::kKv, at->first);
  values_.erase(at);
  return 1;
}

Result<wire::KvReply> KvTable::apply(const wire::Kv& request, Outbox& out) {
  const Key key{request.name_space, request.name};
  const auto found = values_.find(key);
  wire::KvReply reply;
  reply.found = found != values_.end();
  switch (request.operation) {
    case wire::KvOperation::kPut: {
      if (reply.found && !request.overwrite) return reply;
      const uint64_t freed = reply.found ? cost(key, found->second) : 0;
      const uint64_t bytes = bytes_ - freed + cost(key, request.value);
      if (bytes > kBytesMax)
        return Error{ErrorCode::kFull,
                     "the key-value store holds at most " + std::to_string(kBytesMax) + " bytes"};
      bytes_ = bytes;
      values_[key] = request.value;
      out.put(Table::kKv, key, request.value);
      return reply;
    }
    case wire::KvOperation::kGet:
      if (reply.found) reply.value = found->second;
      return reply;
    case wire::KvOperation::kExists: return reply;
    case wire::KvOperation::kErase:
      if (!request.by_prefix) {
        if (reply.found) reply.erased = erase(found, out);
        return reply;
      }
      for (auto at = values_.lower_bound(key); at != values_.end() && at->first.first == request.name_space &&
                                               at->first.second.starts_with(request.name);) {
        const auto next = std::next(at);
        reply.erased += erase(at, out);
        at = next;
      }
      return reply;
    case wire::KvOperation::kKeys:
      for (auto at = values_.lower_bound(key); at != values_.end() && at->first.first == request.name_space &&
                                               at->first.second.starts_with(request.name);
           ++at)
        reply.keys.push_back(at->first.second);
      return reply;
  }
  return Error{ErrorCode::kInvalid,
               "unknown key-value operation " + std::to_string(static_cast<int>(request.operation))};
}

void KvTable::recover(Key key, std::string value) {
  bytes_ += cost(key, value);
  values_[std::move(key)] = std::move(value);
}

}  // namespace skate::control
