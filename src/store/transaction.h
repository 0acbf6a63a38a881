// A transaction: changes to words of the index that all happen or never did.
//
// The maker holds the lock. Each change first records the word's place and old value in its client's
// undo log, then raises the log's count, then writes. Setting the count to zero commits. If the process
// dies in between, the daemon writes the old values back, newest first, and lets go of the lock; doing
// that twice, or half and then again, gives the same. Nothing outside the lock's protection may be
// changed here, and nobody else changes what is: that makes physical undo right.
//
// Reading nonsense from the index calls `fail()`: further changes are dropped, and the end rolls back.
#pragma once

#include "store/layout.h"

namespace skate::store {

class Transaction {
 public:
  Transaction(const Region& region, uint32_t slot)
      : region_(region), slot_(slot), area_(region.client(slot)) {
    area_.undo_count.store(0, std::memory_order_release);
  }
  ~Transaction() { rollback(); }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  const Region& region() const { return region_; }
  bool failed() const { return failed_; }
  void fail() { failed_ = true; }

  void set(Word& word, uint64_t value);
  void add(Word& word, uint64_t difference) { set(word, word.load(std::memory_order_relaxed) + difference); }
  /// The record of a granule that came out of shared memory; a scratch record, and failure, if it is none.
  Block& block(uint64_t granule);

  /// False, with everything rolled back, if something failed.
  bool commit();
  void rollback();

  /// What the daemon does for a client that died: undoes whatever its log holds.
  static void replay(const Region& region, uint32_t slot);

 private:
  Region region_;
  uint32_t slot_;
  ClientArea& area_;
  uint32_t count_ = 0;
  bool failed_ = false;
  Block scratch_{};
};

}  // namespace skate::store
