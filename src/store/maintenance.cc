// Arena::step: what the daemon does for the store when it has nothing better to do.
//
// Memory that the system is to take back, or to fetch ahead, is first taken out of the free space under
// the lock, then worked on without it, then given back: nobody waits for the system's page work.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>

#include "store/arena.h"
#include "store/client/core.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace skate::store {
namespace {

constexpr uint32_t kSweepEntries = 4096;  // looked at by one step
constexpr uint32_t kWalkBlocks = 512;     // looked at under one hold of the lock
constexpr uint32_t kWalkRestartsMax = 4;  // a pass that the arena keeps changing under is given up
constexpr uint32_t kReleaseChunks = 512;  // 32 MiB: some milliseconds of hole punching
constexpr uint32_t kPrefaultChunks = 32;  // 2 MiB: one or two milliseconds of zeroing
constexpr uint64_t kFreshForMs = 10'000;  // growth this recent is worth fetching memory ahead for
constexpr uint64_t kBusyMs = 1, kIdleMs = 1000;

uint64_t read(const Word& word) { return word.load(std::memory_order_acquire); }

}  // namespace

uint64_t Arena::step(uint64_t now_ms) {
  if (held_ && !give_back_held()) return kBusyMs;
  if (sweep_step()) return kBusyMs;
  if (!lingering_.empty() && now_ms >= lingering_due_ms_) {
    lingering_due_ms_ = now_ms + 1000;
    const std::vector<uint32_t> slots = std::exchange(lingering_, {});
    for (const uint32_t slot : slots)
      if (auto done = recover_client(slot); !done) lingering_.push_back(slot);
  }
  if (walk_step(now_ms)) return kBusyMs;
  if (prefault_step(now_ms)) return kBusyMs;
  return kIdleMs;
}

/// Frees erased objects that nobody freed because the lock was not to be had. True: more to do.
bool Arena::sweep_step() {
  const Region& region = core_->region();
  const uint64_t wanted = read(region.super().sweeps_wanted);
  if (!sweeping_) {
    if (wanted == sweeps_seen_) return false;
    sweeps_seen_ = wanted;
    sweeping_ = true;
    sweep_cursor_ = 0;
  }
  const uint64_t high = std::min<uint64_t>(read(region.super().entries_high), region.geo().objects_max);
  const uint64_t end = std::min<uint64_t>(high, uint64_t{sweep_cursor_} + kSweepEntries);
  for (; sweep_cursor_ < end; ++sweep_cursor_) {
    const StateWord state{read(region.entry(sweep_cursor_).state)};
    if (state.doomed() && !core_->free_if_unpinned(sweep_cursor_, state)) return true;
  }
  sweeping_ = sweep_cursor_ < high;
  return sweeping_;
}

/// A slice of a pass over all blocks, if one is due. True: more to do.
bool Arena::walk_step(uint64_t now_ms) {
  const Region& region = core_->region();
  if (pass_ == Pass::kNone) {
    if (release_due_ms_ == 0) release_due_ms_ = now_ms + options_.release_idle_ms;
    if (leases_due_ms_ == 0) leases_due_ms_ = now_ms + options_.lease_idle_ms / 2;
    if (pressure_ || now_ms >= release_due_ms_) {
      pass_ = Pass::kRelease;
    } else if (now_ms >= leases_due_ms_) {
      pass_ = Pass::kLeases;
    } else {
      return false;
    }
    walk_granule_ = 0;
    walk_restarts_ = 0;
  }
  {
    Core::Critical critical(*core_);
    if (!critical.held()) return true;
    for (uint32_t i = 0; i < kWalkBlocks && walk_granule_ < region.geo().granules; ++i) {
      const FreeSpace::Head head = FreeSpace::head_of(region.block(walk_granule_));
      if (head.kind == FreeSpace::Kind::kNone || head.granules == 0) {  // merged away since the last slice
        walk_granule_ = 0;
        if (++walk_restarts_ <= kWalkRestartsMax) continue;
        walk_granule_ = region.geo().granules;
        break;
      }
      uint32_t next = walk_granule_ + std::min(head.granules, region.geo().granules - walk_granule_);
      // Returning a lease may swallow the block behind it; what that was is all there is to skip.
      uint32_t after = next;
      if (next < region.geo().granules)
        after += std::min(FreeSpace::head_of(region.block(next)).granules, region.geo().granules - next);
      if (head.kind == FreeSpace::Kind::kFree) {
        const Visit visit =
            pass_ == Pass::kLeases ? visit_lease(walk_granule_, now_ms) : visit_release(walk_granule_);
        if (visit == Visit::kStop) break;
        if (next < region.geo().granules &&
            FreeSpace::head_of(region.block(next)).kind == FreeSpace::Kind::kNone)
          next = after;
      }
      walk_granule_ = next;
    }
  }
  if (held_) {
    if (auto released = core_->residency().release(held_->first_chunk, held_->chunks); !released)
      core_->residency().mark_resident(held_->first_chunk, held_->chunks);
    give_back_held();
    return true;
  }
  if (walk_granule_ < region.geo().granules) return true;
  if (pass_ == Pass::kRelease) {
    core_->residency().forget_recent();
    release_due_ms_ =
        now_ms + (pressure_ ? std::min<uint64_t>(options_.release_idle_ms, 1000) : options_.release_idle_ms);
  } else {
    leases_due_ms_ = now_ms + options_.lease_idle_ms / 2;
  }
  pass_ = Pass::kNone;
  return false;
}

Arena::Visit Arena::visit_lease(uint32_t granule, uint64_t now_ms) {
  const Region& region = core_->region();
  const FreeSpace::Head head = FreeSpace::head_of(region.block(granule));
  if (head.pool == Geometry::kCentralPool || head.pool >= region.geo().pools) return Visit::kNext;
  const uint64_t freed_ms = (read(region.block(granule).behind) >> 32) * 1000;
  if (now_ms < freed_ms + options_.lease_idle_ms) return Visit::kNext;
  Transaction tx(region, core_->slot());
  core_->free_space().return_to_central(tx, granule);
  if (!tx.commit()) region.note_corruption();
  return Visit::kNext;
}

Arena::Visit Arena::visit_release(uint32_t granule) {
  const Region& region = core_->region();
  const FreeSpace::Head head = FreeSpace::head_of(region.block(granule));
  if (pressure_ && head.pool != Geometry::kCentralPool) {
    Transaction tx(region, core_->slot());
    const bool moved = core_->free_space().return_to_central(tx, granule);
    if (!tx.commit()) region.note_corruption();
    if (moved) walk_granule_ = 0;  // it has merged with something before or behind: look again
    return moved ? Visit::kStop : Visit::kNext;
  }
  if (head.pool != Geometry::kCentralPool) return Visit::kNext;
  const uint32_t unit = region.geo().chunk_granules;
  const uint32_t end = (granule + head.granules) / unit;
  const Residency& residency = core_->residency();
  for (uint32_t chunk = (granule + unit - 1) / unit; chunk < end;) {
    if (chunk % 64 == 0 && read(region.resident(chunk / 64)) == 0) {
      chunk += 64;
      continue;
    }
    auto idle = [&](uint32_t c) { return residency.resident(c) && (pressure_ || !residency.recent(c)); };
    if (!idle(chunk)) {
      ++chunk;
      continue;
    }
    uint32_t last = chunk + 1;
    while (last < end && last - chunk < kReleaseChunks && idle(last)) ++last;
    if (!hold(granule, chunk, last - chunk)) return Visit::kNext;
    walk_granule_ = granule;  // the block is the same again once this is given back
    return Visit::kStop;
  }
  return Visit::kNext;
}

/// Fetches memory at the low end of the largest free block, where the next large object will be put.
bool Arena::prefault_step(uint64_t now_ms) {
  const Region& region = core_->region();
  const uint64_t fresh = read(region.super().large_fresh);
  if (fresh != fresh_seen_) {
    fresh_seen_ = fresh;
    fresh_at_ms_ = now_ms;
  }
  if (fresh == 0 || pressure_ || now_ms > fresh_at_ms_ + kFreshForMs) return false;
  {
    Core::Critical critical(*core_);
    if (!critical.held()) return false;
    const auto block = core_->free_space().largest_free(Geometry::kCentralPool);
    if (!block) return false;
    const uint32_t unit = region.geo().chunk_granules;
    const uint32_t begin = *block / unit;
    const uint32_t ahead =
        static_cast<uint32_t>(std::min<uint64_t>(options_.prefault_ahead_bytes / kChunkBytes,
                                                 FreeSpace::head_of(region.block(*block)).granules / unit));
    uint32_t first = begin;
    while (first < begin + ahead && core_->residency().resident(first)) ++first;
    if (first == begin + ahead) return false;
    uint32_t end = first;
    while (end < begin + ahead && end - first < kPrefaultChunks && !core_->residency().resident(end)) ++end;
    if (!hold(*block, first, end - first)) return false;
  }
  const bool fetched = prefault_held();
  give_back_held();
  if (!fetched) fresh_at_ms_ = 0;  // no memory to be had: not again until something grows
  return fetched;
}

bool Arena::prefault_held() {
  const uint64_t at = uint64_t{held_->first_chunk} * kChunkBytes,
                 bytes = uint64_t{held_->chunks} * kChunkBytes;
  if (!core_->residency().reserve(at, bytes)) return false;
  void* memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, data_fd_.get(), static_cast<off_t>(at));
  if (memory == MAP_FAILED) return false;
  (void)::madvise(memory, bytes, MADV_POPULATE_WRITE);  // zeroes the pages; the memory itself is reserved
  ::munmap(memory, bytes);
  return true;
}

bool Arena::hold(uint32_t block, uint32_t first_chunk, uint32_t chunks) {
  const Region& region = core_->region();
  const uint32_t granule = first_chunk * region.geo().chunk_granules;
  Transaction tx(region, core_->slot());
  core_->free_space().take_range(tx, block, granule, chunks * region.geo().chunk_granules, kNoEntry);
  if (!tx.commit()) {
    region.note_corruption();
    return false;
  }
  held_ = HeldRange{granule, first_chunk, chunks};
  return true;
}

bool Arena::give_back_held() {
  const Core::Done done =
      core_->transact([&](Transaction& tx) { core_->free_space().free(tx, held_->granule); });
  if (done == Core::Done::kLocked) return false;
  held_.reset();
  return true;
}

}  // namespace skate::store
