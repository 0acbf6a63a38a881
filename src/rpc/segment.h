// The link segment: one memfd per node, mapped by the daemon and by every process that registered with it.
//
//   NodePage | ProcessSlot[kSlotsMax] | LinkArea[kLinksMax]
//
// The daemon alone hands out slots and links (by index, in messages), so that setting up a link passes no
// descriptor. The memfd is sparse: what nobody touched costs nothing, and the daemon punches out what was
// given back. All processes are the same user's; what one reads here is input all the same: indexes and
// sizes are checked by the reader, and a wrong one costs the link, not the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"

namespace skate::rpc {

inline constexpr uint32_t kSlotsMax = 4096;
inline constexpr uint32_t kLinksMax = 16384;
inline constexpr uint32_t kRingBytes = 64 * 1024;
inline constexpr uint32_t kClaimsMax = 256;  ///< tasks in flight per direction of a link
inline constexpr uint32_t kReadyWords = kLinksMax / 64;
inline constexpr uint32_t kSummaryWords = kReadyWords / 64;

/// Who sleeps at a doorbell, and how to wake it.
enum class Sleeper : uint32_t {
  kNone,        ///< somebody is awake and will look again before he sleeps
  kService,     ///< the service thread, on the futex `service_word`
  kForeground,  ///< a thread that waits in a call, on the futex `foreground_word`
  kEventFd,     ///< an event loop, on the process's eventfd (the daemon)
};

/// How badly a record wants to be read; a sleeper is woken for what reaches its threshold.
enum class Urgency : uint32_t { kLazy = 1, kTask = 2, kUrgent = 3 };

struct Doorbell {
  alignas(64) std::atomic<uint32_t> sleeper;
  std::atomic<uint32_t> service_word;
  std::atomic<uint32_t> foreground_word;
  std::atomic<uint32_t> service_threshold;  ///< least Urgency that wakes the service thread
  alignas(64) std::atomic<uint64_t> summary[kSummaryWords];
  alignas(64) std::atomic<uint64_t> ready[kReadyWords];
};

/// One process as the others on its node see it.
struct alignas(4096) ProcessSlot {
  Doorbell doorbell;
  std::atomic<int32_t> pid;
  std::atomic<int32_t> active;    ///< its share of NodePage::active, taken back when it dies
  std::atomic<uint32_t> blocked;  ///< its task waits in get or wait and lends its CPU
  std::atomic<int64_t> work_us;   ///< steady clock: when its task began or, negative, its last one ended
  char source[64];                ///< what its output belongs to now (task or actor name), for log lines
};
static_assert(sizeof(ProcessSlot) == 4096);

struct alignas(4096) NodePage {
  uint64_t magic;
  uint32_t version;
  uint32_t cpus;                                  ///< CPUs that the node's processes may use
  alignas(64) std::atomic<int32_t> active;        ///< threads that run a task or spin
  alignas(64) std::atomic<uint32_t> cpus_wanted;  ///< somebody queues for a CPU: who blocks rings the daemon
};
static_assert(sizeof(NodePage) == 4096);

/// One direction of a link. Positions only grow; the place in the ring is position % kRingBytes.
struct RingControl {
  alignas(64) std::atomic<uint64_t> tail;                ///< written by the writer
  alignas(64) std::atomic<uint64_t> head;                ///< written by the reader
  std::atomic<uint32_t> writer_waits;                    ///< ring the writer once there is room
  alignas(64) std::atomic<uint32_t> claims[kClaimsMax];  ///< see link.h
};

struct alignas(4096) LinkArea {
  RingControl control[2];  ///< [side that writes]
  alignas(4096) uint8_t data[2][kRingBytes];
};
static_assert(sizeof(LinkArea) == 4096 + 2 * kRingBytes);

class Segment {
 public:
  /// Makes the segment (daemon). `cpus` is what NodePage::cpus says.
  static Result<std::unique_ptr<Segment>> create(uint32_t cpus);
  /// Maps a segment received from the daemon; takes the descriptor. kInvalid if it is not one.
  static Result<std::unique_ptr<Segment>> attach(UniqueFd fd);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  int fd() const { return fd_.get(); }
  NodePage& node() { return *reinterpret_cast<NodePage*>(base_); }
  /// `index` must be below kSlotsMax / kLinksMax: check what a peer sent before.
  ProcessSlot& slot(uint32_t index);
  LinkArea& link(uint32_t index);
  /// Zeroes and frees the memory of a link or slot that nobody uses any more (daemon).
  void clear_link(uint32_t index);
  void clear_slot(uint32_t index);

 private:
  Segment(UniqueFd fd, uint8_t* base) : fd_(std::move(fd)), base_(base) {}
  void punch(uint64_t offset, uint64_t bytes);

  UniqueFd fd_;
  uint8_t* base_;
};

}  // namespace skate::rpc
