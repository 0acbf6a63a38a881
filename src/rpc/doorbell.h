// Doorbells: how a process learns that one of its links has records.
//
// A writer publishes its record, marks the link in the reader's bitmap (two levels) and wakes the reader
// only if it sleeps and the record is urgent enough. A reader that wants to sleep says so (`sleeper`), then
// looks at the bitmap once more; both sides put a full fence between their store and their load, so that one
// of them always sees the other. Nothing here depends on x86's stronger order.
#pragma once

#include <chrono>

#include "rpc/segment.h"

namespace skate::rpc {

/// Marks `link` as ready in `bell` and wakes its sleeper if `urgency` reaches the threshold.
/// `event_fd` is the process's eventfd where its loop sleeps on one (the daemon), else -1.
void ring(Doorbell& bell, uint32_t link, Urgency urgency, int event_fd);

/// Wakes whoever sleeps at `bell` without marking a link.
void wake(Doorbell& bell, int event_fd);

/// True when some link is marked.
bool any_ready(const Doorbell& bell);

/// Takes the marks away and calls `visit(link index)` for each; a link marked while this runs is either
/// visited or still marked afterwards.
template <class Visit>
void take_ready(Doorbell& bell, Visit&& visit) {
  for (uint32_t s = 0; s < kSummaryWords; ++s) {
    if (bell.summary[s].load(std::memory_order_relaxed) == 0) continue;
    uint64_t words = bell.summary[s].exchange(0, std::memory_order_seq_cst);
    while (words != 0) {
      uint32_t w = s * 64 + static_cast<uint32_t>(__builtin_ctzll(words));
      words &= words - 1;
      uint64_t links = bell.ready[w].exchange(0, std::memory_order_seq_cst);
      while (links != 0) {
        uint32_t link = w * 64 + static_cast<uint32_t>(__builtin_ctzll(links));
        links &= links - 1;
        visit(link);
      }
    }
  }
}

/// Sleeps on a futex word of the doorbell while it holds `expected`; a negative timeout means without end.
/// Returns early on a wake, a signal or a changed word: the caller looks again.
void futex_sleep(std::atomic<uint32_t>& word, uint32_t expected, std::chrono::nanoseconds timeout);
void futex_wake_all(std::atomic<uint32_t>& word);

}  // namespace skate::rpc
