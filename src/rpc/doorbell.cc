#include "rpc/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace skate::rpc {

void futex_sleep(std::atomic<uint32_t>& word, uint32_t expected, std::chrono::nanoseconds timeout) {
  timespec limit{};
  timespec* limit_or_null = nullptr;
  if (timeout.count() >= 0) {
    limit.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
    limit.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
    limit_or_null = &limit;
  }
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, expected, limit_or_null, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

namespace {

void wake_sleeper(Doorbell& bell, Sleeper who, int event_fd) {
  switch (who) {
    case Sleeper::kNone: return;
    case Sleeper::kService:
      bell.service_word.fetch_add(1, std::memory_order_seq_cst);
      futex_wake_all(bell.service_word);
      return;
    case Sleeper::kForeground:
      bell.foreground_word.fetch_add(1, std::memory_order_seq_cst);
      futex_wake_all(bell.foreground_word);
      return;
    case Sleeper::kEventFd: {
      const uint64_t one = 1;
      // A process that has closed what it does not know leaves the call to others.
      if (event_fd < 0 || (write(event_fd, &one, sizeof one) < 0 && errno != EAGAIN))
        bell.sleeper.store(static_cast<uint32_t>(Sleeper::kEventFd), std::memory_order_seq_cst);
      return;
    }
  }
}

}  // namespace

void ring(Doorbell& bell, uint32_t link, Urgency urgency, int event_fd) {
  const uint32_t word = link / 64;
  const uint64_t bit = uint64_t{1} << (link % 64);
  const uint64_t summary_bit = uint64_t{1} << (word % 64);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the record before the look at the marks
  if ((bell.ready[word].load(std::memory_order_relaxed) & bit) == 0)
    bell.ready[word].fetch_or(bit, std::memory_order_seq_cst);
  if ((bell.summary[word / 64].load(std::memory_order_relaxed) & summary_bit) == 0)
    bell.summary[word / 64].fetch_or(summary_bit, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the marks before the look at the sleeper
  auto who = static_cast<Sleeper>(bell.sleeper.load(std::memory_order_relaxed));
  if (who == Sleeper::kNone) return;
  if (who == Sleeper::kService &&
      static_cast<uint32_t>(urgency) < bell.service_threshold.load(std::memory_order_relaxed))
    return;
  auto woken = static_cast<Sleeper>(
      bell.sleeper.exchange(static_cast<uint32_t>(Sleeper::kNone), std::memory_order_seq_cst));
  wake_sleeper(bell, woken, event_fd);
}

void wake(Doorbell& bell, int event_fd) {
  auto woken = static_cast<Sleeper>(
      bell.sleeper.exchange(static_cast<uint32_t>(Sleeper::kNone), std::memory_order_seq_cst));
  wake_sleeper(bell, woken, event_fd);
}

bool any_ready(const Doorbell& bell) {
  for (const auto& word : bell.summary)
    if (word.load(std::memory_order_acquire) != 0) return true;
  return false;
}

}  // namespace skate::rpc
