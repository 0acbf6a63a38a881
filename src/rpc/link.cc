#include "rpc/link.h"

#include <algorithm>
#include <cstring>

namespace skate::rpc {
namespace {

struct RecordHeader {
  uint32_t size;  // of the body; kSkip: nothing more before the ring's end
  uint16_t type;
  uint8_t flags;
  uint8_t check;  // kCheck: tells a torn or foreign header early
};
static_assert(sizeof(RecordHeader) == 8);
constexpr uint32_t kSkip = 0xFFFFFFFF;
constexpr uint8_t kCheck = 0x5A;
constexpr uint8_t kMore = 1;  // further pieces of this body follow
constexpr uint32_t kPieceMax = kRingBytes / 4;
constexpr size_t kAssembledMax = size_t{1} << 31;

constexpr uint64_t align8(uint64_t n) { return (n + 7) & ~uint64_t{7}; }

}  // namespace

Link::Link(Segment& segment, uint32_t index, uint32_t side, uint32_t peer_slot, int peer_event_fd)
    : area_(segment.link(index)),
      peer_bell_(segment.slot(peer_slot).doorbell),
      index_(index),
      side_(side),
      peer_slot_(peer_slot),
      peer_event_fd_(peer_event_fd),
      tail_(area_.control[side].tail.load(std::memory_order_acquire)),
      known_head_(area_.control[side].head.load(std::memory_order_acquire)),
      head_(area_.control[1 - side].head.load(std::memory_order_acquire)) {
  SKATE_ASSERT(side < 2, "a link has two sides");
}

bool Link::try_write(uint16_t type, uint8_t flags, std::initializer_list<std::span<const uint8_t>> parts,
                     size_t size) {
  RingControl& control = area_.control[side_];
  uint8_t* data = area_.data[side_];
  const uint64_t needed = align8(sizeof(RecordHeader) + size);
  uint64_t tail = tail_;
  uint64_t to_end = kRingBytes - tail % kRingBytes;
  uint64_t total = needed <= to_end ? needed : to_end + needed;
  if (tail + total - known_head_ > kRingBytes) {
    known_head_ = control.head.load(std::memory_order_acquire);
    if (known_head_ > tail) known_head_ = tail;  // a broken reader must not make us overrun
    if (tail + total - known_head_ > kRingBytes) return false;
  }
  if (needed > to_end) {
    RecordHeader skip{kSkip, 0, 0, kCheck};
    std::memcpy(data + tail % kRingBytes, &skip, sizeof skip);
    tail += to_end;
  }
  uint8_t* at = data + tail % kRingBytes;
  RecordHeader header{static_cast<uint32_t>(size), type, flags, kCheck};
  std::memcpy(at, &header, sizeof header);
  at += sizeof header;
  for (std::span<const uint8_t> part : parts) {
    if (part.empty()) continue;
    std::memcpy(at, part.data(), part.size());
    at += part.size();
  }
  tail_ = tail + needed;
  control.tail.store(tail_, std::memory_order_release);
  return true;
}

void Link::queue(uint16_t type, uint8_t flags, std::span<const uint8_t> body) {
  waiting_.push_back({type, flags, std::string(reinterpret_cast<const char*>(body.data()), body.size())});
  backlog_bytes_.fetch_add(body.size() + sizeof(RecordHeader), std::memory_order_relaxed);
  area_.control[side_].writer_waits.store(1, std::memory_order_seq_cst);
}

void Link::send(uint16_t type, std::initializer_list<std::span<const uint8_t>> parts) {
  size_t size = 0;
  for (std::span<const uint8_t> part : parts) size += part.size();
  std::lock_guard lock(write_lock_);
  if (size <= kPieceMax) [[likely]] {
    if (waiting_.empty() && try_write(type, 0, parts, size)) return;
    std::string body;
    body.reserve(size);
    for (std::span<const uint8_t> part : parts)
      body.append(reinterpret_cast<const char*>(part.data()), part.size());
    queue(type, 0, std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size()));
  } else {
    std::string body;
    body.reserve(size);
    for (std::span<const uint8_t> part : parts)
      body.append(reinterpret_cast<const char*>(part.data()), part.size());
    std::span<const uint8_t> rest(reinterpret_cast<const uint8_t*>(body.data()), body.size());
    while (!rest.empty()) {
      std::span<const uint8_t> piece = rest.first(std::min<size_t>(rest.size(), kPieceMax));
      rest = rest.subspan(piece.size());
      uint8_t flags = rest.empty() ? 0 : kMore;
      if (!waiting_.empty() || !try_write(type, flags, {piece}, piece.size())) queue(type, flags, piece);
    }
  }
  if (waiting_.empty()) return;
  // The reader may have made room between the failed write and the flag: look once more.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  while (!waiting_.empty()) {
    Waiting& first = waiting_.front();
    std::span<const uint8_t> body(reinterpret_cast<const uint8_t*>(first.body.data()), first.body.size());
    if (!try_write(first.type, first.flags, {body}, body.size())) break;
    backlog_bytes_.fetch_sub(body.size() + sizeof(RecordHeader), std::memory_order_relaxed);
    waiting_.pop_front();
  }
}

void Link::drain_backlog() {
  bool moved = false;
  {
    std::lock_guard lock(write_lock_);
    while (!waiting_.empty()) {
      Waiting& first = waiting_.front();
      std::span<const uint8_t> body(reinterpret_cast<const uint8_t*>(first.body.data()), first.body.size());
      if (!try_write(first.type, first.flags, {body}, body.size())) {
        area_.control[side_].writer_waits.store(1, std::memory_order_seq_cst);
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (!try_write(first.type, first.flags, {body}, body.size())) break;
      }
      backlog_bytes_.fetch_sub(body.size() + sizeof(RecordHeader), std::memory_order_relaxed);
      waiting_.pop_front();
      moved = true;
    }
  }
  if (moved) ring(Urgency::kUrgent);
}

bool Link::crowded() const {
  const RingControl& control = area_.control[side_];
  uint64_t used = control.tail.load(std::memory_order_relaxed) - control.head.load(std::memory_order_relaxed);
  return used > kRingBytes / 2;
}

bool Link::empty() const { return area_.control[1 - side_].tail.load(std::memory_order_acquire) == head_; }

Link::Fetch Link::fetch(Record& record) {
  const RingControl& control = area_.control[1 - side_];
  const uint8_t* data = area_.data[1 - side_];
  const uint64_t tail = control.tail.load(std::memory_order_acquire);
  if (tail == head_) return Fetch::kEmpty;
  if (tail - head_ > kRingBytes || tail < head_) return Fetch::kBroken;
  RecordHeader header;
  std::memcpy(&header, data + head_ % kRingBytes, sizeof header);
  if (header.check != kCheck) return Fetch::kBroken;
  const uint64_t to_end = kRingBytes - head_ % kRingBytes;
  if (header.size == kSkip) {
    if (tail - head_ < to_end) return Fetch::kBroken;
    release_head(head_ + to_end);
    return Fetch::kPiece;
  }
  const uint64_t used = align8(sizeof(RecordHeader) + uint64_t{header.size});
  if (header.size > kPieceMax || used > to_end || used > tail - head_) return Fetch::kBroken;
  std::span<const uint8_t> body(data + head_ % kRingBytes + sizeof header, header.size);
  if ((header.flags & kMore) != 0 || !partial_.empty()) {
    if (partial_.size() + body.size() > kAssembledMax) return Fetch::kBroken;
    partial_.append(reinterpret_cast<const char*>(body.data()), body.size());
    release_head(head_ + used);
    if ((header.flags & kMore) != 0) return Fetch::kPiece;
    record.type = header.type;
    record.body = std::span(reinterpret_cast<const uint8_t*>(partial_.data()), partial_.size());
    record.assembled = true;
    return Fetch::kRecord;
  }
  record.type = header.type;
  record.body = body;
  record.next_head = head_ + used;
  return Fetch::kRecord;
}

void Link::advance(const Record& record) {
  if (record.assembled) {
    partial_.clear();
    if (partial_.capacity() > size_t{1} << 20) partial_.shrink_to_fit();
  } else {
    release_head(record.next_head);
  }
}

void Link::release_head(uint64_t head) {
  RingControl& control = area_.control[1 - side_];
  head_ = head;
  control.head.store(head, std::memory_order_release);
  if (control.writer_waits.load(std::memory_order_relaxed) != 0) [[unlikely]]
    settle();
}

// The full fence orders the new head before the look at the flag; the writer has the same fence between its
// flag and its look at the head. Once per batch, so that the common path pays for it once.
void Link::settle() {
  RingControl& control = area_.control[1 - side_];
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (control.writer_waits.load(std::memory_order_relaxed) == 0) return;
  const uint64_t used = control.tail.load(std::memory_order_relaxed) - head_;
  // Half a ring of room is worth a wake; an empty ring always is.
  if (used <= kRingBytes / 2 && control.writer_waits.exchange(0, std::memory_order_seq_cst) != 0)
    rpc::ring(peer_bell_, index_, Urgency::kUrgent, peer_event_fd_);
}

}  // namespace skate::rpc
