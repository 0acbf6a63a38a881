#include "store/transaction.h"

namespace skate::store {

void Transaction::set(Word& word, uint64_t value) {
  if (failed_) return;
  if (count_ == kUndoMax) return fail();
  UndoRecord& record = area_.undo[count_];
  // A death stops a process between two instructions, so program order is all that the log needs.
  // Release on every store keeps the compiler to it (a record must not be overwritten before the last
  // transaction's count is zero), and lets lock-free readers see an entry's fields in order.
  record.at.store(region_.offset_of(word), std::memory_order_release);
  record.old.store(word.load(std::memory_order_relaxed), std::memory_order_release);
  area_.undo_count.store(++count_, std::memory_order_release);
  word.store(value, std::memory_order_release);
}

Block& Transaction::block(uint64_t granule) {
  if (granule < region_.geo().granules) return region_.block(static_cast<uint32_t>(granule));
  fail();
  return scratch_;
}

bool Transaction::commit() {
  if (failed_) {
    rollback();
    return false;
  }
  area_.undo_count.store(0, std::memory_order_release);
  count_ = 0;
  return true;
}

void Transaction::rollback() {
  if (count_ == 0) return;
  replay(region_, slot_);
  count_ = 0;
}

void Transaction::replay(const Region& region, uint32_t slot) {
  ClientArea& area = region.client(slot);
  uint64_t count = area.undo_count.load(std::memory_order_acquire);
  if (count > kUndoMax) {
    region.note_corruption();
    count = kUndoMax;
  }
  for (uint64_t i = count; i-- > 0;) {
    const uint64_t at = area.undo[i].at.load(std::memory_order_relaxed);
    if (!region.is_transactional(at)) {
      region.note_corruption();
      continue;
    }
    region.word_at(at).store(area.undo[i].old.load(std::memory_order_relaxed), std::memory_order_release);
  }
  area.undo_count.store(0, std::memory_order_release);
}

}  // namespace skate::store
