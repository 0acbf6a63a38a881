// Arena::verify: every invariant of the store, checked under the lock.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "store/arena.h"
#include "store/client/core.h"

namespace skate::store {
namespace {

uint64_t read(const Word& word) { return word.load(std::memory_order_acquire); }

class Verifier {
 public:
  Verifier(const Core& core, std::optional<uint32_t> held_granule, bool quiescent)
      : core_(core),
        region_(core.region()),
        geo_(region_.geo()),
        held_(held_granule),
        quiescent_(quiescent) {}

  Result<VerifyReport> run() {
    check_blocks();
    if (problem_.empty()) check_bins();
    if (problem_.empty()) check_entries();
    if (problem_.empty()) check_free_entries();
    if (problem_.empty()) check_buckets();
    if (problem_.empty()) check_clients();
    if (!problem_.empty()) return Error{ErrorCode::kCorrupt, "object store: " + problem_};
    return report_;
  }

 private:
  void require(bool condition, const char* what, uint64_t where) {
    if (!condition && problem_.empty()) problem_ = std::string(what) + " (at " + std::to_string(where) + ")";
  }

  /// Blocks tile the memory; free neighbours of one pool are merged; a chunk has one client.
  void check_blocks() {
    uint32_t before = 0, chunk_slot = 0;
    uint64_t owned_chunk = UINT64_MAX;
    FreeSpace::Head last{FreeSpace::Kind::kNone, 0, 0};
    for (uint64_t g = 0; g < geo_.granules && problem_.empty();) {
      const Block& block = region_.block(static_cast<uint32_t>(g));
      const FreeSpace::Head head = FreeSpace::head_of(block);
      require(head.kind == FreeSpace::Kind::kFree || head.kind == FreeSpace::Kind::kUsed,
              "no block begins here", g);
      require(head.granules > 0 && g + head.granules <= geo_.granules, "block of impossible size", g);
      require(head.pool < geo_.pools, "block of no pool", g);
      require(static_cast<uint32_t>(read(block.behind)) == before, "block that mistakes the size before it",
              g);
      if (!problem_.empty()) return;
      const bool free = head.kind == FreeSpace::Kind::kFree;
      require(!(free && last.kind == FreeSpace::Kind::kFree && last.pool == head.pool),
              "free neighbours not merged", g);
      const bool central = head.pool == Geometry::kCentralPool;
      if (central)
        require(g % geo_.chunk_granules == 0 && head.granules % geo_.chunk_granules == 0,
                "central block with part of a chunk", g);
      const uint32_t slot = central ? UINT32_MAX : Geometry::pool_slot(head.pool);
      if (g / geo_.chunk_granules == owned_chunk) require(slot == chunk_slot, "chunk of two clients", g);
      owned_chunk = (g + head.granules - 1) / geo_.chunk_granules;
      chunk_slot = slot;
      ++report_.blocks;
      if (free) {
        ++report_.free_blocks;
        free_[static_cast<uint32_t>(g)] = head;
        if (central) central_granules_ += head.granules;
      } else {
        used_[static_cast<uint32_t>(g)] = read(block.entry);
      }
      before = head.granules;
      last = head;
      g += head.granules;
    }
    require(read(region_.super().central_free_granules) == central_granules_, "wrong count of free memory",
            central_granules_);
  }

  /// Each free block lies in exactly the bin of its pool and size.
  void check_bins() {
    size_t seen = 0;
    for (uint32_t p = 0; p < geo_.pools && problem_.empty(); ++p) {
      const Pool& pool = region_.pool(p);
      for (uint32_t bin = 0; bin < kPoolBins; ++bin) {
        uint64_t at = read(pool.heads[bin]), previous = 0;
        require(((read(pool.bitmap[bin / 64]) >> (bin % 64) & 1) != 0) == (at != 0),
                "bin's bit and list disagree", bin);
        while (at != 0 && problem_.empty()) {
          const auto it = free_.find(static_cast<uint32_t>(at - 1));
          require(it != free_.end(), "bin lists what is no free block", at - 1);
          if (!problem_.empty()) return;
          require(it->second.pool == p && FreeSpace::bin_of(it->second.granules) == bin,
                  "free block in the wrong bin", at - 1);
          const uint64_t links = read(region_.block(static_cast<uint32_t>(at - 1)).links);
          require(links >> 32 == previous, "broken list of free blocks", at - 1);
          require(++seen <= free_.size(), "free block listed twice", at - 1);
          previous = at;
          at = links & 0xFFFFFFFF;
        }
      }
    }
    require(seen == free_.size(), "free block in no bin", seen);
  }

  /// Each object has one block and each used block one object.
  void check_entries() {
    const Superblock& super = region_.super();
    high_ = read(super.entries_high);
    require(high_ <= geo_.objects_max, "too many entries", high_);
    uint64_t used_bytes = 0, spilled = 0, spilled_bytes = 0;
    for (uint64_t i = 0; i < high_ && problem_.empty(); ++i) {
      const uint32_t index = static_cast<uint32_t>(i);
      const Entry& entry = region_.entry(index);
      const StateWord state{read(entry.state)};
      if (state.state() == EntryState::kFree) continue;
      require(state.state() <= EntryState::kRestoring, "entry in no known state", i);
      ++report_.objects;
      if (state.doomed()) ++report_.doomed_objects;
      if (core_.pinned(index)) ++report_.pinned_objects;
      if (state.state() == EntryState::kSpilled) {
        ++spilled;
        spilled_bytes += read(entry.size_bytes);
      } else {
        const auto extent = core_.extent_of(index, state);
        require(extent.ok(), "object without its memory", i);
        if (!extent) return;
        const uint32_t granule = static_cast<uint32_t>(extent->offset >> geo_.granule_shift);
        const auto it = used_.find(granule);
        require(it != used_.end() && it->second == i + 1, "object in memory that is not its own", i);
        if (it != used_.end()) used_.erase(it);
        used_bytes += uint64_t{FreeSpace::head_of(region_.block(granule)).granules} << geo_.granule_shift;
      }
      if (quiescent_) {
        require(!(state.doomed() && !core_.pinned(index)), "erased object that was never freed", i);
        require(state.state() == EntryState::kSealed || state.state() == EntryState::kSpilled,
                "object stuck half-way", i);
      }
      if (state.state() == EntryState::kCreating)
        require(read(region_.client(std::min(state.owner(), geo_.clients_max - 1)).attached) == 1,
                "object made by nobody", i);
    }
    if (held_) used_.erase(*held_);
    for (const auto& [granule, entry] : used_) require(false, "memory of no object", granule);
    require(read(super.objects) == report_.objects, "wrong count of objects", report_.objects);
    require(read(super.used_bytes) == used_bytes, "wrong count of used bytes", used_bytes);
    // The daemon changes these in two steps; it is the one who asks, and between steps.
    require(read(super.spilled_objects) == spilled, "wrong count of spilled objects", spilled);
    require(read(super.spilled_bytes) == spilled_bytes, "wrong count of spilled bytes", spilled_bytes);
  }

  void check_free_entries() {
    uint64_t free = 0;
    for (uint64_t at = read(region_.super().free_entry); at != 0 && problem_.empty(); ++free) {
      require(at - 1 < high_, "free list leads out of the entries", at - 1);
      require(free <= high_, "free list without an end", free);
      if (!problem_.empty()) return;
      const Entry& entry = region_.entry(static_cast<uint32_t>(at - 1));
      require(StateWord{read(entry.state)}.state() == EntryState::kFree, "object in the list of free entries",
              at - 1);
      at = read(entry.offset);
    }
    require(free + report_.objects == high_, "entry neither free nor in use", free);
  }

  void check_buckets() {
    uint64_t seen = 0;
    for (uint32_t bucket = 0; bucket < geo_.buckets && problem_.empty(); ++bucket) {
      for (uint32_t i = 0; i < kBucketWidth; ++i) {
        const uint64_t slot = read(region_.bucket_slot(bucket, i));
        if (slot == 0) continue;
        ++seen;
        const uint64_t index = (slot & 0xFFFFFFFF) - 1;
        require(index < high_, "bucket names no entry", bucket);
        if (!problem_.empty()) return;
        const Entry& entry = region_.entry(static_cast<uint32_t>(index));
        const HashPlace place = hash_place(
            {read(entry.id[0]), read(entry.id[1]), read(entry.id[2]), read(entry.id[3])}, geo_.buckets);
        require(StateWord{read(entry.state)}.state() != EntryState::kFree, "bucket names a free entry",
                bucket);
        require((bucket == place.first || bucket == place.second) && slot >> 32 == place.tag,
                "entry in the wrong bucket", bucket);
        require(++listed_[static_cast<uint32_t>(index)] == 1, "entry in two buckets", index);
      }
    }
    require(seen == report_.objects, "object in no bucket", seen);
  }

  void check_clients() {
    for (uint32_t slot = 0; slot < geo_.clients_max && problem_.empty(); ++slot) {
      const ClientArea& area = region_.client(slot);
      require(read(area.undo_count) == 0, "open transaction of a client without the lock", slot);
      if (read(area.attached) != 0 || !quiescent_) continue;
      for (uint64_t i = 0; i < high_; ++i)
        require((read(region_.pin_word(static_cast<uint32_t>(i), slot / 64)) >> (slot % 64) & 1) == 0,
                "pin of a client that is gone", i);
    }
  }

  const Core& core_;
  const Region& region_;
  const Geometry& geo_;
  std::optional<uint32_t> held_;
  bool quiescent_;
  std::string problem_;
  VerifyReport report_;
  std::unordered_map<uint32_t, FreeSpace::Head> free_;
  std::unordered_map<uint32_t, uint64_t> used_;
  std::unordered_map<uint32_t, int> listed_;
  uint64_t central_granules_ = 0;
  uint64_t high_ = 0;
};

}  // namespace

Result<VerifyReport> Arena::verify(bool quiescent) const {
  Core::Critical critical(*core_);
  if (!critical.held()) return Error{ErrorCode::kUnavailable, "the object store's lock is held"};
  const std::optional<uint32_t> held = held_ ? std::optional<uint32_t>(held_->granule) : std::nullopt;
  return Verifier(*core_, held, quiescent).run();
}

}  // namespace skate::store
