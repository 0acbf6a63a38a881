// The allocator of the data file: which bytes are free, and whose free memory they are.
//
// Memory is a row of blocks that tile it without gaps. A free block lies in a bin of its pool: the
// central pool, or a client's pool for small objects, or its pool for large ones. A client's free memory
// stays in its own pools, where its next object finds it warm; others get it when nothing else is left
// (`reclaim_one`), or when it has been idle (`return_to_central`). Neighbours merge only within a pool.
// Memory moves between the central pool and a client in whole chunks of 64 KiB, so a chunk has one
// client and can be mapped writable by it alone.
//
// Two-level segregated fit: constant work per call, every change through the transaction. The caller
// holds the lock. Does not touch the data itself.
#pragma once

#include <optional>

#include "store/transaction.h"

namespace skate::store {

class FreeSpace {
 public:
  explicit FreeSpace(const Region& region) : region_(region), geo_(region_.geo()) {}
  FreeSpace(const FreeSpace&) = delete;
  FreeSpace& operator=(const FreeSpace&) = delete;

  /// Makes one free central block of everything; for a fresh index only.
  static void format(const Region& region);

  /// A used block that belongs to `entry` and holds `bytes`, or nothing if neither the client's own
  /// pools nor the central one have it.
  std::optional<uint32_t> allocate(Transaction& tx, uint32_t slot, uint64_t bytes, uint32_t entry);
  /// Gives a used block back to its pool; returns where the free block that it is now part of begins.
  uint32_t free(Transaction& tx, uint32_t granule);

  /// Moves the whole chunks of one free leased block to the central pool. False: there are none.
  bool reclaim_one(Transaction& tx);
  /// As above for one given pool.
  bool reclaim_one_of(Transaction& tx, uint32_t pool);
  /// The whole chunks of this free block go to the central pool; false if it holds none.
  bool return_to_central(Transaction& tx, uint32_t granule);

  /// Makes a used block of exactly these granules, which must lie in the free central block `block`.
  void take_range(Transaction& tx, uint32_t block, uint32_t begin, uint32_t granules, uint32_t entry);

  uint64_t block_bytes(uint32_t granule) const;

  enum class Kind : uint8_t { kNone = 0, kFree = 1, kUsed = 2 };
  struct Head {
    Kind kind;
    uint32_t pool, granules;
  };
  static Head head_of(const Block& block);
  static uint32_t bin_of(uint32_t granules);
  /// The first block of a pool's highest bin: within a quarter of its largest.
  std::optional<uint32_t> largest_free(uint32_t pool) const;
  uint64_t largest_free_bytes(uint32_t pool) const;

 private:
  std::optional<uint32_t> find(Transaction& tx, uint32_t pool, uint32_t granules);
  uint32_t take(Transaction& tx, uint32_t block, uint32_t granules, uint32_t pool, uint32_t entry);
  uint32_t insert_free(Transaction& tx, uint32_t granule, uint32_t granules, uint32_t pool);
  void link(Transaction& tx, uint32_t granule, uint32_t granules, uint32_t pool);
  void unlink(Transaction& tx, uint32_t granule);
  void write_head(Transaction& tx, uint32_t granule, Kind kind, uint32_t pool, uint32_t granules);
  bool lease_segment(Transaction& tx, uint32_t slot, uint32_t granules);
  uint32_t granules_for(uint64_t bytes) const;
  bool valid(Transaction& tx, uint32_t granule, Head head) const;

  Region region_;
  const Geometry& geo_;
};

}  // namespace skate::store
