#include "rpc/session.h"

#include <utility>

#include "wire/archive.h"

namespace skate::rpc {

Outbox::Outbox(rt::Loop& loop, rt::Network& network, OutboxOptions options)
    : options_(std::move(options)),
      client_(loop, network, options_.client),
      batch_{options_.from, 0, {}},
      tasks_(loop) {}

Outbox::~Outbox() { stop(); }

void Outbox::start() {
  client_.start();
  tasks_.spawn(close_each_turn());
}

void Outbox::stop() {
  if (std::exchange(stopped_, true)) return;
  tasks_.stop();
  client_.stop();
  batch_.records.clear();
  untaken_bytes_ = 0;
}

void Outbox::send(std::string_view record) {
  if (stopped_ || refused_) return;
  batch_.records.emplace_back(record);
  batch_bytes_ += sizeof(uint64_t) + record.size();
  untaken_bytes_ += sizeof(uint64_t) + record.size();
  was_full_ |= !has_room();
  if (batch_bytes_ >= options_.batch_bytes)
    close_batch();
  else
    batch_open_.set();
}

void Outbox::close_batch() {
  batch_open_.reset();
  ++batch_.number;
  const size_t bytes = std::exchange(batch_bytes_, 0);
  client_.post(options_.method, wire::encode(batch_),
               [this, bytes](const Result<std::string>& answer) { answered(bytes, answer); });
  batch_.records.clear();
}

rt::Task<void> Outbox::close_each_turn() {
  while (true) {
    co_await batch_open_.wait();
    if (!batch_.records.empty()) close_batch();
  }
}

void Outbox::answered(size_t bytes, const Result<std::string>& answer) {
  untaken_bytes_ -= bytes;
  if (!answer) {
    if (!std::exchange(refused_, true) && options_.on_refused) options_.on_refused(answer.error());
    return;
  }
  if (was_full_ && has_room()) {
    was_full_ = false;
    if (options_.on_room) options_.on_room();
  }
}

Result<std::string> Inbox::take(std::string_view bytes) {
  SKATE_TRY_ASSIGN(const RecordBatch batch, wire::decode<RecordBatch>(bytes));
  uint64_t& taken = taken_[batch.from];
  if (taken == kGone)
    return Error{ErrorCode::kDenied, "node " + batch.from.hex() + " has been declared dead"};
  if (batch.number <= taken) return std::string();
  if (batch.number != taken + 1)
    return Error{ErrorCode::kCorrupt, "batch " + std::to_string(batch.number) + " of node " +
                                          batch.from.hex() + " does not follow batch " +
                                          std::to_string(taken)};
  taken = batch.number;  // `taken` may move: deliver_ may forget nodes
  for (const std::string& record : batch.records) deliver_(batch.from, record);
  return std::string();
}

void Inbox::forget(const NodeId& from) { taken_[from] = kGone; }

}  // namespace skate::rpc
