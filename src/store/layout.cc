#include "store/layout.h"

#include <time.h>

#include <bit>
#include <cstring>

namespace skate::store {
namespace {

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr uint64_t kPage = 4096;
constexpr uint64_t kGranulesMax = uint64_t{1} << 24;
constexpr uint64_t kCapacityMax = uint64_t{1} << 40;
constexpr uint64_t kObjectsMax = uint64_t{1} << 24;
constexpr uint64_t kClientsMax = 16384;

}  // namespace

Result<Geometry> Geometry::plan(uint64_t capacity_bytes, uint64_t objects_max, uint64_t clients_max) {
  if (capacity_bytes < kChunkBytes || capacity_bytes > kCapacityMax || capacity_bytes % kChunkBytes != 0)
    return Error{ErrorCode::kInvalid,
                 "object store capacity must be a multiple of 64 KiB between 64 KiB "
                 "and 1 TiB, not " +
                     std::to_string(capacity_bytes) + " bytes"};
  if (objects_max < 1 || objects_max > kObjectsMax)
    return Error{ErrorCode::kInvalid, "objects_max must be between 1 and 16777216"};
  if (clients_max < 2 || clients_max > kClientsMax)
    return Error{ErrorCode::kInvalid, "clients_max must be between 2 and 16384"};

  Geometry g;
  g.capacity_bytes = capacity_bytes;
  while ((capacity_bytes >> g.granule_shift) > kGranulesMax) ++g.granule_shift;
  g.granules = static_cast<uint32_t>(capacity_bytes >> g.granule_shift);
  g.chunk_granules = static_cast<uint32_t>(kChunkBytes >> g.granule_shift);
  g.chunks = static_cast<uint32_t>(capacity_bytes / kChunkBytes);
  g.objects_max = static_cast<uint32_t>(objects_max);
  g.clients_max = static_cast<uint32_t>(clients_max);
  g.pin_words = static_cast<uint32_t>((clients_max + 63) / 64);
  g.touch_words = static_cast<uint32_t>(round_up(objects_max, uint64_t{kEntriesPerTouchBit} * 64) /
                                        (uint64_t{kEntriesPerTouchBit} * 64));
  g.pools = 1 + 2 * g.clients_max;
  // Half full at most: with two buckets of eight to choose from, none overflows in practice.
  g.buckets = static_cast<uint32_t>(std::bit_ceil(round_up(objects_max * 2, kBucketWidth) / kBucketWidth));

  g.client_stride = round_up(sizeof(ClientArea) + uint64_t{g.touch_words} * 8, kPage);
  const uint64_t bitmap_bytes = round_up(uint64_t{g.chunks} / 8 + 8, kPage);
  uint64_t at = kPage;
  auto place = [&at](uint64_t bytes) {
    const uint64_t here = at;
    at += round_up(bytes, kPage);
    return here;
  };
  g.buckets_at = place(uint64_t{g.buckets} * kBucketWidth * 8);
  g.entries_at = place(objects_max * sizeof(Entry));
  g.pins_at = place(objects_max * g.pin_words * 8);
  g.clients_at = place(clients_max * g.client_stride);
  g.pools_at = place(uint64_t{g.pools} * sizeof(Pool));
  g.resident_at = place(bitmap_bytes);
  g.recent_at = place(bitmap_bytes);
  g.blocks_at = place(uint64_t{g.granules} * sizeof(Block));
  g.index_bytes = at;
  return g;
}

bool Region::is_transactional(uint64_t offset) const {
  if (offset % 8 != 0 || offset + 8 > geo_.index_bytes) return false;
  const bool in_super =
      offset >= offsetof(Superblock, free_entry) && offset < offsetof(Superblock, large_fresh);
  const bool in_index = offset >= geo_.buckets_at && offset < geo_.pins_at;
  const bool in_pools = offset >= geo_.pools_at && offset < geo_.resident_at;
  const bool in_blocks = offset >= geo_.blocks_at;
  return in_super || in_index || in_pools || in_blocks;
}

std::array<uint64_t, 4> id_words(const ObjectId& id) {
  std::array<uint64_t, 4> words{};
  std::memcpy(words.data(), id.data(), ObjectId::kSize);
  return words;
}

ObjectId id_from_words(const std::array<uint64_t, 4>& words) {
  return ObjectId(ObjectId::from_bytes(words.data()));
}

HashPlace hash_place(const std::array<uint64_t, 4>& words, uint32_t buckets) {
  uint64_t h = 0x9E3779B97F4A7C15ull;
  for (uint64_t word : words) {
    h = (h ^ word) * 0xD6E8FEB86659FD93ull;
    h ^= h >> 32;
  }
  uint64_t h2 = (h ^ 0xA0761D6478BD642Full) * 0xE7037ED1A0B428DBull;
  h2 ^= h2 >> 29;
  const uint32_t mask = buckets - 1;
  return {static_cast<uint32_t>(h) & mask, static_cast<uint32_t>(h2) & mask, static_cast<uint32_t>(h2 >> 32)};
}

uint64_t coarse_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

uint32_t coarse_seconds() { return static_cast<uint32_t>(coarse_ms() / 1000); }

}  // namespace skate::store
