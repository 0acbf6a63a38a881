// The one lock of the store, a word in shared memory that survives the death of its holder.
//
// The word holds the holder's client slot + 1, so that whoever learns of a death knows what to undo and
// may then let go in the dead one's name. Waiting always ends: a waiter sleeps on a futex in short turns
// and gives up at its deadline. Held for about a microsecond at a time; lookups and pins never take it.
#pragma once

#include <atomic>
#include <cstdint>

namespace skate::store {

class SharedLock {
 public:
  SharedLock(std::atomic<uint32_t>& word, uint32_t slot) : word_(word), me_(slot + 1) {}

  /// False when another held it for all of `timeout_ms`.
  bool acquire(uint64_t timeout_ms);
  void release() { release_for(word_, me_); }

  /// The slot that holds it, or -1.
  static int64_t holder(const std::atomic<uint32_t>& word);
  /// Lets go in the name of `me`, if that still holds it; wakes waiters in any case.
  static void release_for(std::atomic<uint32_t>& word, uint32_t me);

 private:
  std::atomic<uint32_t>& word_;
  uint32_t me_;
};

}  // namespace skate::store
