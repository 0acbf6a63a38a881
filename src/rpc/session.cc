#include "rpc/session.h"

#include <cstring>
#include <optional>
#include <vector>

namespace skate::rpc {

namespace {

// A batch: the sender's id, its number, then records, each a length and its bytes.
constexpr size_t kHeaderBytes = NodeId::kSize + sizeof(uint64_t);
constexpr uint64_t kGone = ~uint64_t{0};

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T read_at(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// The records of a batch; nothing when its lengths do not add up.
std::optional<std::vector<std::string_view>> records_of(std::string_view batch) {
  std::vector<std::string_view> out;
  for (size_t at = kHeaderBytes; at < batch.size();) {
    if (batch.size() - at < sizeof(uint32_t)) return std::nullopt;
    const auto bytes = read_at<uint32_t>(batch, at);
    at += sizeof(uint32_t);
    if (batch.size() - at < bytes) return std::nullopt;
    out.push_back(batch.substr(at, bytes));
    at += bytes;
  }
  return out;
}

}  // namespace

Outbox::Outbox(rt::Loop& loop, rt::Network& network, OutboxOptions options)
    : options_(std::move(options)), client_(loop, network, options_.client), tasks_(loop) {}

Outbox::~Outbox() { stop(); }

void Outbox::start() {
  client_.start();
  tasks_.spawn(close_each_turn());
}

void Outbox::stop() {
  if (std::exchange(stopped_, true)) return;
  tasks_.stop();
  client_.stop();
  batch_.clear();
  untaken_bytes_ = 0;
}

void Outbox::send(std::string_view record) {
  if (stopped_ || refused_) return;
  if (batch_.empty()) {
    batch_.append(reinterpret_cast<const char*>(options_.from.data()), NodeId::kSize);
    append(batch_, next_number_++);
    batch_open_.set();
  }
  append(batch_, static_cast<uint32_t>(record.size()));
  batch_.append(record);
  untaken_bytes_ += sizeof(uint32_t) + record.size();
  was_full_ |= !has_room();
  if (batch_.size() >= options_.batch_bytes) close_batch();
}

void Outbox::close_batch() {
  batch_open_.reset();
  const size_t bytes = batch_.size() - kHeaderBytes;
  client_.post(options_.method, std::exchange(batch_, std::string()),
               [this, bytes](const Result<std::string>& answer) { answered(bytes, answer); });
}

rt::Task<void> Outbox::close_each_turn() {
  while (true) {
    co_await batch_open_.wait();
    if (!batch_.empty()) close_batch();
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

Result<std::string> Inbox::take(std::string_view batch) {
  if (batch.size() < kHeaderBytes) return Error{ErrorCode::kCorrupt, "a batch of records without its header"};
  const NodeId from = NodeId::from_bytes(batch.data());
  const auto number = read_at<uint64_t>(batch, NodeId::kSize);
  uint64_t& taken = taken_[from];
  if (taken == kGone) return Error{ErrorCode::kDenied, "node " + from.hex() + " has been declared dead"};
  if (number <= taken) return std::string();
  const auto records = records_of(batch);
  if (number != taken + 1 || !records)
    return Error{ErrorCode::kCorrupt, "batch " + std::to_string(number) + " of node " + from.hex() +
                                          (records ? " does not follow batch " + std::to_string(taken)
                                                   : std::string(" is no batch of records"))};
  taken = number;  // `taken` may move: deliver_ may forget nodes
  for (const std::string_view record : *records) deliver_(from, record);
  return std::string();
}

void Inbox::forget(const NodeId& from) { taken_[from] = kGone; }

}  // namespace skate::rpc
