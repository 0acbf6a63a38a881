// The shape of the index memfd: what lies where, and checked access to it.
//
//   superblock | buckets | entries | pins | client areas | pools | chunk bitmaps | blocks
//
// Everything is derived from three numbers in the superblock, so that a process which maps the index
// computes the same geometry itself and only compares. All of it is 64-bit words (and one 32-bit lock)
// that are read and written as atomics: the index is shared by processes that may die or write nonsense,
// and every number found in it is input. The file is sparse; what was never used costs no memory.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/ids.h"
#include "base/result.h"

namespace skate::store {

using Word = std::atomic<uint64_t>;
static_assert(Word::is_always_lock_free, "shared memory needs lock-free words");
static_assert(sizeof(Word) == 8, "the index is counted in 8-byte words");

inline constexpr uint64_t kMagic = 0x31305245'54414B53ull;  // "SKATER01", little-endian
inline constexpr uint64_t kChunkBytes = 64 * 1024;          ///< unit of leases, of reserving and of releasing
inline constexpr uint64_t kLargeBytes = 1024 * 1024;  ///< from here on an object is an extent of its own
inline constexpr uint32_t kDaemonSlot = 0;
inline constexpr uint32_t kBucketWidth = 8;  ///< one cache line of slots
inline constexpr uint32_t kUndoMax = 256;
inline constexpr uint32_t kPoolBins = 100;
inline constexpr uint32_t kEntriesPerTouchBit = 1024;
inline constexpr uint32_t kNoEntry = UINT32_MAX;
inline constexpr uint32_t kNoBlock = UINT32_MAX;

/// The word that decides what an entry is: generation (32 bits), owner slot (16), flags (8), state (8).
enum class EntryState : uint8_t {
  kFree = 0,
  kCreating = 1,   ///< its creator writes the bytes
  kSealed = 2,     ///< readable, immutable
  kEvicting = 3,   ///< on disk; the daemon is about to take the memory back
  kSpilled = 4,    ///< on disk only; holds no memory
  kRestoring = 5,  ///< the daemon reads it back
};
struct StateWord {
  static constexpr uint64_t kDoomed = 1u << 8;  ///< erased: gone for lookups, freed when nothing pins it
  uint64_t bits = 0;
  static StateWord make(uint32_t generation, uint32_t owner, EntryState state) {
    return {uint64_t{generation} << 32 | uint64_t{owner & 0xFFFF} << 16 | static_cast<uint64_t>(state)};
  }
  uint32_t generation() const { return static_cast<uint32_t>(bits >> 32); }
  uint32_t owner() const { return static_cast<uint32_t>(bits >> 16) & 0xFFFF; }
  EntryState state() const { return static_cast<EntryState>(bits & 0xFF); }
  bool doomed() const { return (bits & kDoomed) != 0; }
  StateWord with(EntryState state) const { return {(bits & ~uint64_t{0xFF}) | static_cast<uint64_t>(state)}; }
  StateWord with_doom() const { return {bits | kDoomed}; }
};

struct Superblock {
  Word magic, capacity_bytes, objects_max, clients_max;
  uint64_t reserved_[4];
  std::atomic<uint32_t> lock;  ///< holder's slot + 1, and a bit for waiters; see lock.h
  uint32_t reserved_lock_;
  // Changed only by transactions:
  Word free_entry, entries_high, objects, used_bytes, spilled_objects, spilled_bytes, central_free_granules;
  // Plain counters:
  Word large_fresh, corruptions, sweeps_wanted, spilled_erased, creates, evictions;
};

struct Entry {
  Word state;
  Word id[4];   ///< 28 bytes and four of zero
  Word offset;  ///< of the bytes in the data file; in a free entry the next free one + 1
  Word size_bytes;
  Word touched_ms;
};
static_assert(sizeof(Entry) == 64, "one cache line");

/// Memory is a row of blocks. The record of a block is the one of its first granule.
struct Block {
  Word head;    ///< kind (2 bits), pool (24 bits), size in granules (32 bits)
  Word behind;  ///< size of the block before it (32 bits), second in which it became free (32 bits)
  Word links;   ///< in a free block: next and previous block of its bin, each granule + 1
  Word entry;   ///< in a used block: the entry it belongs to, + 1
};

struct Pool {
  Word bitmap[2];
  Word heads[kPoolBins];
  uint64_t reserved_[2];
};
static_assert(sizeof(Pool) % 64 == 0, "whole cache lines");

struct UndoRecord {
  Word at;  ///< byte offset in the index
  Word old;
};

struct ClientArea {
  Word attached;  ///< 1 while a process may own it, 2 while only its forked children keep its pins
  Word pid;
  Word undo_count;  ///< non-zero exactly while a transaction has written something
  uint64_t reserved_[5];
  UndoRecord undo[kUndoMax];
  Word touched[];  ///< a bit for each group of entries that the client may have pinned or created in
};

/// Where everything lies; computed, never read from shared memory.
struct Geometry {
  uint64_t capacity_bytes = 0;
  uint32_t granule_shift = 10;
  uint32_t granules = 0;
  uint32_t chunk_granules = 0;
  uint32_t chunks = 0;
  uint32_t objects_max = 0;
  uint32_t clients_max = 0;
  uint32_t buckets = 0;  ///< a power of two
  uint32_t pin_words = 0;
  uint32_t touch_words = 0;
  uint32_t pools = 0;
  uint64_t buckets_at = 0, entries_at = 0, pins_at = 0, clients_at = 0, client_stride = 0, pools_at = 0,
           resident_at = 0, recent_at = 0, blocks_at = 0, index_bytes = 0;

  static Result<Geometry> plan(uint64_t capacity_bytes, uint64_t objects_max, uint64_t clients_max);

  uint64_t granule_bytes() const { return uint64_t{1} << granule_shift; }
  static constexpr uint32_t kCentralPool = 0;
  static uint32_t small_pool(uint32_t slot) { return 1 + 2 * slot; }
  static uint32_t large_pool(uint32_t slot) { return 2 + 2 * slot; }
  static uint32_t pool_slot(uint32_t pool) { return (pool - 1) / 2; }
};

/// Checked access to a mapped index. Does not own the mapping. Indices given to its accessors must be
/// in range; `has_...` says so for numbers that came out of shared memory.
class Region {
 public:
  Region() = default;
  Region(uint8_t* base, const Geometry& geometry) : base_(base), geo_(geometry) {}

  const Geometry& geo() const { return geo_; }
  uint8_t* base() const { return base_; }
  Superblock& super() const { return *at<Superblock>(0); }
  Word& bucket_slot(uint32_t bucket, uint32_t i) const {
    return *at<Word>(geo_.buckets_at + (uint64_t{bucket} * kBucketWidth + i) * 8);
  }
  Entry& entry(uint32_t i) const { return *at<Entry>(geo_.entries_at + uint64_t{i} * sizeof(Entry)); }
  Word& pin_word(uint32_t entry, uint32_t word) const {
    return *at<Word>(geo_.pins_at + (uint64_t{entry} * geo_.pin_words + word) * 8);
  }
  ClientArea& client(uint32_t slot) const {
    return *at<ClientArea>(geo_.clients_at + slot * geo_.client_stride);
  }
  Pool& pool(uint32_t i) const { return *at<Pool>(geo_.pools_at + uint64_t{i} * sizeof(Pool)); }
  Word& resident(uint32_t word) const { return *at<Word>(geo_.resident_at + uint64_t{word} * 8); }
  Word& recent(uint32_t word) const { return *at<Word>(geo_.recent_at + uint64_t{word} * 8); }
  Block& block(uint32_t granule) const {
    return *at<Block>(geo_.blocks_at + uint64_t{granule} * sizeof(Block));
  }
  bool has_entry(uint64_t i) const { return i < geo_.objects_max; }
  /// Whether some transaction may write the word at this byte offset of the index.
  bool is_transactional(uint64_t offset) const;
  Word& word_at(uint64_t offset) const { return *at<Word>(offset); }
  uint64_t offset_of(const Word& word) const {
    return static_cast<uint64_t>(reinterpret_cast<const uint8_t*>(&word) - base_);
  }
  void note_corruption() const { super().corruptions.fetch_add(1, std::memory_order_relaxed); }

 private:
  template <class T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  uint8_t* base_ = nullptr;
  Geometry geo_;
};

/// The two buckets an object may lie in, and the tag that its slot carries.
struct HashPlace {
  uint32_t first, second, tag;
};
HashPlace hash_place(const std::array<uint64_t, 4>& id_words, uint32_t buckets);
std::array<uint64_t, 4> id_words(const ObjectId& id);
ObjectId id_from_words(const std::array<uint64_t, 4>& words);

/// Whole seconds and milliseconds of a monotonic clock that costs no system call.
uint32_t coarse_seconds();
uint64_t coarse_ms();

}  // namespace skate::store
