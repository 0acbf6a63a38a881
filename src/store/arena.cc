#include "store/arena.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "store/capacity.h"
#include "store/client/core.h"

namespace skate::store {
namespace {

constexpr uint32_t kSpillSample = 8192;  // entries looked at by one pick
constexpr size_t kSpillVictimsMax = 4096;

uint64_t read(const Word& word) { return word.load(std::memory_order_acquire); }

Result<UniqueFd> make_memfd(const char* name, uint64_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return errno_error("making the object store's memory file");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return errno_error("sizing the object store to " + std::to_string(bytes) + " bytes");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return errno_error("sealing the size of the object store");
  return fd;
}

ObjectInfo info_of(const Entry& entry, StateWord state) {
  ObjectInfo info{ObjectState::kSpilled, read(entry.size_bytes), state.owner()};
  if (state.state() == EntryState::kCreating) info.state = ObjectState::kCreating;
  if (state.state() == EntryState::kSealed) info.state = ObjectState::kSealed;
  return info;
}

ObjectId id_of(const Entry& entry) {
  return id_from_words({read(entry.id[0]), read(entry.id[1]), read(entry.id[2]), read(entry.id[3])});
}

}  // namespace

Arena::Arena(ArenaOptions options, UniqueFd index_fd, UniqueFd data_fd, std::shared_ptr<Core> core)
    : options_(options),
      index_fd_(std::move(index_fd)),
      data_fd_(std::move(data_fd)),
      core_(std::move(core)) {}
Arena::~Arena() = default;

Result<std::unique_ptr<Arena>> Arena::create(ArenaOptions options) {
  if (options.capacity_bytes == 0) options.capacity_bytes = default_capacity_bytes();
  options.capacity_bytes = options.capacity_bytes / kChunkBytes * kChunkBytes;
  SKATE_TRY_ASSIGN(const Geometry geo,
                   Geometry::plan(options.capacity_bytes, options.objects_max, options.clients_max));
  SKATE_TRY_ASSIGN(UniqueFd index_fd, make_memfd("skate-index", geo.index_bytes));
  SKATE_TRY_ASSIGN(UniqueFd data_fd, make_memfd("skate-data", geo.capacity_bytes));
  {
    SKATE_TRY_ASSIGN(const Mapping index, Mapping::map(index_fd.get(), geo.index_bytes,
                                                       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE));
    const Region region(index.base(), geo);
    Superblock& super = region.super();
    super.capacity_bytes.store(geo.capacity_bytes, std::memory_order_relaxed);
    super.objects_max.store(geo.objects_max, std::memory_order_relaxed);
    super.clients_max.store(geo.clients_max, std::memory_order_relaxed);
    FreeSpace::format(region);
    region.client(kDaemonSlot).attached.store(1, std::memory_order_relaxed);
    super.magic.store(kMagic, std::memory_order_release);
  }
  return open(std::move(index_fd), std::move(data_fd), options);
}

Result<std::unique_ptr<Arena>> Arena::adopt(UniqueFd index_fd, UniqueFd data_fd, ArenaOptions options) {
  SKATE_TRY_ASSIGN(auto arena, open(std::move(index_fd), std::move(data_fd), options));
  arena->slots_high_ = arena->core_->region().geo().clients_max - 1;
  return arena;
}

Result<std::unique_ptr<Arena>> Arena::open(UniqueFd index_fd, UniqueFd data_fd, ArenaOptions options) {
  SKATE_TRY_ASSIGN(auto core, Core::open(index_fd.get(), data_fd.get(), kDaemonSlot,
                                         CoreOptions{options.lock_timeout_ms}));
  return std::unique_ptr<Arena>(new Arena(options, std::move(index_fd), std::move(data_fd), std::move(core)));
}

ArenaStats Arena::stats() const {
  const Region& region = core_->region();
  const Superblock& super = region.super();
  ArenaStats stats;
  stats.capacity_bytes = region.geo().capacity_bytes;
  stats.used_bytes = read(super.used_bytes);
  stats.resident_bytes = core_->residency().resident_bytes();
  stats.objects = read(super.objects);
  stats.spilled_objects = read(super.spilled_objects);
  stats.spilled_bytes = read(super.spilled_bytes);
  stats.largest_free_bytes = core_->free_space().largest_free_bytes(Geometry::kCentralPool);
  stats.creates_total = read(super.creates);
  stats.evictions_total = read(super.evictions);
  stats.corruptions_total = read(super.corruptions);
  for (uint32_t slot = 1; slot <= slots_high_; ++slot)
    if (read(region.client(slot).attached) == 1) ++stats.clients;
  return stats;
}

Result<uint32_t> Arena::attach_client(pid_t pid) {
  const Region& region = core_->region();
  for (uint32_t slot = 1; slot < region.geo().clients_max; ++slot) {
    ClientArea& area = region.client(slot);
    if (read(area.attached) != 0) continue;
    if (ForkGuard::family_alive(index_fd_.get(), slot)) continue;
    area.pid.store(static_cast<uint64_t>(pid), std::memory_order_relaxed);
    area.undo_count.store(0, std::memory_order_relaxed);
    area.attached.store(1, std::memory_order_release);
    slots_high_ = std::max(slots_high_, slot);
    return slot;
  }
  return Error{ErrorCode::kFull, "the object store has its limit of " +
                                     std::to_string(region.geo().clients_max - 1) + " processes attached"};
}

// Recovery. Each part may be stopped anywhere and run again: replaying old values, clearing a bit,
// dooming what is doomed and freeing under the lock all end in the same place however often they begin.

Result<void> Arena::recover_client(uint32_t slot) {
  const Region& region = core_->region();
  if (slot == kDaemonSlot || slot >= region.geo().clients_max)
    return Error{ErrorCode::kInvalid, "client slot " + std::to_string(slot) + " does not exist"};
  ClientArea& area = region.client(slot);
  if (read(area.attached) == 0) return {};

  std::atomic<uint32_t>& lock = region.super().lock;
  if (SharedLock::holder(lock) == slot) {
    Transaction::replay(region, slot);
    SharedLock::release_for(lock, slot + 1);
  } else if (read(area.undo_count) != 0) {
    region.note_corruption();  // a log is written under the lock only: this one is not to be believed
    area.undo_count.store(0, std::memory_order_release);
  } else if (const int64_t holder = SharedLock::holder(lock);
             holder >= region.geo().clients_max ||
             (holder > 0 && read(region.client(static_cast<uint32_t>(holder)).attached) != 1)) {
    region.note_corruption();  // held by nobody who could let go
    SharedLock::release_for(lock, static_cast<uint32_t>(holder + 1));
  }

  const bool keep_pins = ForkGuard::family_alive(index_fd_.get(), slot);
  area.attached.store(2, std::memory_order_seq_cst);  // from here on its memory is freed to everyone
  SKATE_TRY(release_entries(slot, keep_pins));
  if (!return_leases(slot))
    return Error{ErrorCode::kUnavailable, "the object store's lock is held; recover this client again later"};
  if (keep_pins) {
    if (std::find(lingering_.begin(), lingering_.end(), slot) == lingering_.end()) lingering_.push_back(slot);
    return {};
  }
  for (uint32_t word = 0; word < region.geo().touch_words; ++word)
    area.touched[word].store(0, std::memory_order_relaxed);
  area.attached.store(0, std::memory_order_release);
  return {};
}

Result<void> Arena::release_entries(uint32_t slot, bool keep_pins) {
  const Region& region = core_->region();
  const ClientArea& area = region.client(slot);
  const uint64_t high = std::min<uint64_t>(read(region.super().entries_high), region.geo().objects_max);
  const uint64_t bit = uint64_t{1} << (slot % 64);
  for (uint64_t group = 0; group * kEntriesPerTouchBit < high; ++group) {
    if ((read(area.touched[group / 64]) >> (group % 64) & 1) == 0) continue;
    const uint64_t end = std::min(high, (group + 1) * kEntriesPerTouchBit);
    for (uint64_t i = group * kEntriesPerTouchBit; i < end; ++i) {
      const uint32_t index = static_cast<uint32_t>(i);
      Entry& entry = region.entry(index);
      Word& pins = region.pin_word(index, slot / 64);
      if (!keep_pins && (read(pins) & bit) != 0) pins.fetch_and(~bit, std::memory_order_seq_cst);
      StateWord state{entry.state.load(std::memory_order_seq_cst)};
      if (state.state() == EntryState::kCreating && state.owner() == slot) core_->abandon(index, state);
      state.bits = entry.state.load(std::memory_order_seq_cst);
      if (state.doomed() && !core_->free_if_unpinned(index, state))
        return Error{ErrorCode::kUnavailable,
                     "the object store's lock is held; recover this client again later"};
    }
  }
  return {};
}

bool Arena::return_leases(uint32_t slot) {
  FreeSpace& space = core_->free_space();
  for (const uint32_t pool : {Geometry::small_pool(slot), Geometry::large_pool(slot)}) {
    for (bool more = true; more;) {
      more = false;
      const Core::Done done =
          core_->transact([&](Transaction& tx) { more = space.reclaim_one_of(tx, pool); });
      if (done == Core::Done::kLocked) return false;
      if (done == Core::Done::kDamaged) break;  // what is in this pool stays there
    }
  }
  return true;
}

// Spilling.

std::vector<SpillVictim> Arena::pick_spill_victims(uint64_t bytes) {
  const Region& region = core_->region();
  const uint64_t high = std::min<uint64_t>(read(region.super().entries_high), region.geo().objects_max);
  struct Candidate {
    uint64_t touched_ms;
    uint32_t entry;
    StateWord state;
  };
  std::vector<Candidate> candidates;
  const uint64_t sample = std::min<uint64_t>(high, kSpillSample);
  for (uint64_t i = 0; i < sample; ++i) {
    if (spill_cursor_ >= high) spill_cursor_ = 0;
    const uint32_t index = spill_cursor_++;
    const StateWord state{read(region.entry(index).state)};
    if (state.state() != EntryState::kSealed || state.doomed() || core_->pinned(index)) continue;
    candidates.push_back({read(region.entry(index).touched_ms), index, state});
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.touched_ms != b.touched_ms ? a.touched_ms < b.touched_ms : a.entry < b.entry;
  });

  std::vector<SpillVictim> victims;
  uint64_t found = 0;
  for (const Candidate& candidate : candidates) {
    if (found >= bytes || victims.size() == kSpillVictimsMax) break;
    core_->pin(candidate.entry);
    const auto extent = core_->extent_of(candidate.entry, candidate.state);
    if (read(region.entry(candidate.entry).state) != candidate.state.bits || !extent) {
      core_->unpin(candidate.entry);
      continue;
    }
    victims.push_back({id_of(region.entry(candidate.entry)), core_->data() + extent->offset, extent->bytes,
                       candidate.entry, candidate.state.bits});
    found += std::max<uint64_t>(extent->bytes, region.geo().granule_bytes());
  }
  return victims;
}

bool Arena::commit_spill(const SpillVictim& victim) {
  return core_->evict(victim.entry, StateWord{victim.state_bits});
}

void Arena::abandon_spill(const SpillVictim& victim) { core_->unpin(victim.entry); }

Result<RestoreTarget> Arena::begin_restore(const ObjectId& id) {
  SKATE_TRY_ASSIGN(const Core::Extent extent, core_->begin_restore(id));
  RestoreTarget target{id, nullptr, extent.bytes, extent.entry, extent.state.bits, extent.offset};
  auto memory = core_->open_for_writing(extent);
  if (!memory) {
    core_->end_restore(extent, false);
    return memory.error();
  }
  target.data = *memory;
  return target;
}

void Arena::finish_restore(const RestoreTarget& target, bool good) {
  core_->windows().close();
  const Core::Extent extent{target.entry, StateWord{target.state_bits}, target.offset, target.bytes};
  // Not good and no lock: readable with wrong bytes would be worse than gone.
  if (!core_->end_restore(extent, good)) {
    erase(target.id);
    core_->end_restore(extent, true);
  }
}

uint64_t Arena::spilled_erased() const { return read(core_->region().super().spilled_erased); }

ObjectInfo Arena::info(const ObjectId& id) const {
  const auto found = core_->find(id_words(id));
  if (!found) return {};
  return info_of(core_->region().entry(found->entry), found->state);
}

bool Arena::erase(const ObjectId& id) { return core_->erase(id); }

std::vector<StoredObject> Arena::list(uint32_t* cursor, uint32_t entries_max) const {
  const Region& region = core_->region();
  const uint64_t high = std::min<uint64_t>(read(region.super().entries_high), region.geo().objects_max);
  std::vector<StoredObject> objects;
  for (uint32_t i = 0; i < entries_max && *cursor < high; ++i, ++*cursor) {
    const Entry& entry = region.entry(*cursor);
    const StateWord state{read(entry.state)};
    if (state.state() == EntryState::kFree || state.doomed()) continue;
    StoredObject object{id_of(entry), info_of(entry, state)};
    // What changed while we looked is another object now; it is not lost, only not listed.
    if (StateWord{read(entry.state)}.generation() == state.generation()) objects.push_back(object);
  }
  if (*cursor >= high) *cursor = 0;
  return objects;
}

}  // namespace skate::store
