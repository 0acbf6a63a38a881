// Link: one end of a pair of rings between two processes of a node, in the link segment.
//
// Records are {type, body}; a body larger than a quarter of a ring travels in pieces and is put together by
// the reader. Several threads of a process may send (a short lock); one thread at a time reads. A record that
// finds no room waits in a queue in the sender's memory, bounded by `backlog_bytes()` being looked at by
// those who can produce without end, and goes out when the reader has made room and rings back.
//
// Claims: a task that may be taken back carries a push sequence s; its word is claims[s % kClaimsMax].
// The writer sets it to claim_word(s, kOffered). The worker begins the task by a compare-and-swap from that
// to kBegun, the writer takes it back by one to kTaken: whoever wins has it, and a worker that loses (or
// finds the word used for a later s) skips the record without a word. A writer has fewer than kClaimsMax
// tasks in flight per link, so that a word is only used again when its task was begun or taken back.
#pragma once

#include <deque>
#include <mutex>
#include <span>
#include <string>

#include "rpc/doorbell.h"

namespace skate::rpc {

enum class Claim : uint32_t { kFree, kOffered, kBegun, kTaken };
constexpr uint32_t claim_word(uint32_t sequence, Claim claim) {
  return sequence << 2 | static_cast<uint32_t>(claim);
}

class Link {
 public:
  /// `side` is this process's end (0 or 1); `peer_event_fd` is not owned, -1 unless the peer is the daemon.
  Link(Segment& segment, uint32_t index, uint32_t side, uint32_t peer_slot, int peer_event_fd = -1);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  uint32_t index() const { return index_; }
  uint32_t peer_slot() const { return peer_slot_; }

  /// Writes a record made of `parts` put one after the other; the reader is not woken before `ring`.
  void send(uint16_t type, std::initializer_list<std::span<const uint8_t>> parts);
  void send(uint16_t type, std::string_view body) {
    send(type, {std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size())});
  }
  /// Tells the reader, once for all records sent before.
  void ring(Urgency urgency) { rpc::ring(peer_bell_, index_, urgency, peer_event_fd_); }

  /// Bytes that wait in this process for room in the ring.
  size_t backlog_bytes() const { return backlog_bytes_.load(std::memory_order_relaxed); }
  /// True when the ring towards the peer is more than half full.
  bool crowded() const;

  /// Calls `handle(type, std::span<const uint8_t> body)` for each record present, at most `limit`; the body
  /// is valid during the call only and may lie in shared memory. Also moves waiting records out. Returns the
  /// number handled; kCorrupt when the peer broke the format (close the link).
  template <class Handle>
  Result<size_t> receive(Handle&& handle, size_t limit = SIZE_MAX) {
    if (backlog_bytes() != 0) drain_backlog();
    size_t count = 0;
    while (count < limit) {
      Record record;
      Fetch fetched = fetch(record);
      if (fetched == Fetch::kEmpty) break;
      if (fetched == Fetch::kBroken)
        return Error{ErrorCode::kCorrupt, "a peer wrote a malformed record; its link is closed"};
      if (fetched == Fetch::kPiece) continue;
      handle(record.type, record.body);
      advance(record);
      ++count;
    }
    settle();
    return count;
  }
  bool empty() const;

  /// Claim words of tasks that this end sent / that the peer sent, by push sequence.
  std::atomic<uint32_t>& own_claim(uint32_t sequence) {
    return area_.control[side_].claims[sequence % kClaimsMax];
  }
  std::atomic<uint32_t>& peer_claim(uint32_t sequence) {
    return area_.control[1 - side_].claims[sequence % kClaimsMax];
  }

 private:
  enum class Fetch { kEmpty, kRecord, kPiece, kBroken };
  struct Record {
    uint16_t type{};
    std::span<const uint8_t> body;
    uint64_t next_head{};
    bool assembled{};
  };
  Fetch fetch(Record& record);
  void advance(const Record& record);
  bool try_write(uint16_t type, uint8_t flags, std::initializer_list<std::span<const uint8_t>> parts,
                 size_t size);
  void queue(uint16_t type, uint8_t flags, std::span<const uint8_t> body);
  void drain_backlog();
  void release_head(uint64_t head);
  void settle();

  LinkArea& area_;
  Doorbell& peer_bell_;
  const uint32_t index_;
  const uint32_t side_;
  const uint32_t peer_slot_;
  const int peer_event_fd_;

  std::mutex write_lock_;  // honest: threads of one process share the outgoing ring
  uint64_t tail_;
  uint64_t known_head_;
  struct Waiting {
    uint16_t type;
    uint8_t flags;
    std::string body;
  };
  std::deque<Waiting> waiting_;
  std::atomic<size_t> backlog_bytes_{0};

  // reader's side
  uint64_t head_;
  std::string partial_;
};

}  // namespace skate::rpc
