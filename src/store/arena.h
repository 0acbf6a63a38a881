// Arena: the node daemon's end of the object store. Makes the two memfds, hands out client slots,
// repairs what dead clients left, keeps free memory warm or gives it back, and moves objects to disk
// and back in memory's name (the disk itself is Spill's).
//
// Owned and used by one thread of the node daemon. No call blocks longer than `lock_timeout_ms`, a few
// milliseconds of system calls apart. Does not watch processes: the daemon says who died.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "store/client/client.h"

namespace skate::store {

class Core;

struct ArenaOptions {
  uint64_t capacity_bytes = 0;  ///< rounded down to 64 KiB; 0: default_capacity_bytes()
  uint64_t objects_max = 1 << 20;
  uint32_t clients_max = 1024;  ///< processes attached at a time, the daemon included
  uint64_t prefault_ahead_bytes = 256ull << 20;
  uint64_t release_idle_ms = 60'000;  ///< memory unused for one to two of these goes back to the system
  uint64_t lease_idle_ms = 10'000;    ///< after this a client's free memory is everyone's
  uint64_t lock_timeout_ms = 50;
};

struct ArenaStats {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;      ///< memory of objects, rounding included
  uint64_t resident_bytes = 0;  ///< memory that the store holds from the system
  uint64_t objects = 0;         ///< in memory and spilled
  uint64_t spilled_objects = 0;
  uint64_t spilled_bytes = 0;
  uint64_t largest_free_bytes = 0;
  uint64_t creates_total = 0;
  uint64_t evictions_total = 0;
  uint64_t corruptions_total = 0;
  uint32_t clients = 0;
};

struct StoredObject {
  ObjectId id;
  ObjectInfo info;
};

/// An object picked to go to disk. Pinned by the arena until `commit_spill` or `abandon_spill`.
struct SpillVictim {
  ObjectId id;
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
  uint32_t entry = 0;
  uint64_t state_bits = 0;
};

/// A spilled object that is being read back. Ends with `finish_restore`.
struct RestoreTarget {
  ObjectId id;
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  uint32_t entry = 0;
  uint64_t state_bits = 0;
  uint64_t offset = 0;
};

struct VerifyReport {
  uint64_t blocks = 0, free_blocks = 0, objects = 0, pinned_objects = 0, doomed_objects = 0;
};

class Arena {
 public:
  static Result<std::unique_ptr<Arena>> create(ArenaOptions options);
  /// Takes over an index and data file as they are, for tests of recovery on copies.
  static Result<std::unique_ptr<Arena>> adopt(UniqueFd index_fd, UniqueFd data_fd, ArenaOptions options);
  ~Arena();

  int index_fd() const { return index_fd_.get(); }
  int data_fd() const { return data_fd_.get(); }
  ArenaStats stats() const;

  /// A slot for one process, to be opened there with Client::open. kFull: clients_max are attached.
  Result<uint32_t> attach_client(pid_t pid);
  /// The process of this slot is dead: undoes what it was in the middle of, frees what it had not sealed,
  /// drops its pins (once its forked children are gone as well) and takes back its free memory. Sealed
  /// objects stay. kUnavailable: another dead or stopped client holds the lock; call again. Idempotent.
  Result<void> recover_client(uint32_t slot);

  /// Bounded maintenance; returns in how many milliseconds it wants to be called next.
  uint64_t step(uint64_t now_ms);
  /// Under memory pressure free memory goes back to the system at once, and none is fetched ahead.
  void set_memory_pressure(bool pressure) { pressure_ = pressure; }

  /// Sealed, unpinned, least recently used of a bounded sample, pinned by this call; until `bytes` are
  /// reached or nothing more is found.
  std::vector<SpillVictim> pick_spill_victims(uint64_t bytes);
  /// The victim is on disk: take its memory. False: it was erased or is in use, the copy is not needed.
  bool commit_spill(const SpillVictim& victim);
  void abandon_spill(const SpillVictim& victim);
  /// kNotFound: erased. kExists: not spilled (any more). kFull: spill others first.
  Result<RestoreTarget> begin_restore(const ObjectId& id);
  /// `good`: the bytes are there, the object is readable. Otherwise it is spilled as before.
  void finish_restore(const RestoreTarget& target, bool good);
  /// Grows whenever a spilled object is erased: time to look for garbage on disk.
  uint64_t spilled_erased() const;

  ObjectInfo info(const ObjectId& id) const;
  bool erase(const ObjectId& id);
  /// Objects from entry `*cursor` on, looking at no more than `entries_max`; `*cursor` becomes 0 at the end.
  std::vector<StoredObject> list(uint32_t* cursor, uint32_t entries_max = 4096) const;

  /// Checks everything that must hold between transactions; the error says what does not. `quiescent`:
  /// nobody uses the store now, so that nothing may be half-way. For tests and for a suspicious operator.
  Result<VerifyReport> verify(bool quiescent) const;

 private:
  Arena(ArenaOptions options, UniqueFd index_fd, UniqueFd data_fd, std::shared_ptr<Core> core);
  static Result<std::unique_ptr<Arena>> open(UniqueFd index_fd, UniqueFd data_fd, ArenaOptions options);
  Result<void> release_entries(uint32_t slot, bool keep_pins);
  bool return_leases(uint32_t slot);
  /// Free central memory that the daemon has taken out of circulation while the system works on it.
  struct HeldRange {
    uint32_t granule, first_chunk, chunks;
  };
  enum class Visit : uint8_t { kNext, kStop };
  enum class Pass : uint8_t { kNone, kLeases, kRelease };
  bool sweep_step();
  bool walk_step(uint64_t now_ms);
  Visit visit_lease(uint32_t granule, uint64_t now_ms);
  Visit visit_release(uint32_t granule);
  bool prefault_step(uint64_t now_ms);
  bool prefault_held();
  bool hold(uint32_t block, uint32_t first_chunk, uint32_t chunks);
  bool give_back_held();

  ArenaOptions options_;
  UniqueFd index_fd_, data_fd_;
  std::shared_ptr<Core> core_;       // nobody else's: shared_ptr is what Core::open gives
  uint32_t slots_high_ = 0;          // slots beyond were never used: looking at them would cost memory
  std::vector<uint32_t> lingering_;  // slots of the dead whose forked children live

  bool pressure_ = false;
  uint32_t spill_cursor_ = 0;
  uint32_t sweep_cursor_ = 0;
  bool sweeping_ = false;
  uint64_t sweeps_seen_ = 0;
  uint32_t walk_granule_ = 0;
  uint32_t walk_restarts_ = 0;
  Pass pass_ = Pass::kNone;
  uint64_t leases_due_ms_ = 0, release_due_ms_ = 0, lingering_due_ms_ = 0;
  uint64_t fresh_seen_ = 0, fresh_at_ms_ = 0;
  std::optional<HeldRange> held_;
};

}  // namespace skate::store
