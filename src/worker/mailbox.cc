#include "worker/mailbox.h"

#include <unistd.h>

namespace skate::worker {

using rpc::Sleeper;

namespace {
void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

Mailbox::Mailbox(rpc::Segment& segment, uint32_t slot) : segment_(segment), slot_(segment.slot(slot)) {
  slot_.pid.store(static_cast<int32_t>(getpid()), std::memory_order_relaxed);
  set_service_threshold(rpc::Urgency::kTask);
  bell().sleeper.store(static_cast<uint32_t>(Sleeper::kService), std::memory_order_seq_cst);
}

bool Mailbox::try_enter() {
  bool free = false;
  if (!taken_.compare_exchange_strong(free, true, std::memory_order_acquire)) return false;
  bell().sleeper.store(static_cast<uint32_t>(Sleeper::kNone), std::memory_order_seq_cst);
  return true;
}

bool Mailbox::leave() {
  taken_.store(false, std::memory_order_release);
  bell().sleeper.store(static_cast<uint32_t>(Sleeper::kService), std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return rpc::any_ready(bell());
}

bool Mailbox::may_spin() const {
  return segment_.node().active.load(std::memory_order_relaxed) <= static_cast<int32_t>(segment_.node().cpus);
}

void Mailbox::begin_active() {
  slot_.active.fetch_add(1, std::memory_order_relaxed);
  segment_.node().active.fetch_add(1, std::memory_order_relaxed);
}

void Mailbox::end_active() {
  slot_.active.fetch_sub(1, std::memory_order_relaxed);
  segment_.node().active.fetch_sub(1, std::memory_order_relaxed);
}

bool Mailbox::spin(Clock::time_point until) {
  if (rpc::any_ready(bell())) return true;
  if (!may_spin()) return false;
  const std::chrono::nanoseconds limit = policy_.next();
  if (limit == std::chrono::nanoseconds::zero()) return false;
  const Clock::time_point began = Clock::now();
  const Clock::time_point spin_until = std::min(until, began + limit);
  Clock::time_point now;
  bool found = false;
  do {
    for (int i = 0; i < 32 && !found; ++i) {
      found = rpc::any_ready(bell());
      relax();
    }
    now = Clock::now();
  } while (!found && now < spin_until && may_spin());
  if (found)
    policy_.found(now - began);
  else if (now >= began + limit)
    policy_.missed();
  return found;
}

void Mailbox::sleep_as_reader(Clock::time_point until) {
  end_active();
  uint32_t ticket = bell().foreground_word.load(std::memory_order_seq_cst);
  bell().sleeper.store(static_cast<uint32_t>(Sleeper::kForeground), std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!rpc::any_ready(bell())) {
    Clock::time_point now = Clock::now();
    if (until > now) {
      rpc::futex_sleep(bell().foreground_word, ticket, until - now);
      if (rpc::any_ready(bell())) policy_.slept(Clock::now() - now);
    }
  }
  bell().sleeper.store(static_cast<uint32_t>(Sleeper::kNone), std::memory_order_seq_cst);
  begin_active();
}

void Mailbox::sleep_as_service(uint32_t ticket, Clock::time_point until) {
  Clock::time_point now = Clock::now();
  if (until <= now) return;
  std::chrono::nanoseconds left = until == Clock::time_point::max() ? std::chrono::nanoseconds(-1)
                                                                    : std::chrono::nanoseconds(until - now);
  rpc::futex_sleep(bell().service_word, ticket, left);
}

void Mailbox::poke_service() {
  bell().service_word.fetch_add(1, std::memory_order_seq_cst);
  rpc::futex_wake_all(bell().service_word);
}

}  // namespace skate::worker
