#include "store/spill_plan.h"

#include "base/assert.h"

namespace skate::store {

// Whole file-system blocks, so that holes give back everything.
uint64_t SpillPlan::rounded(uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

SpillPlan::Reservation SpillPlan::reserve(uint64_t bytes) {
  Reservation reservation;
  if (!open_file_) {
    open_file_ = next_file_++;
    files_.emplace(*open_file_, File{});
    reservation.new_file = true;
  }
  const uint32_t number = *open_file_;
  File& file = files_.at(number);
  reservation.place = SpillPlace{number, file.end, bytes};
  file.end += rounded(bytes);
  file.live_bytes += bytes;
  ++file.pieces;
  live_bytes_ += bytes;
  if (file.end >= options_.file_bytes_max) open_file_.reset();
  return reservation;
}

void SpillPlan::record(const ObjectId& id, const SpillPlace& place) {
  const bool is_new = places_.emplace(id, place).second;
  SKATE_ASSERT(is_new, "an object was spilled twice");
}

SpillPlan::Garbage SpillPlan::drop(const SpillPlace& place) {
  auto it = files_.find(place.file);
  SKATE_ASSERT(it != files_.end(), "a place in a file that is not there");
  File& file = it->second;
  file.live_bytes -= place.bytes;
  live_bytes_ -= place.bytes;
  Garbage garbage{SpillPlace{place.file, place.offset, rounded(place.bytes)}, false};
  if (--file.pieces == 0) {
    garbage.close_file = true;
    files_.erase(it);
    if (open_file_ == place.file) open_file_.reset();
  }
  return garbage;
}

SpillPlan::Garbage SpillPlan::cancel(const SpillPlace& place) { return drop(place); }

std::optional<SpillPlan::Garbage> SpillPlan::forget(const ObjectId& id) {
  auto it = places_.find(id);
  if (it == places_.end()) return std::nullopt;
  const SpillPlace place = it->second;
  places_.erase(it);
  return drop(place);
}

std::optional<SpillPlace> SpillPlan::find(const ObjectId& id) const {
  auto it = places_.find(id);
  if (it == places_.end()) return std::nullopt;
  return it->second;
}

}  // namespace skate::store
