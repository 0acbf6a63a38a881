#include "store/residency.h"

#include <fcntl.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace skate::store {
namespace {

constexpr uint32_t kReleaseStepChunks = 256;

uint64_t mask_of(uint32_t first, uint32_t count) {  // bits of one word
  return (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << first;
}

template <class Fn>
void each_word(uint32_t first, uint32_t count, Fn&& fn) {
  while (count > 0) {
    const uint32_t here = std::min(count, 64 - first % 64);
    fn(first / 64, mask_of(first % 64, here));
    first += here;
    count -= here;
  }
}

}  // namespace

Result<bool> Residency::reserve(uint64_t offset, uint64_t bytes) const {
  const uint32_t first = static_cast<uint32_t>(offset / kChunkBytes);
  const uint32_t last = static_cast<uint32_t>((offset + (bytes > 0 ? bytes - 1 : 0)) / kChunkBytes);
  mark_recent(first, last - first + 1);
  bool fresh = false;
  for (uint32_t chunk = first; chunk <= last;) {
    if (resident(chunk)) {
      ++chunk;
      continue;
    }
    uint32_t end = chunk + 1;
    while (end <= last && !resident(end) && end - chunk < kReleaseStepChunks) ++end;
    const uint64_t at = chunk * kChunkBytes, size = (end - chunk) * kChunkBytes;
    while (::fallocate(data_fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at), static_cast<off_t>(size)) !=
           0) {
      if (errno == EINTR) continue;
      const Error cause =
          errno_error("the system has no memory for " + std::to_string(bytes) + " bytes of the object store");
      return Error{ErrorCode::kFull, cause.message};
    }
    mark_resident(chunk, end - chunk);
    fresh = true;
    chunk = end;
  }
  return fresh;
}

Result<void> Residency::release(uint32_t first_chunk, uint32_t chunks) const {
  each_word(first_chunk, chunks, [this](uint32_t word, uint64_t mask) {
    region_.resident(word).fetch_and(~mask, std::memory_order_release);
  });
  if (::fallocate(data_fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(first_chunk * kChunkBytes),
                  static_cast<off_t>(chunks * kChunkBytes)) != 0)
    return errno_error("releasing memory of the object store");
  return {};
}

void Residency::mark_resident(uint32_t first_chunk, uint32_t chunks) const {
  each_word(first_chunk, chunks, [this](uint32_t word, uint64_t mask) {
    region_.resident(word).fetch_or(mask, std::memory_order_release);
  });
}

void Residency::mark_recent(uint32_t first_chunk, uint32_t chunks) const {
  chunks = std::min(chunks, region_.geo().chunks - first_chunk);
  each_word(first_chunk, chunks, [this](uint32_t word, uint64_t mask) {
    Word& recent = region_.recent(word);
    if ((recent.load(std::memory_order_relaxed) & mask) != mask)
      recent.fetch_or(mask, std::memory_order_relaxed);
  });
}

void Residency::forget_recent() const {
  for (uint32_t word = 0; word <= (region_.geo().chunks - 1) / 64; ++word)
    if (region_.recent(word).load(std::memory_order_relaxed) != 0)
      region_.recent(word).store(0, std::memory_order_relaxed);
}

uint64_t Residency::resident_bytes() const {
  uint64_t count = 0;
  for (uint32_t word = 0; word <= (region_.geo().chunks - 1) / 64; ++word)
    count += static_cast<uint64_t>(std::popcount(region_.resident(word).load(std::memory_order_relaxed)));
  return count * kChunkBytes;
}

}  // namespace skate::store
