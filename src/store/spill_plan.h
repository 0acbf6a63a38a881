// Which spilled bytes go where: a pure account of files and the objects in them. No I/O, no clock.
//
// Objects are appended to the open file until it holds `file_bytes_max`; then a new one begins. A file
// whose objects are all gone is closed; what is gone from one that still holds others is a hole to punch.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"

namespace skate::store {

struct SpillPlace {
  uint32_t file = 0;
  uint64_t offset = 0, bytes = 0;
  friend bool operator==(const SpillPlace&, const SpillPlace&) = default;
};

struct SpillPlanOptions {
  uint64_t file_bytes_max = 1ull << 30;
};

class SpillPlan {
 public:
  explicit SpillPlan(SpillPlanOptions options = {}) : options_(options) {}

  /// A place for an object, not yet recorded under its id. `new_file`: its file is to be made first.
  struct Reservation {
    SpillPlace place;
    bool new_file = false;
  };
  Reservation reserve(uint64_t bytes);
  void record(const ObjectId& id, const SpillPlace& place);
  /// The place will not be used after all; says what to release, as `forget` does.
  struct Garbage {
    SpillPlace hole;
    bool close_file = false;
  };
  Garbage cancel(const SpillPlace& place);
  std::optional<Garbage> forget(const ObjectId& id);

  std::optional<SpillPlace> find(const ObjectId& id) const;
  size_t files() const { return files_.size(); }
  size_t objects() const { return places_.size(); }
  uint64_t live_bytes() const { return live_bytes_; }
  const std::unordered_map<ObjectId, SpillPlace>& places() const { return places_; }

 private:
  struct File {
    uint64_t end = 0;  // where the next object goes
    uint64_t live_bytes = 0;
    uint64_t pieces = 0;  // reservations and objects in it
  };
  static uint64_t rounded(uint64_t bytes);
  Garbage drop(const SpillPlace& place);

  SpillPlanOptions options_;
  std::unordered_map<ObjectId, SpillPlace> places_;
  std::unordered_map<uint32_t, File> files_;
  std::optional<uint32_t> open_file_;
  uint32_t next_file_ = 1;
  uint64_t live_bytes_ = 0;
};

}  // namespace skate::store
