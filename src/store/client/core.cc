#include "store/client/core.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <unordered_map>
#include <utility>

namespace skate::store {
namespace {

constexpr int kPinRetries = 8;  // an entry that changes this often under us is treated as absent
constexpr int kReclaimsMax = 1 << 16;

uint64_t read(const Word& word) { return word.load(std::memory_order_acquire); }

Error forked_error() {
  return {ErrorCode::kInvalid,
          "the object store cannot be used in a forked child; start the process with 'spawn' instead"};
}

Result<uint64_t> file_bytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_error("looking at the object store's descriptor");
  return static_cast<uint64_t>(status.st_size);
}

/// The stores of this process, for pthread_atfork, which takes no argument. Locked while a fork goes on.
struct ForkWatch {
  std::mutex mutex;
  std::vector<Core*> cores;
  ForkWatch() {
    ::pthread_atfork(
        [] {
          instance().mutex.lock();
          for (Core* core : instance().cores) core->before_fork();
        },
        [] {
          for (Core* core : instance().cores) core->after_fork_in_parent();
          instance().mutex.unlock();
        },
        [] { instance().mutex.unlock(); });
  }
  static ForkWatch& instance() {
    static auto* watch = new ForkWatch();  // never destroyed: a fork may come during exit
    return *watch;
  }
};

}  // namespace

Core::Critical::Critical(Core& core)
    : local_(core.transaction_mutex_),
      lock_(core.region_.super().lock, core.slot_),
      held_(lock_.acquire(core.options_.lock_timeout_ms)) {}
Core::Critical::~Critical() {
  if (held_) lock_.release();
}

Core::Core(Geometry geometry, Mapping index, Mapping data, UniqueFd data_fd,
           std::unique_ptr<WriteWindows> windows, Mapping pins, ForkGuard guard, uint32_t slot,
           CoreOptions options)
    : index_(std::move(index)),
      data_(std::move(data)),
      data_fd_(std::move(data_fd)),
      region_(index_.base(), geometry),
      free_space_(region_),
      residency_(region_, data_fd_.get()),
      windows_(std::move(windows)),
      pins_(std::move(pins)),
      guard_(std::move(guard)),
      slot_(slot),
      options_(options) {
  ForkWatch& watch = ForkWatch::instance();
  std::lock_guard lock(watch.mutex);
  watch.cores.push_back(this);
}

Core::~Core() {
  ForkWatch& watch = ForkWatch::instance();
  std::lock_guard lock(watch.mutex);
  std::erase(watch.cores, this);
}

Result<std::shared_ptr<Core>> Core::open(int index_fd, int data_fd, uint32_t slot, CoreOptions options) {
  SKATE_TRY_ASSIGN(const uint64_t index_bytes, file_bytes(index_fd));
  SKATE_TRY_ASSIGN(const uint64_t data_bytes, file_bytes(data_fd));
  if (index_bytes < sizeof(Superblock))
    return Error{ErrorCode::kCorrupt, "not an object store: index too short"};
  SKATE_TRY_ASSIGN(Mapping index,
                   Mapping::map(index_fd, index_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE));
  const auto& super = *reinterpret_cast<const Superblock*>(index.base());
  if (read(super.magic) != kMagic) return Error{ErrorCode::kCorrupt, "not an object store: wrong magic"};
  SKATE_TRY_ASSIGN(const Geometry geometry, Geometry::plan(read(super.capacity_bytes),
                                                           read(super.objects_max), read(super.clients_max)));
  if (geometry.index_bytes != index_bytes || geometry.capacity_bytes != data_bytes)
    return Error{ErrorCode::kCorrupt, "not an object store: sizes do not agree"};
  if (slot >= geometry.clients_max)
    return Error{ErrorCode::kInvalid, "client slot " + std::to_string(slot) + " does not exist"};
  index.advise(MADV_DONTFORK);

  SKATE_TRY_ASSIGN(Mapping data, Mapping::map(data_fd, data_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE));
  SKATE_TRY_ASSIGN(auto windows, WriteWindows::create(data_fd, data_bytes));
  SKATE_TRY_ASSIGN(Mapping pins,
                   Mapping::map(-1, size_t{geometry.objects_max} * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE));
  SKATE_TRY_ASSIGN(ForkGuard guard, ForkGuard::create(index_fd, slot));
  UniqueFd data_copy(::fcntl(data_fd, F_DUPFD_CLOEXEC, 0));
  if (!data_copy) return errno_error("duplicating the object store's descriptor");
  return std::shared_ptr<Core>(new Core(geometry, std::move(index), std::move(data), std::move(data_copy),
                                        std::move(windows), std::move(pins), std::move(guard), slot,
                                        options));
}

Error Core::lock_error() const {
  const int64_t holder = SharedLock::holder(region_.super().lock);
  std::string who = "client slot " + std::to_string(holder);
  if (holder >= 0 && holder < region_.geo().clients_max)
    who += " (pid " + std::to_string(read(region_.client(static_cast<uint32_t>(holder)).pid)) + ")";
  return {ErrorCode::kUnavailable, "the object store's lock was held for " +
                                       std::to_string(options_.lock_timeout_ms) + " ms by " + who +
                                       "; is that process stopped?"};
}

Error Core::full_error(uint64_t bytes) const {
  const uint64_t central = free_space_.largest_free_bytes(Geometry::kCentralPool);
  return {ErrorCode::kFull, "the object store is full: " + std::to_string(bytes) + " bytes wanted, " +
                                std::to_string(read(region_.super().used_bytes)) + " of " +
                                std::to_string(region_.geo().capacity_bytes) + " bytes in use by " +
                                std::to_string(read(region_.super().objects)) +
                                " objects, largest free extent " + std::to_string(central) +
                                " bytes; free or spill objects, or give the store more memory"};
}

void Core::touch(uint32_t entry) {
  const uint32_t group = entry / kEntriesPerTouchBit;
  Word& word = region_.client(slot_).touched[group / 64];
  const uint64_t bit = uint64_t{1} << (group % 64);
  if ((word.load(std::memory_order_relaxed) & bit) == 0) word.fetch_or(bit, std::memory_order_seq_cst);
}

bool Core::matches(const Entry& entry, const std::array<uint64_t, 4>& id) const {
  // The last words differ most often.
  return read(entry.id[2]) == id[2] && read(entry.id[3]) == id[3] && read(entry.id[0]) == id[0] &&
         read(entry.id[1]) == id[1];
}

std::optional<Core::Found> Core::find(const std::array<uint64_t, 4>& id) const {
  const HashPlace place = hash_place(id, region_.geo().buckets);
  for (const uint32_t bucket : {place.first, place.second}) {
    for (uint32_t i = 0; i < kBucketWidth; ++i) {
      const uint64_t slot = read(region_.bucket_slot(bucket, i));
      if (slot == 0 || static_cast<uint32_t>(slot >> 32) != place.tag) continue;
      const uint64_t index = (slot & 0xFFFFFFFF) - 1;
      if (!region_.has_entry(index)) {
        region_.note_corruption();
        continue;
      }
      const Entry& entry = region_.entry(static_cast<uint32_t>(index));
      const StateWord state{read(entry.state)};
      if (state.state() == EntryState::kFree || state.doomed() || !matches(entry, id)) continue;
      return Found{static_cast<uint32_t>(index), state};
    }
  }
  return std::nullopt;
}

Result<Core::Extent> Core::extent_of(uint32_t index, StateWord state) const {
  const Entry& entry = region_.entry(index);
  const uint64_t offset = read(entry.offset), bytes = read(entry.size_bytes);
  const Geometry& geo = region_.geo();
  bool ok = offset < geo.capacity_bytes && offset % geo.granule_bytes() == 0 &&
            bytes <= geo.capacity_bytes - offset;
  if (ok) {
    const Block& block = region_.block(static_cast<uint32_t>(offset >> geo.granule_shift));
    ok = FreeSpace::head_of(block).kind == FreeSpace::Kind::kUsed &&
         read(block.entry) == uint64_t{index} + 1 &&
         uint64_t{FreeSpace::head_of(block).granules} << geo.granule_shift >= bytes;
  }
  if (!ok)
    return Error{ErrorCode::kCorrupt,
                 "the object store's index is damaged at entry " + std::to_string(index)};
  return Extent{index, state, offset, bytes};
}

// Pins. A reader raises its bit and then looks at the state again; whoever dooms changes the state and
// then looks at the bits. All four are sequentially consistent, so at least one of the two sees the other.

void Core::pin(uint32_t entry) {
  touch(entry);
  std::lock_guard lock(stripe(entry));
  if (local_pins(entry)++ == 0)
    region_.pin_word(entry, slot_ / 64).fetch_or(uint64_t{1} << (slot_ % 64), std::memory_order_seq_cst);
}

bool Core::drop_pin_bit(uint32_t entry) {
  std::lock_guard lock(stripe(entry));
  SKATE_ASSERT(local_pins(entry) > 0, "unpinned more often than pinned");
  if (--local_pins(entry) != 0) return false;
  region_.pin_word(entry, slot_ / 64).fetch_and(~(uint64_t{1} << (slot_ % 64)), std::memory_order_seq_cst);
  return true;
}

/// Once more what this process pins itself, not only for its children. Needs children_mutex_.
std::vector<uint32_t> Core::pin_again_what_is_pinned() {
  std::unordered_map<uint32_t, uint32_t> for_children;
  for (const std::vector<uint32_t>& held : children_)
    for (const uint32_t entry : held) ++for_children[entry];
  for (const uint32_t entry : kept_for_good_) ++for_children[entry];
  std::vector<uint32_t> pinned;
  const Geometry& geo = region_.geo();
  for (uint32_t word = 0; word < geo.touch_words; ++word) {
    const uint64_t groups = read(region_.client(slot_).touched[word]);
    for (uint32_t bit = 0; groups != 0 && bit < 64; ++bit) {
      if ((groups >> bit & 1) == 0) continue;
      const uint64_t first = (uint64_t{word} * 64 + bit) * kEntriesPerTouchBit;
      const uint64_t last = std::min<uint64_t>(first + kEntriesPerTouchBit, geo.objects_max);
      for (uint64_t at = first; at < last; ++at) {
        const auto entry = static_cast<uint32_t>(at);
        std::lock_guard lock(stripe(entry));
        if (local_pins(entry) == 0) continue;
        const auto known = for_children.find(entry);
        if (known != for_children.end() && known->second == local_pins(entry)) continue;
        ++local_pins(entry);
        pinned.push_back(entry);
      }
    }
  }
  return pinned;
}

void Core::before_fork() {
  if (in_forked_child()) return;
  look_at_children();
  std::vector<uint32_t> held_already;
  {
    std::lock_guard lock(children_mutex_);
    const std::vector<uint32_t> pinned = pin_again_what_is_pinned();
    if (pinned.empty()) return;
    auto place = std::find(children_.begin(), children_.end(), pinned);
    if (place == children_.end())
      place = std::find(children_.begin(), children_.end(), std::vector<uint32_t>());
    // With as many different sets as there are marks, some children's are held for as long as others live.
    if (place == children_.end()) place = children_.begin();
    Result<Mapping> mark = guard_.mark(static_cast<uint32_t>(place - children_.begin()));
    std::vector<uint32_t>& held = mark ? *place : kept_for_good_;
    if (mark) {
      mark_ = std::move(*mark);
      has_children_.store(true, std::memory_order_relaxed);
    } else if (kept_for_good_.empty()) {
      std::fprintf(
          stderr,
          "skate: what this process reads from the object store as it forks stays there until it ends, "
          "for the end of the child cannot be watched: %s\n",
          mark.error().message.c_str());
    }
    std::set_intersection(held.begin(), held.end(), pinned.begin(), pinned.end(),
                          std::back_inserter(held_already));
    std::vector<uint32_t> all;
    std::set_union(held.begin(), held.end(), pinned.begin(), pinned.end(), std::back_inserter(all));
    held = std::move(all);
  }
  for (const uint32_t entry : held_already) release_pin(entry);
}

void Core::look_at_children() {
  if (!has_children_.load(std::memory_order_relaxed) || in_forked_child()) return;
  std::vector<uint32_t> over;
  {
    std::lock_guard lock(children_mutex_);
    bool some_live = false;
    for (uint32_t number = 0; number < children_.size(); ++number) {
      std::vector<uint32_t>& held = children_[number];
      if (held.empty()) continue;
      if (guard_.marked(number)) {
        some_live = true;
        continue;
      }
      over.insert(over.end(), held.begin(), held.end());
      held = {};
    }
    has_children_.store(some_live, std::memory_order_relaxed);
  }
  for (const uint32_t entry : over) release_pin(entry);
}

void Core::unpin(uint32_t entry) {
  if (in_forked_child()) return;
  if (!release_pin(entry)) look_at_children();
}

bool Core::release_pin(uint32_t entry) {
  if (!drop_pin_bit(entry)) return false;
  const StateWord state{region_.entry(entry).state.load(std::memory_order_seq_cst)};
  if (state.doomed()) free_if_unpinned(entry, state);
  return true;
}

bool Core::pinned(uint32_t entry) const {
  for (uint32_t word = 0; word < region_.geo().pin_words; ++word)
    if (region_.pin_word(entry, word).load(std::memory_order_seq_cst) != 0) return true;
  return false;
}

bool Core::pinned_by_others(uint32_t entry) const {
  for (uint32_t word = 0; word < region_.geo().pin_words; ++word) {
    uint64_t bits = region_.pin_word(entry, word).load(std::memory_order_seq_cst);
    if (word == slot_ / 64) bits &= ~(uint64_t{1} << (slot_ % 64));
    if (bits != 0) return true;
  }
  return false;
}

std::optional<Core::Extent> Core::find_and_pin(const ObjectId& id) {
  if (in_forked_child()) return std::nullopt;
  const auto words = id_words(id);
  for (int i = 0; i < kPinRetries; ++i) {
    const auto found = find(words);
    if (!found || found->state.state() != EntryState::kSealed) return std::nullopt;
    pin(found->entry);
    Entry& entry = region_.entry(found->entry);
    auto extent = extent_of(found->entry, found->state);
    if (entry.state.load(std::memory_order_seq_cst) != found->state.bits) {
      unpin(found->entry);
      continue;
    }
    if (!extent) {
      region_.note_corruption();
      unpin(found->entry);
      return std::nullopt;
    }
    entry.touched_ms.store(coarse_ms(), std::memory_order_relaxed);
    return *extent;
  }
  return std::nullopt;
}

// Creating.

std::optional<uint32_t> Core::take_entry(Transaction& tx) {
  Superblock& super = region_.super();
  const uint64_t top = read(super.free_entry);
  if (top != 0) {
    if (!region_.has_entry(top - 1) ||
        StateWord{read(region_.entry(static_cast<uint32_t>(top - 1)).state)}.state() != EntryState::kFree) {
      tx.fail();
      return std::nullopt;
    }
    const uint32_t entry = static_cast<uint32_t>(top - 1);
    tx.set(super.free_entry, read(region_.entry(entry).offset));
    return entry;
  }
  const uint64_t high = read(super.entries_high);
  if (!region_.has_entry(high)) return std::nullopt;
  tx.set(super.entries_high, high + 1);
  return static_cast<uint32_t>(high);
}

Core::Outcome Core::try_create(Transaction& tx, const std::array<uint64_t, 4>& id, uint64_t bytes,
                               Extent* made) {
  const auto index = take_entry(tx);
  if (!index) return tx.failed() ? Outcome::kNonsense : Outcome::kNoEntry;
  const auto block = free_space_.allocate(tx, slot_, bytes, *index);
  if (tx.failed()) return Outcome::kNonsense;
  if (!block) return Outcome::kNoMemory;

  const HashPlace place = hash_place(id, region_.geo().buckets);
  Word* slot = nullptr;
  uint32_t most_room = 0;
  for (const uint32_t bucket : {place.first, place.second}) {
    uint32_t room = 0;
    Word* empty = nullptr;
    for (uint32_t i = 0; i < kBucketWidth; ++i) {
      Word& candidate = region_.bucket_slot(bucket, i);
      if (read(candidate) != 0) continue;
      ++room;
      if (empty == nullptr) empty = &candidate;
    }
    if (room > most_room) {
      most_room = room;
      slot = empty;
    }
  }
  if (slot == nullptr) return Outcome::kBucketFull;

  Entry& entry = region_.entry(*index);
  const StateWord old{read(entry.state)};
  const StateWord state = StateWord::make(old.generation() + 1, slot_, EntryState::kCreating);
  touch(*index);
  tx.set(entry.state, state.bits);
  for (size_t i = 0; i < id.size(); ++i) tx.set(entry.id[i], id[i]);
  const uint64_t offset = uint64_t{*block} << region_.geo().granule_shift;
  tx.set(entry.offset, offset);
  tx.set(entry.size_bytes, bytes);
  tx.set(entry.touched_ms, coarse_ms());
  tx.set(*slot, uint64_t{place.tag} << 32 | (uint64_t{*index} + 1));
  tx.add(region_.super().objects, 1);
  tx.add(region_.super().used_bytes, free_space_.block_bytes(*block));
  *made = Extent{*index, state, offset, bytes};
  return Outcome::kDone;
}

/// Runs `attempt` in a transaction; while it finds no memory, takes free memory of other clients.
template <class Attempt>
Result<void> Core::place(const ObjectId& id, uint64_t bytes, Attempt&& attempt) {
  for (int reclaims = 0;; ++reclaims) {
    Outcome outcome;
    {
      Transaction tx(region_, slot_);
      outcome = attempt(tx);
      if (outcome == Outcome::kDone && !tx.commit()) outcome = Outcome::kNonsense;
    }
    switch (outcome) {
      case Outcome::kDone: return {};
      case Outcome::kNoMemory: {
        if (bytes > region_.geo().capacity_bytes || reclaims == kReclaimsMax) return full_error(bytes);
        Transaction tx(region_, slot_);
        if (!free_space_.reclaim_one(tx) || !tx.commit()) return full_error(bytes);
        break;
      }
      case Outcome::kNoEntry:
        return Error{ErrorCode::kFull, "the object store holds its limit of " +
                                           std::to_string(region_.geo().objects_max) + " objects"};
      case Outcome::kBucketFull:
        return Error{ErrorCode::kFull, "the object store's index has no room near object " + id.hex()};
      case Outcome::kNonsense:
        region_.note_corruption();
        return Error{ErrorCode::kCorrupt, "the object store's free space is damaged"};
    }
  }
}

Result<Core::Extent> Core::create(const ObjectId& id, uint64_t bytes) {
  if (in_forked_child()) return forked_error();
  look_at_children();
  const auto words = id_words(id);
  Extent made{};
  {
    Critical critical(*this);
    if (!critical.held()) return lock_error();
    if (find(words))
      return Error{ErrorCode::kExists, "object " + id.hex() + " exists already in the object store"};
    SKATE_TRY(place(id, bytes, [&](Transaction& tx) { return try_create(tx, words, bytes, &made); }));
  }
  region_.super().creates.fetch_add(1, std::memory_order_relaxed);
  return made;
}

Result<uint8_t*> Core::open_for_writing(const Extent& extent) {
  SKATE_TRY_ASSIGN(const bool fresh, residency_.reserve(extent.offset, extent.bytes));
  if (fresh && extent.bytes >= kLargeBytes)
    region_.super().large_fresh.fetch_add(1, std::memory_order_relaxed);
  return windows_->open(extent.offset, std::max<uint64_t>(extent.bytes, 1), fresh);
}

Result<void> Core::seal(uint32_t index, StateWord creating) {
  Word& word = region_.entry(index).state;
  uint64_t seen = creating.bits;
  for (;;) {
    if ((seen & ~StateWord::kDoomed) != creating.bits) {
      region_.note_corruption();
      return Error{ErrorCode::kCorrupt,
                   "the object store's index is damaged at entry " + std::to_string(index)};
    }
    const StateWord sealed = StateWord{seen}.with(EntryState::kSealed);
    if (!word.compare_exchange_strong(seen, sealed.bits, std::memory_order_seq_cst)) continue;
    if (sealed.doomed()) free_if_unpinned(index, sealed);  // erased while it was being made
    return {};
  }
}

void Core::abandon(uint32_t index, StateWord creating) {
  Word& word = region_.entry(index).state;
  const uint64_t expected = creating.bits & ~StateWord::kDoomed;
  uint64_t seen = creating.bits;
  while ((seen & ~StateWord::kDoomed) == expected) {
    const StateWord dead = StateWord{seen}.with(EntryState::kSealed).with_doom();
    if (word.compare_exchange_strong(seen, dead.bits, std::memory_order_seq_cst)) {
      free_if_unpinned(index, dead);
      return;
    }
  }
  region_.note_corruption();
}

// Spilling. Only the daemon's Core does this, so no death needs to be repaired half-way.

bool Core::replace_state(uint32_t index, StateWord* state, EntryState to, uint32_t generations) {
  Word& word = region_.entry(index).state;
  uint64_t seen = state->bits;
  const uint64_t expected = state->bits & ~StateWord::kDoomed;
  while ((seen & ~StateWord::kDoomed) == expected) {
    const StateWord next{StateWord{seen}.with(to).bits + (uint64_t{generations} << 32)};
    if (!word.compare_exchange_strong(seen, next.bits, std::memory_order_seq_cst)) continue;
    *state = next;
    return true;
  }
  return false;
}

bool Core::evict(uint32_t index, StateWord sealed) {
  StateWord state = sealed;
  uint64_t seen = sealed.bits;
  if (!region_.entry(index).state.compare_exchange_strong(seen, sealed.with(EntryState::kEvicting).bits,
                                                          std::memory_order_seq_cst)) {
    unpin(index);
    return false;
  }
  state = sealed.with(EntryState::kEvicting);
  bool done = false;
  if (!pinned_by_others(index)) {
    done = transact([&](Transaction& tx) {
             const auto extent = extent_of(index, state);
             if (!extent) return tx.fail();
             free_extent(tx, static_cast<uint32_t>(extent->offset >> region_.geo().granule_shift));
             tx.set(region_.entry(index).offset, 0);
             tx.add(region_.super().spilled_objects, 1);
             tx.add(region_.super().spilled_bytes, extent->bytes);
           }) == Done::kYes;
  }
  if (!replace_state(index, &state, done ? EntryState::kSpilled : EntryState::kSealed, 0))
    region_.note_corruption();
  if (done) region_.super().evictions.fetch_add(1, std::memory_order_relaxed);
  unpin(index);
  return done && !state.doomed();
}

Result<Core::Extent> Core::begin_restore(const ObjectId& id) {
  const auto found = find(id_words(id));
  if (!found) return Error{ErrorCode::kNotFound, "object " + id.hex() + " is not in the object store"};
  if (found->state.state() != EntryState::kSpilled)
    return Error{ErrorCode::kExists, "object " + id.hex() + " is not spilled"};
  StateWord state = found->state;
  // A new generation: a reader must not take the old place for the new one.
  if (!replace_state(found->entry, &state, EntryState::kRestoring, 1))
    return Error{ErrorCode::kNotFound, "object " + id.hex() + " is not in the object store"};
  Entry& entry = region_.entry(found->entry);
  const uint64_t bytes = read(entry.size_bytes);
  Extent made{found->entry, state, 0, bytes};
  const Result<void> placed = [&]() -> Result<void> {
    Critical critical(*this);
    if (!critical.held()) return lock_error();
    return place(id, bytes, [&](Transaction& tx) {
      const auto block = free_space_.allocate(tx, slot_, bytes, found->entry);
      if (tx.failed()) return Outcome::kNonsense;
      if (!block) return Outcome::kNoMemory;
      made.offset = uint64_t{*block} << region_.geo().granule_shift;
      tx.set(entry.offset, made.offset);
      tx.add(region_.super().used_bytes, free_space_.block_bytes(*block));
      tx.add(region_.super().spilled_objects, ~uint64_t{0});
      tx.add(region_.super().spilled_bytes, ~bytes + 1);
      return Outcome::kDone;
    });
  }();
  if (!placed) {
    if (!replace_state(found->entry, &state, EntryState::kSpilled, 0)) region_.note_corruption();
    free_if_unpinned(found->entry, state);
    return placed.error();
  }
  return made;
}

bool Core::end_restore(const Extent& extent, bool good) {
  StateWord state = extent.state;
  bool back = false;
  if (!good) {
    back = transact([&](Transaction& tx) {
             free_extent(tx, static_cast<uint32_t>(extent.offset >> region_.geo().granule_shift));
             tx.set(region_.entry(extent.entry).offset, 0);
             tx.add(region_.super().spilled_objects, 1);
             tx.add(region_.super().spilled_bytes, extent.bytes);
           }) == Done::kYes;
    if (!back) return false;
  }
  if (!replace_state(extent.entry, &state, back ? EntryState::kSpilled : EntryState::kSealed, 0))
    region_.note_corruption();
  region_.entry(extent.entry).touched_ms.store(coarse_ms(), std::memory_order_relaxed);
  free_if_unpinned(extent.entry, state);
  return true;
}

// Erasing and freeing.

bool Core::erase(const ObjectId& id) {
  if (in_forked_child()) return false;
  const auto words = id_words(id);
  for (int i = 0; i < kPinRetries; ++i) {
    const auto found = find(words);
    if (!found) return false;
    touch(found->entry);
    uint64_t seen = found->state.bits;
    const StateWord doomed = found->state.with_doom();
    if (!region_.entry(found->entry)
             .state.compare_exchange_strong(seen, doomed.bits, std::memory_order_seq_cst))
      continue;
    free_if_unpinned(found->entry, doomed);
    return true;
  }
  return false;
}

bool Core::free_if_unpinned(uint32_t index, StateWord state) {
  // An object that is being made, evicted or restored is freed by whoever does that, when it is done.
  const bool settled = state.state() == EntryState::kSealed || state.state() == EntryState::kSpilled;
  if (!state.doomed() || !settled || pinned(index)) return true;
  Critical critical(*this);
  if (!critical.held()) {
    region_.super().sweeps_wanted.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  if (region_.entry(index).state.load(std::memory_order_seq_cst) != state.bits || pinned(index)) return true;
  Transaction tx(region_, slot_);
  free_entry(tx, index);
  if (!tx.commit()) region_.note_corruption();
  return true;
}

void Core::free_extent(Transaction& tx, uint32_t granule) {
  const FreeSpace::Head head = FreeSpace::head_of(region_.block(granule));
  tx.add(region_.super().used_bytes, ~free_space_.block_bytes(granule) + 1);
  residency_.mark_recent(granule / region_.geo().chunk_granules,
                         (head.granules + region_.geo().chunk_granules - 1) / region_.geo().chunk_granules);
  const uint32_t merged = free_space_.free(tx, granule);
  // Memory of a client that is gone has nobody to keep it warm for.
  if (!tx.failed() && head.pool != Geometry::kCentralPool &&
      read(region_.client(Geometry::pool_slot(head.pool)).attached) != 1)
    free_space_.return_to_central(tx, merged);
}

void Core::free_entry(Transaction& tx, uint32_t index) {
  Entry& entry = region_.entry(index);
  const StateWord state{read(entry.state)};
  std::array<uint64_t, 4> id;
  for (size_t i = 0; i < id.size(); ++i) id[i] = read(entry.id[i]);
  const HashPlace place = hash_place(id, region_.geo().buckets);
  const uint64_t mine = uint64_t{place.tag} << 32 | (uint64_t{index} + 1);
  Word* slot = nullptr;
  for (const uint32_t bucket : {place.first, place.second})
    for (uint32_t i = 0; i < kBucketWidth && slot == nullptr; ++i)
      if (read(region_.bucket_slot(bucket, i)) == mine) slot = &region_.bucket_slot(bucket, i);
  if (slot == nullptr) return tx.fail();
  tx.set(*slot, 0);

  Superblock& super = region_.super();
  if (state.state() == EntryState::kSpilled) {
    tx.add(super.spilled_objects, ~uint64_t{0});
    tx.add(super.spilled_bytes, ~read(entry.size_bytes) + 1);
    super.spilled_erased.fetch_add(1, std::memory_order_relaxed);
  } else {
    const auto extent = extent_of(index, state);
    if (!extent) return tx.fail();
    const uint32_t granule = static_cast<uint32_t>(extent->offset >> region_.geo().granule_shift);
    free_extent(tx, granule);
  }
  tx.add(super.objects, ~uint64_t{0});
  tx.set(entry.offset, read(super.free_entry));
  tx.set(super.free_entry, uint64_t{index} + 1);
  tx.set(entry.state, StateWord::make(state.generation(), 0, EntryState::kFree).bits);
}

}  // namespace skate::store
