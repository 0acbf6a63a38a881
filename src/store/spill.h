// Spill: objects on disk. Several to a file; files have no name (O_TMPFILE, or unlinked when opened), so
// a killed daemon leaves nothing behind. Contents carry a checksum, since a disk is input.
//
// Thread-safe: `write` and `read` block and are meant for a pool thread, the rest is quick. Two calls for
// the same id must not overlap. Does not choose what to spill and does not touch the arena.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "store/spill_plan.h"

namespace skate::store {

struct SpillOptions {
  std::string directory;                       ///< of the session; must exist
  uint64_t file_bytes_max = 1ull << 30;        ///< a file takes objects until it holds this much
  uint64_t disk_bytes_min_free = 64ull << 20;  ///< never fill the disk further than this
};

struct SpillItem {
  ObjectId id;
  const uint8_t* data = nullptr;
  uint64_t bytes = 0;
};

struct SpillStats {
  uint64_t objects = 0, bytes = 0, files = 0;
  uint64_t written_bytes_total = 0, read_bytes_total = 0;
};

class Spill {
 public:
  static Result<std::unique_ptr<Spill>> open(SpillOptions options);

  /// All of them or none. kFull: message with sizes. kExists: one is there already.
  Result<void> write(std::span<const SpillItem> items);
  /// `into` must have the object's size. kNotFound, kCorrupt, kIo.
  Result<void> read(const ObjectId& id, std::span<uint8_t> into) const;
  /// The object is gone or in memory again; its space on disk is given back. False: it was not here.
  bool forget(const ObjectId& id);
  /// Forgets up to `most` objects that `gone` says no longer exist, beginning where it last ended. How many.
  size_t sweep(const std::function<bool(const ObjectId&)>& gone, size_t most);

  std::optional<uint64_t> size_of(const ObjectId& id) const;
  SpillStats stats() const;

 private:
  explicit Spill(SpillOptions options)
      : options_(std::move(options)), plan_(SpillPlanOptions{options_.file_bytes_max}) {}
  Result<UniqueFd> open_file() const;
  Result<void> check_room(uint64_t bytes) const;
  void release(const SpillPlan::Garbage& garbage);

  struct Written {
    SpillPlace place;
    std::shared_ptr<UniqueFd> file;  // shared by the table and the writes and reads under way
    uint64_t checksum = 0;
  };
  const SpillOptions options_;
  mutable std::mutex mutex_;  // guards all below; not held while objects are written or read
  SpillPlan plan_;
  std::unordered_map<uint32_t, std::shared_ptr<UniqueFd>> files_;
  std::unordered_map<ObjectId, uint64_t> checksums_;
  std::vector<ObjectId> sweep_list_;
  uint64_t written_bytes_ = 0;
  mutable uint64_t read_bytes_ = 0;
};

/// Detects damage, not malice: four independent multiplicative lanes.
uint64_t spill_checksum(std::span<const uint8_t> bytes);

}  // namespace skate::store
