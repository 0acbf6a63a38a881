#include "store/client/write_windows.h"

#include <sys/mman.h>

#include <algorithm>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace skate::store {
namespace {
constexpr size_t kWindowsMax = 128;
constexpr uint64_t kPopulateFromBytes = 256 * 1024;
}  // namespace

Result<std::unique_ptr<WriteWindows>> WriteWindows::create(int data_fd, uint64_t capacity_bytes) {
  SKATE_TRY_ASSIGN(Mapping mapping,
                   Mapping::map(data_fd, capacity_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE));
  mapping.advise(MADV_DONTFORK);
  return std::unique_ptr<WriteWindows>(new WriteWindows(std::move(mapping)));
}

bool WriteWindows::covers(uint64_t begin, uint64_t end) const {
  auto it = windows_.upper_bound(begin);
  if (it == windows_.begin()) return false;
  --it;
  return it->second >= end;
}

void WriteWindows::remember(uint64_t begin, uint64_t end) {
  auto it = windows_.upper_bound(begin);
  if (it != windows_.begin() && std::prev(it)->second >= begin) --it;
  while (it != windows_.end() && it->first <= end) {
    begin = std::min(begin, it->first);
    end = std::max(end, it->second);
    it = windows_.erase(it);
  }
  windows_.emplace(begin, end);
}

Result<uint8_t*> WriteWindows::open(uint64_t offset, uint64_t bytes, bool fresh) {
  const uint64_t begin = offset / kChunkBytes * kChunkBytes;
  const uint64_t end = (offset + bytes + kChunkBytes - 1) / kChunkBytes * kChunkBytes;
  std::lock_guard lock(mutex_);
  if (!covers(begin, end)) {
    if (windows_.size() >= kWindowsMax && open_ == 0) {
      if (::mprotect(mapping_.base(), mapping_.bytes(), PROT_NONE) == 0) {
        windows_.clear();
        mapping_.advise(MADV_DONTNEED);
      }
    }
    if (::mprotect(mapping_.base() + begin, end - begin, PROT_READ | PROT_WRITE) != 0)
      return errno_error("opening " + std::to_string(bytes) + " bytes of the object store for writing");
    remember(begin, end);
    fresh = true;
  }
  // Page tables of a large extent are filled in one go: a trap for each page costs as much as the copy.
  // An old kernel refuses, and traps.
  if (fresh && bytes >= kPopulateFromBytes)
    (void)::madvise(mapping_.base() + begin, end - begin, MADV_POPULATE_WRITE);
  ++open_;
  return mapping_.base() + offset;
}

void WriteWindows::close() {
  std::lock_guard lock(mutex_);
  --open_;
}

size_t WriteWindows::windows() const {
  std::lock_guard lock(mutex_);
  return windows_.size();
}

}  // namespace skate::store
