// Session: records from one daemon to another, in order and each once, through any number of connections.
//
// An Outbox gathers records into numbered batches. A batch is a call that the Client repeats, in order, until
// it is answered; the Inbox on the other side takes the next number, drops those that it has seen, and
// answers what it took over. So every batch is kept by one side until the other has it. The two directions of
// a pair of daemons are two sessions that know nothing of each other.
//
// A session ends when one of the two daemons does; a new one has a new id and begins at 1. It does not know
// what a record is, nor who is alive: its owner ends it when the cluster says that the other side is gone.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "rpc/client.h"

namespace skate::rpc {

struct RecordBatch {
  NodeId from;
  uint64_t number{};
  std::vector<std::string> records;
};

struct OutboxOptions {
  ClientOptions client;                  ///< to the other daemon's server
  uint16_t method{};                     ///< of the calls; the other side passes them to its Inbox
  NodeId from;                           ///< this daemon
  size_t batch_bytes = 256u << 10;       ///< a batch is closed when it has so much
  size_t untaken_bytes_max = 64u << 20;  ///< above it there is no room
  std::function<void()> on_room{};       ///< there was none, and there is again
  /// The other side takes no more: it holds this daemon for dead, or a batch for nonsense. Called once; what
  /// is sent from then on is dropped. The Outbox must not be stopped inside.
  std::function<void(const Error&)> on_refused{};
};

class Outbox {
 public:
  Outbox(rt::Loop& loop, rt::Network& network, OutboxOptions options);
  ~Outbox();

  void start();
  /// Takes a record, in any state: what must not be lost is kept even without room. Goes out in the loop's
  /// next turn, or when a batch is full.
  void send(std::string_view record);
  /// False: who can wait should, until on_room.
  bool has_room() const { return untaken_bytes_ < options_.untaken_bytes_max; }
  size_t untaken_bytes() const { return untaken_bytes_; }
  bool up() const { return client_.up(); }
  /// The other side is gone: what it has not taken over is dropped.
  void stop();

 private:
  void close_batch();
  void answered(size_t bytes, const Result<std::string>& answer);
  rt::Task<void> close_each_turn();

  OutboxOptions options_;
  Client client_;
  RecordBatch batch_;  ///< open; with the number of the last one that was closed
  size_t batch_bytes_ = 0;
  size_t untaken_bytes_ = 0;
  bool was_full_ = false;
  bool refused_ = false;
  bool stopped_ = false;
  rt::Event batch_open_;
  rt::TaskGroup tasks_;
};

class Inbox {
 public:
  using Deliver = std::function<void(const NodeId& from, std::string_view record)>;
  explicit Inbox(Deliver deliver) : deliver_(std::move(deliver)) {}

  /// The body of a call: delivers the records of a batch that is new, and is the answer. kCorrupt: no batch,
  /// or not the next one; nothing was delivered.
  Result<std::string> take(std::string_view bytes);
  /// The other daemon is gone; what it sent and comes late is refused.
  void forget(const NodeId& from);

 private:
  static constexpr uint64_t kGone = ~uint64_t{0};
  Deliver deliver_;
  boost::unordered_flat_map<NodeId, uint64_t, IdHash<NodeId>>
      taken_;  ///< the last number; kGone when forgotten
};

}  // namespace skate::rpc
