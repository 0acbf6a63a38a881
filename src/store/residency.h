// Which chunks of the data file have memory behind them, and were used lately: two bitmaps in the index.
//
// Memory is reserved (fallocate) before it is handed out, so that running out is an error here and not a
// signal at some later write. A set bit promises memory; it is cleared, by the daemon and for free memory
// that it holds itself, before that memory is given back to the system.
#pragma once

#include "store/layout.h"

namespace skate::store {

class Residency {
 public:
  Residency(const Region& region, int data_fd) : region_(region), data_fd_(data_fd) {}

  /// Puts memory behind every chunk that [offset, offset + bytes) touches; kFull if there is none. True:
  /// some of it had none before, so page tables do not know it yet.
  Result<bool> reserve(uint64_t offset, uint64_t bytes) const;
  /// Gives the memory of these chunks back to the system. Only for chunks that nobody else can get.
  Result<void> release(uint32_t first_chunk, uint32_t chunks) const;

  bool resident(uint32_t chunk) const { return bit(region_.resident(chunk / 64), chunk); }
  bool recent(uint32_t chunk) const { return bit(region_.recent(chunk / 64), chunk); }
  void mark_resident(uint32_t first_chunk, uint32_t chunks) const;
  void mark_recent(uint32_t first_chunk, uint32_t chunks) const;
  void forget_recent() const;
  uint64_t resident_bytes() const;

 private:
  static bool bit(const Word& word, uint32_t chunk) {
    return (word.load(std::memory_order_acquire) >> (chunk % 64) & 1) != 0;
  }
  Region region_;
  int data_fd_;
};

}  // namespace skate::store
