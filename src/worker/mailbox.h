// Mailbox: who reads this process's links, one thread at a time, and how threads sleep until there is news.
//
// Reader roles: the service thread reads when nobody else does; a thread that waits in a call takes the
// reading over (`try_enter`), and gives it back (`leave`). Taking over and giving back cost no system call:
// the service thread stays asleep on its own futex word, and `Doorbell::sleeper` says whom a writer has to
// wake. A reader may spin before it sleeps, but only while the node's `active` count leaves a CPU for it; for
// how long is SpinPolicy's to say.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>

#include "rpc/doorbell.h"
#include "worker/spin_policy.h"

namespace skate::worker {

class Mailbox {
 public:
  using Clock = std::chrono::steady_clock;

  Mailbox(rpc::Segment& segment, uint32_t slot);

  rpc::ProcessSlot& slot() { return slot_; }
  rpc::Doorbell& bell() { return slot_.doorbell; }

  /// Takes the reading role if it is free.
  bool try_enter();
  /// Gives the role back. True: there are marks that came while nobody would have been woken for them; the
  /// caller (who no longer reads) should try_enter and read again.
  bool leave();

  /// For the holder of the role: looks for a while without sleeping, if that is allowed and has paid lately.
  /// True: a link is marked.
  bool spin(Clock::time_point until);
  /// For the holder of the role: sleeps until a link is marked, `until`, or a signal.
  void sleep_as_reader(Clock::time_point until);
  /// For the holder of the role: a thread that spun in vain slept elsewhere, until a record came.
  void slept(std::chrono::nanoseconds took) { policy_.slept(took); }

  /// For the service thread: waits until it is woken for a record, by `poke`, or `until`.
  uint32_t service_ticket() { return bell().service_word.load(std::memory_order_seq_cst); }
  void sleep_as_service(uint32_t ticket, Clock::time_point until);
  void poke_service();

  /// Least urgency for which the service thread is woken while nobody else reads.
  void set_service_threshold(rpc::Urgency urgency) {
    bell().service_threshold.store(static_cast<uint32_t>(urgency), std::memory_order_relaxed);
  }

  /// Counts this thread among those that run or spin, for others' decision to spin.
  void begin_active();
  void end_active();

 private:
  bool may_spin() const;

  rpc::Segment& segment_;
  rpc::ProcessSlot& slot_;
  std::atomic<bool> taken_{false};
  SpinPolicy policy_{std::chrono::microseconds(50)};  // of the holder of the role
};

}  // namespace skate::worker
