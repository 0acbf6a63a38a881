#include "rpc/dedup.h"

namespace skate::rpc {

rt::Task<DedupTable::Answer> DedupTable::once(std::string key, rt::Task<Answer> work) {
  const auto found = entries_.find(key);
  std::shared_ptr<Entry> entry;
  if (found != entries_.end()) {
    entry = found->second;
  } else {
    if (entries_.size() - done_.size() >= limits_.entries_max)
      co_return Error{ErrorCode::kFull, "too many requests are being worked on"};
    entry = std::make_shared<Entry>();
    entry->key = key;
    entries_[key] = entry;
    tasks_.spawn(run(entry, std::move(work)));
  }
  while (!entry->answer) co_await entry->done.wait();
  co_return *entry->answer;
}

rt::Task<void> DedupTable::run(std::shared_ptr<Entry> entry, rt::Task<Answer> work) {
  entry->answer = co_await std::move(work);
  entry->done.set();
  bytes_ += entry->bytes();
  done_.push_back(entry);
  trim();
}

void DedupTable::trim() {
  while (!done_.empty() && (done_.size() > limits_.entries_max || bytes_ > limits_.bytes_max)) {
    bytes_ -= done_.front()->bytes();
    entries_.erase(done_.front()->key);
    done_.pop_front();
  }
}

}  // namespace skate::rpc
