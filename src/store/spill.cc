#include "store/spill.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace skate::store {
namespace {

constexpr size_t kIoBytes = 8 << 20;  // one call's worth, so that a stop is never far

Result<void> write_all(int fd, const uint8_t* data, uint64_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd, data, std::min<uint64_t>(bytes, kIoBytes), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const bool full = n < 0 && (errno == ENOSPC || errno == EDQUOT);
      Error error = errno_error("writing spilled objects");
      if (full) error.code = ErrorCode::kFull;
      return error;
    }
    data += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return {};
}

Result<void> read_all(int fd, uint8_t* data, uint64_t bytes, uint64_t offset) {
  while (bytes > 0) {
    const ssize_t n = ::pread(fd, data, std::min<uint64_t>(bytes, kIoBytes), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("reading a spilled object");
    if (n == 0) return Error{ErrorCode::kCorrupt, "a spill file is shorter than what was written to it"};
    data += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return {};
}

}  // namespace

uint64_t spill_checksum(std::span<const uint8_t> bytes) {
  std::array<uint64_t, 4> lanes{1, 2, 3, 4};
  const uint8_t* at = bytes.data();
  size_t left = bytes.size();
  auto mix = [](uint64_t lane, uint64_t word) {
    lane = (lane ^ word) * 0x9E3779B97F4A7C15ull;
    return lane ^ (lane >> 29);
  };
  for (; left >= 32; left -= 32, at += 32) {
    for (size_t i = 0; i < 4; ++i) {
      uint64_t word = 0;
      std::memcpy(&word, at + i * 8, 8);
      lanes[i] = mix(lanes[i], word);
    }
  }
  std::array<uint64_t, 4> tail{};
  if (left > 0) std::memcpy(tail.data(), at, left);
  uint64_t sum = bytes.size();
  for (size_t i = 0; i < 4; ++i) sum = mix(mix(sum, lanes[i]), tail[i]);
  return sum;
}

Result<std::unique_ptr<Spill>> Spill::open(SpillOptions options) {
  std::unique_ptr<Spill> spill(new Spill(std::move(options)));
  // Tried once now, so that a wrong directory is found when the node starts and not when it is full.
  SKATE_TRY_ASSIGN(const UniqueFd probe, spill->open_file());
  return spill;
}

Result<UniqueFd> Spill::open_file() const {
  UniqueFd fd(::open(options_.directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd) return fd;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
    return errno_error("making a spill file in " + options_.directory);
  std::string path = options_.directory + "/spill-XXXXXX";
  fd.reset(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd) return errno_error("making a spill file in " + options_.directory);
  ::unlink(path.c_str());
  return fd;
}

Result<void> Spill::check_room(uint64_t bytes) const {
  struct statvfs disk {};
  if (::statvfs(options_.directory.c_str(), &disk) != 0)
    return errno_error("asking for room in " + options_.directory);
  const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize;
  if (free >= options_.disk_bytes_min_free && free - options_.disk_bytes_min_free >= bytes) return {};
  return Error{ErrorCode::kFull, "no room to spill " + std::to_string(bytes) + " bytes: the disk of " +
                                     options_.directory + " has " + std::to_string(free) +
                                     " bytes free, of which " + std::to_string(options_.disk_bytes_min_free) +
                                     " are kept free; free objects, or give a larger spill directory"};
}

Result<void> Spill::write(std::span<const SpillItem> items) {
  uint64_t bytes = 0;
  for (const SpillItem& item : items) bytes += item.bytes;
  SKATE_TRY(check_room(bytes));

  std::vector<Written> written;
  Result<void> outcome;
  for (const SpillItem& item : items) {
    Written piece;
    {
      std::lock_guard lock(mutex_);
      if (plan_.find(item.id)) {
        outcome = Error{ErrorCode::kExists, "object " + item.id.hex() + " is spilled already"};
        break;
      }
      const auto reservation = plan_.reserve(item.bytes);
      piece.place = reservation.place;
      if (reservation.new_file) {
        auto fd = open_file();
        if (!fd) {
          release(plan_.cancel(piece.place));
          outcome = fd.error();
          break;
        }
        files_[piece.place.file] = std::make_shared<UniqueFd>(std::move(*fd));
      }
      piece.file = files_.at(piece.place.file);
    }
    written.push_back(piece);
    outcome = write_all(piece.file->get(), item.data, item.bytes, piece.place.offset);
    if (!outcome) break;
    written.back().checksum = spill_checksum({item.data, item.bytes});
  }

  std::lock_guard lock(mutex_);
  if (outcome.ok()) {
    for (size_t i = 0; i < items.size() && outcome.ok(); ++i)
      for (size_t k = 0; k < i; ++k)
        if (items[i].id == items[k].id)
          outcome = Error{ErrorCode::kExists, "object " + items[i].id.hex() + " is given twice"};
  }
  if (!outcome) {
    for (const Written& piece : written) release(plan_.cancel(piece.place));
    if (outcome.error().code == ErrorCode::kFull)
      return Error{ErrorCode::kFull, "no room to spill " + std::to_string(bytes) + " bytes in " +
                                         options_.directory + ": " + outcome.error().message};
    return outcome;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    plan_.record(items[i].id, written[i].place);
    checksums_[items[i].id] = written[i].checksum;
  }
  written_bytes_ += bytes;
  return {};
}

Result<void> Spill::read(const ObjectId& id, std::span<uint8_t> into) const {
  SpillPlace place;
  std::shared_ptr<UniqueFd> file;
  uint64_t checksum = 0;
  {
    std::lock_guard lock(mutex_);
    const auto found = plan_.find(id);
    if (!found) return Error{ErrorCode::kNotFound, "object " + id.hex() + " is not spilled"};
    place = *found;
    file = files_.at(place.file);
    checksum = checksums_.at(id);
  }
  if (into.size() != place.bytes)
    return Error{ErrorCode::kInvalid, "object " + id.hex() + " has " + std::to_string(place.bytes) +
                                          " bytes on disk, not " + std::to_string(into.size())};
  SKATE_TRY(read_all(file->get(), into.data(), place.bytes, place.offset));
  if (spill_checksum(into) != checksum)
    return Error{ErrorCode::kCorrupt,
                 "object " + id.hex() + " came back from disk in " + options_.directory + " damaged"};
  std::lock_guard lock(mutex_);
  read_bytes_ += place.bytes;
  return {};
}

/// Holds the mutex. A hole that the file system cannot punch is given back with the whole file.
void Spill::release(const SpillPlan::Garbage& garbage) {
  auto it = files_.find(garbage.hole.file);
  if (it == files_.end()) return;
  if (garbage.close_file) {
    files_.erase(it);
  } else if (garbage.hole.bytes > 0) {
    (void)::fallocate(it->second->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(garbage.hole.offset), static_cast<off_t>(garbage.hole.bytes));
  }
}

bool Spill::forget(const ObjectId& id) {
  std::lock_guard lock(mutex_);
  const auto garbage = plan_.forget(id);
  if (!garbage) return false;
  checksums_.erase(id);
  release(*garbage);
  return true;
}

size_t Spill::sweep(const std::function<bool(const ObjectId&)>& gone, size_t most) {
  size_t forgotten = 0;
  for (size_t looked = 0; looked < most; ++looked) {
    ObjectId id;
    {
      std::lock_guard lock(mutex_);
      if (sweep_list_.empty()) {
        if (looked > 0) break;  // a round is over
        for (const auto& [each, place] : plan_.places()) sweep_list_.push_back(each);
        if (sweep_list_.empty()) break;
      }
      id = sweep_list_.back();
      sweep_list_.pop_back();
      if (!plan_.find(id)) continue;
    }
    if (gone(id) && forget(id)) ++forgotten;
  }
  return forgotten;
}

std::optional<uint64_t> Spill::size_of(const ObjectId& id) const {
  std::lock_guard lock(mutex_);
  const auto place = plan_.find(id);
  if (!place) return std::nullopt;
  return place->bytes;
}

SpillStats Spill::stats() const {
  std::lock_guard lock(mutex_);
  return {plan_.objects(), plan_.live_bytes(), plan_.files(), written_bytes_, read_bytes_};
}

}  // namespace skate::store
