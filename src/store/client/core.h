// Core: one process's hold on the store, with everything that is done to the index. Client and Arena are
// its faces; the protocol is described in README.md.
//
// Thread-safe. Lookups and pins take no lock that another process could hold; create, erase and the
// freeing of an erased object take the store's lock for about a microsecond, and give up after
// `lock_timeout_ms`. In a forked child every operation is refused; what was pinned when it was forked stays
// pinned while it lives, whatever the parent does.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/unique_fd.h"
#include "store/client/fork_guard.h"
#include "store/client/write_windows.h"
#include "store/free_space.h"
#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/residency.h"

namespace skate::store {

struct CoreOptions {
  uint64_t lock_timeout_ms = 2000;
};

class Core {
 public:
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;
  struct Found {
    uint32_t entry;
    StateWord state;
  };
  struct Extent {
    uint32_t entry;
    StateWord state;
    uint64_t offset, bytes;
  };

  /// Maps the store that the two descriptors name; duplicates what it needs, so the caller may close them.
  static Result<std::shared_ptr<Core>> open(int index_fd, int data_fd, uint32_t slot, CoreOptions options);

  /// A new entry in state kCreating with memory that can be written; kExists, kFull, kUnavailable.
  Result<Extent> create(const ObjectId& id, uint64_t bytes);
  Result<void> seal(uint32_t entry, StateWord creating);
  void abandon(uint32_t entry, StateWord creating);

  std::optional<Found> find(const std::array<uint64_t, 4>& id) const;
  /// Finds and pins a sealed object. Each success needs one `unpin`.
  std::optional<Extent> find_and_pin(const ObjectId& id);
  void unpin(uint32_t entry);
  /// Marks it erased, and frees it unless it is pinned or still being made. False: no such object.
  bool erase(const ObjectId& id);
  /// Frees an erased entry if nothing pins it and its state is the given one. False: lock not to be had.
  bool free_if_unpinned(uint32_t entry, StateWord state);

  /// Where this process may write the extent, until `windows().close()`.
  Result<uint8_t*> open_for_writing(const Extent& extent);
  WriteWindows& windows() { return *windows_; }

  enum class Done : uint8_t { kYes, kLocked, kDamaged };
  /// Runs `body(Transaction&)` under the lock and commits. kLocked: the lock was not to be had. kDamaged:
  /// the body met nonsense; nothing has changed, and it has been counted.
  template <class Body>
  Done transact(Body&& body) {
    Critical critical(*this);
    if (!critical.held()) return Done::kLocked;
    Transaction tx(region_, slot_);
    body(tx);
    if (tx.commit()) return Done::kYes;
    region_.note_corruption();
    return Done::kDamaged;
  }
  /// Takes the memory of a sealed object that `pin` holds and that is on disk by now; drops that pin.
  /// False: it was erased, or is being read, and stays as it is.
  bool evict(uint32_t entry, StateWord sealed);
  /// Memory for a spilled object; ends with `end_restore`, which if not `good` makes it spilled again.
  /// False there: that could not be done; the object is still being restored.
  Result<Extent> begin_restore(const ObjectId& id);
  bool end_restore(const Extent& extent, bool good);

  /// The part of freeing that runs in a transaction.
  void free_entry(Transaction& tx, uint32_t entry);
  Result<Extent> extent_of(uint32_t entry, StateWord state) const;
  bool pinned(uint32_t entry) const;
  bool pinned_by_others(uint32_t entry) const;
  void pin(uint32_t entry);

  const Region& region() const { return region_; }
  FreeSpace& free_space() { return free_space_; }
  const Residency& residency() const { return residency_; }
  uint32_t slot() const { return slot_; }
  const uint8_t* data() const { return data_.base(); }
  int data_fd() const { return data_fd_.get(); }
  bool in_forked_child() const { return !guard_.in_parent(); }

  /// Around a fork, by its thread: all that is pinned gets a pin more, until the child has ended.
  void before_fork();
  void after_fork_in_parent() { mark_.reset(); }
  /// Drops what was pinned for children that have ended. Costs a load if there are none.
  void look_at_children();

  /// Holds the lock for its life, if it got it.
  class Critical {
   public:
    explicit Critical(Core& core);
    ~Critical();
    Critical(const Critical&) = delete;
    Critical& operator=(const Critical&) = delete;
    bool held() const { return held_; }

   private:
    std::unique_lock<std::mutex> local_;
    SharedLock lock_;
    bool held_;
  };

 private:
  Core(Geometry geometry, Mapping index, Mapping data, UniqueFd data_fd,
       std::unique_ptr<WriteWindows> windows, Mapping pins, ForkGuard guard, uint32_t slot,
       CoreOptions options);
  enum class Outcome : uint8_t { kDone, kNoMemory, kNoEntry, kBucketFull, kNonsense };
  Outcome try_create(Transaction& tx, const std::array<uint64_t, 4>& id, uint64_t bytes, Extent* made);
  template <class Attempt>
  Result<void> place(const ObjectId& id, uint64_t bytes, Attempt&& attempt);
  void free_extent(Transaction& tx, uint32_t granule);
  /// Changes the state, keeping the mark of an erasure that came in between.
  bool replace_state(uint32_t entry, StateWord* state, EntryState to, uint32_t generations);
  std::optional<uint32_t> take_entry(Transaction& tx);
  Error lock_error() const;
  Error full_error(uint64_t bytes) const;
  void touch(uint32_t entry);
  bool matches(const Entry& entry, const std::array<uint64_t, 4>& id) const;
  uint32_t& local_pins(uint32_t entry) { return reinterpret_cast<uint32_t*>(pins_.base())[entry]; }
  std::mutex& stripe(uint32_t entry) { return stripes_[entry % stripes_.size()]; }
  bool drop_pin_bit(uint32_t entry);
  /// False: this process still pins it.
  bool release_pin(uint32_t entry);
  std::vector<uint32_t> pin_again_what_is_pinned();

  Mapping index_, data_;
  UniqueFd data_fd_;
  Region region_;
  FreeSpace free_space_;
  Residency residency_;
  std::unique_ptr<WriteWindows> windows_;
  Mapping pins_;  // how often this process pins each entry; the index holds one bit for all of them
  ForkGuard guard_;
  const uint32_t slot_;
  const CoreOptions options_;
  std::mutex transaction_mutex_;        // one undo log for each process, so one transaction at a time
  std::array<std::mutex, 64> stripes_;  // each guards the pin counts of the entries that fall to it
  std::mutex children_mutex_;
  // What the children that hold each mark may read, ascending; children that were forked while the same was
  // pinned share a mark.
  std::array<std::vector<uint32_t>, ForkGuard::kMarks> children_;
  std::vector<uint32_t> kept_for_good_;  // of children that could be given no mark
  std::atomic<bool> has_children_{false};
  std::optional<Mapping> mark_;  // during a fork, and for good in the child
};

}  // namespace skate::store
