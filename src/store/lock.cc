#include "store/lock.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "store/layout.h"

namespace skate::store {
namespace {

constexpr uint32_t kWaiters = 1u << 31;
constexpr int kSpins = 64;
constexpr uint64_t kTurnMs = 10;  // a wake may be lost with the one who owed it: look again by then

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen, uint64_t ms) {
  timespec turn{static_cast<time_t>(ms / 1000), static_cast<long>(ms % 1000) * 1000000};
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &turn, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

}  // namespace

bool SharedLock::acquire(uint64_t timeout_ms) {
  for (int i = 0; i < kSpins; ++i) {
    uint32_t free = 0;
    if (word_.compare_exchange_weak(free, me_, std::memory_order_acquire)) return true;
  }
  const uint64_t deadline = coarse_ms() + timeout_ms;
  for (;;) {
    uint32_t seen = word_.load(std::memory_order_relaxed);
    if (seen == 0 || seen == kWaiters) {
      // Another may sleep too: keep the waiters' bit, so that the release wakes it.
      if (word_.compare_exchange_strong(seen, me_ | kWaiters, std::memory_order_acquire)) return true;
      continue;
    }
    const uint64_t now = coarse_ms();
    if (now >= deadline) return false;
    if ((seen & kWaiters) == 0 &&
        !word_.compare_exchange_strong(seen, seen | kWaiters, std::memory_order_relaxed))
      continue;
    futex_wait(word_, seen | kWaiters, deadline - now < kTurnMs ? deadline - now : kTurnMs);
  }
}

int64_t SharedLock::holder(const std::atomic<uint32_t>& word) {
  return static_cast<int64_t>(word.load(std::memory_order_acquire) & ~kWaiters) - 1;
}

void SharedLock::release_for(std::atomic<uint32_t>& word, uint32_t me) {
  uint32_t seen = me;
  if (word.compare_exchange_strong(seen, 0, std::memory_order_release, std::memory_order_relaxed)) return;
  if (seen == (me | kWaiters) && word.compare_exchange_strong(seen, 0, std::memory_order_release))
    futex_wake(word);
}

}  // namespace skate::store
