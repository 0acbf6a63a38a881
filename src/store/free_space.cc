#include "store/free_space.h"

#include <algorithm>
#include <bit>

namespace skate::store {
namespace {

constexpr uint32_t kFitTries = 8;        // blocks of the object's own bin that are looked at
constexpr uint32_t kSegmentChunks = 64;  // 4 MiB: what a client leases for small objects at a time
constexpr uint64_t kLow32 = 0xFFFFFFFF;

uint64_t pack_head(FreeSpace::Kind kind, uint32_t pool, uint32_t granules) {
  return static_cast<uint64_t>(kind) << 62 | uint64_t{pool} << 32 | granules;
}
uint64_t with_low(uint64_t word, uint32_t low) { return (word & ~kLow32) | low; }
uint64_t with_high(uint64_t word, uint32_t high) { return (word & kLow32) | uint64_t{high} << 32; }
uint32_t low(uint64_t word) { return static_cast<uint32_t>(word); }
uint32_t high(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
uint64_t read(const Word& word) { return word.load(std::memory_order_relaxed); }

}  // namespace

FreeSpace::Head FreeSpace::head_of(const Block& block) {
  const uint64_t word = block.head.load(std::memory_order_relaxed);
  return {static_cast<Kind>(word >> 62), static_cast<uint32_t>(word >> 32) & 0xFFFFFF, low(word)};
}

uint32_t FreeSpace::bin_of(uint32_t granules) {
  if (granules < 4) return granules;
  const uint32_t level = static_cast<uint32_t>(std::bit_width(granules)) - 1;
  return std::min(4 * (level - 1) + ((granules >> (level - 2)) & 3), kPoolBins - 1);
}

void FreeSpace::format(const Region& region) {
  const Geometry& geo = region.geo();
  Block& first = region.block(0);
  first.head.store(pack_head(Kind::kFree, Geometry::kCentralPool, geo.granules), std::memory_order_relaxed);
  const uint32_t bin = bin_of(geo.granules);
  Pool& central = region.pool(Geometry::kCentralPool);
  central.heads[bin].store(1, std::memory_order_relaxed);
  central.bitmap[bin / 64].store(uint64_t{1} << (bin % 64), std::memory_order_relaxed);
  region.super().central_free_granules.store(geo.granules, std::memory_order_relaxed);
}

uint32_t FreeSpace::granules_for(uint64_t bytes) const {
  const uint64_t unit = bytes >= kLargeBytes ? kChunkBytes : geo_.granule_bytes();
  const uint64_t rounded = (std::max<uint64_t>(bytes, 1) + unit - 1) / unit * unit;
  return static_cast<uint32_t>(rounded >> geo_.granule_shift);
}

uint64_t FreeSpace::block_bytes(uint32_t granule) const {
  return uint64_t{head_of(region_.block(granule)).granules} << geo_.granule_shift;
}

bool FreeSpace::valid(Transaction& tx, uint32_t granule, Head head) const {
  const bool ok =
      head.granules > 0 && uint64_t{granule} + head.granules <= geo_.granules && head.pool < geo_.pools;
  if (!ok) tx.fail();
  return ok;
}

std::optional<uint32_t> FreeSpace::allocate(Transaction& tx, uint32_t slot, uint64_t bytes, uint32_t entry) {
  if (bytes > geo_.capacity_bytes) return std::nullopt;
  const uint32_t granules = granules_for(bytes);
  if (bytes >= kLargeBytes) {
    const uint32_t pool = Geometry::large_pool(slot);
    auto block = find(tx, pool, granules);
    if (!block) block = find(tx, Geometry::kCentralPool, granules);
    if (!block) return std::nullopt;
    return take(tx, *block, granules, pool, entry);
  }
  const uint32_t pool = Geometry::small_pool(slot);
  auto block = find(tx, pool, granules);
  if (!block && lease_segment(tx, slot, granules)) block = find(tx, pool, granules);
  if (!block) return std::nullopt;
  return take(tx, *block, granules, pool, entry);
}

bool FreeSpace::lease_segment(Transaction& tx, uint32_t slot, uint32_t granules) {
  const uint32_t chunks_needed = (granules + geo_.chunk_granules - 1) / geo_.chunk_granules;
  // No client leases more than about a 64th of a small arena at a time.
  uint32_t chunks = std::max(chunks_needed, std::min(kSegmentChunks, geo_.chunks / 64));
  for (;; chunks = std::max(chunks_needed, chunks / 2)) {
    const uint32_t size = chunks * geo_.chunk_granules;
    if (auto block = find(tx, Geometry::kCentralPool, size)) {
      const uint32_t pool = Geometry::small_pool(slot);
      const uint32_t taken = take(tx, *block, size, pool, kNoEntry);
      if (tx.failed()) return false;
      insert_free(tx, taken, size, pool);
      return !tx.failed();
    }
    if (chunks == chunks_needed || tx.failed()) return false;
  }
}

std::optional<uint32_t> FreeSpace::find(Transaction& tx, uint32_t pool_index, uint32_t granules) {
  Pool& pool = region_.pool(pool_index);
  const uint32_t own = bin_of(granules);
  // The object's own bin first: a block that was freed by an object of this size fits exactly there.
  uint64_t at = read(pool.heads[own]);
  uint32_t best = kNoBlock, best_granules = UINT32_MAX;
  for (uint32_t i = 0; i < kFitTries && at != 0; ++i) {
    Block& block = tx.block(at - 1);
    const Head head = head_of(block);
    if (tx.failed() || head.kind != Kind::kFree || head.pool != pool_index ||
        !valid(tx, static_cast<uint32_t>(at - 1), head)) {
      tx.fail();
      return std::nullopt;
    }
    if (head.granules >= granules && head.granules < best_granules) {
      best = static_cast<uint32_t>(at - 1);
      best_granules = head.granules;
      if (best_granules == granules) break;
    }
    at = low(read(block.links));
  }
  if (best != kNoBlock) return best;
  for (uint32_t bin = own + 1; bin < kPoolBins;) {
    const uint64_t rest = read(pool.bitmap[bin / 64]) >> (bin % 64);
    if (rest == 0) {
      bin = (bin / 64 + 1) * 64;
      continue;
    }
    bin += static_cast<uint32_t>(std::countr_zero(rest));
    if (bin >= kPoolBins) break;
    const uint64_t head_at = read(pool.heads[bin]);
    if (head_at == 0 || head_at > geo_.granules) {
      tx.fail();
      return std::nullopt;
    }
    const uint32_t found = static_cast<uint32_t>(head_at - 1);
    const Head head = head_of(region_.block(found));
    if (head.kind != Kind::kFree || head.pool != pool_index || head.granules < granules ||
        !valid(tx, found, head)) {
      tx.fail();
      return std::nullopt;
    }
    return found;
  }
  return std::nullopt;
}

void FreeSpace::write_head(Transaction& tx, uint32_t granule, Kind kind, uint32_t pool, uint32_t granules) {
  tx.set(tx.block(granule).head, pack_head(kind, pool, granules));
  const uint64_t after = uint64_t{granule} + granules;
  if (after >= geo_.granules) return;
  Word& behind = region_.block(static_cast<uint32_t>(after)).behind;
  tx.set(behind, with_low(read(behind), granules));
}

/// Cuts `granules` from the low end of a free block. The low end, so that memory stays dense and warm.
uint32_t FreeSpace::take(Transaction& tx, uint32_t at, uint32_t granules, uint32_t pool, uint32_t entry) {
  const Head head = head_of(region_.block(at));
  unlink(tx, at);
  if (tx.failed()) return at;
  write_head(tx, at, Kind::kUsed, pool, granules);
  tx.set(region_.block(at).entry, entry == kNoEntry ? 0 : uint64_t{entry} + 1);
  if (head.granules > granules) {
    const uint32_t rest = at + granules;
    write_head(tx, rest, Kind::kFree, head.pool, head.granules - granules);
    Word& behind = region_.block(rest).behind;
    tx.set(behind, with_high(read(behind), high(read(region_.block(at).behind))));
    link(tx, rest, head.granules - granules, head.pool);
  }
  return at;
}

void FreeSpace::take_range(Transaction& tx, uint32_t at, uint32_t begin, uint32_t granules, uint32_t entry) {
  const Head head = head_of(region_.block(at));
  if (head.kind != Kind::kFree || begin < at || uint64_t{begin} + granules > uint64_t{at} + head.granules ||
      !valid(tx, at, head))
    return tx.fail();
  unlink(tx, at);
  if (tx.failed()) return;
  const uint64_t freed = high(read(region_.block(at).behind));
  auto piece = [&](uint32_t from, uint32_t size) {
    write_head(tx, from, Kind::kFree, head.pool, size);
    Word& behind = region_.block(from).behind;
    tx.set(behind, with_high(read(behind), static_cast<uint32_t>(freed)));
    link(tx, from, size, head.pool);
  };
  if (begin > at) piece(at, begin - at);
  write_head(tx, begin, Kind::kUsed, head.pool, granules);
  tx.set(region_.block(begin).entry, entry == kNoEntry ? 0 : uint64_t{entry} + 1);
  const uint32_t end = begin + granules, old_end = at + head.granules;
  if (end < old_end) piece(end, old_end - end);
}

uint32_t FreeSpace::free(Transaction& tx, uint32_t granule) {
  Block& block = tx.block(granule);
  const Head head = head_of(block);
  if (tx.failed() || head.kind != Kind::kUsed || !valid(tx, granule, head)) {
    tx.fail();
    return granule;
  }
  tx.set(block.entry, 0);
  return insert_free(tx, granule, head.granules, head.pool);
}

uint32_t FreeSpace::insert_free(Transaction& tx, uint32_t granule, uint32_t granules, uint32_t pool) {
  if (tx.failed()) return granule;
  auto nonsense = [&] {
    tx.fail();
    return granule;
  };
  const uint32_t before = low(read(region_.block(granule).behind));
  if (before != 0) {
    if (before > granule) return nonsense();
    const uint32_t at = granule - before;
    const Head head = head_of(region_.block(at));
    if (head.kind == Kind::kNone || head.granules != before) return nonsense();
    if (head.kind == Kind::kFree && head.pool == pool) {
      unlink(tx, at);
      tx.set(region_.block(granule).head, 0);
      granule = at;
      granules += before;
    }
  } else if (granule != 0) {
    return nonsense();
  }
  const uint32_t after = granule + granules;
  if (after < geo_.granules) {
    const Head head = head_of(region_.block(after));
    if (head.kind == Kind::kNone || !valid(tx, after, head)) return nonsense();
    if (head.kind == Kind::kFree && head.pool == pool) {
      unlink(tx, after);
      tx.set(region_.block(after).head, 0);
      granules += head.granules;
    }
  }
  write_head(tx, granule, Kind::kFree, pool, granules);
  Word& behind = tx.block(granule).behind;
  tx.set(behind, with_high(read(behind), coarse_seconds()));
  link(tx, granule, granules, pool);
  return granule;
}

void FreeSpace::link(Transaction& tx, uint32_t granule, uint32_t granules, uint32_t pool_index) {
  Pool& pool = region_.pool(pool_index);
  const uint32_t bin = bin_of(granules);
  const uint64_t head = read(pool.heads[bin]);
  tx.set(tx.block(granule).links, head & kLow32);
  if (head != 0) {
    Word& links = tx.block(head - 1).links;
    tx.set(links, with_high(read(links), granule + 1));
  } else {
    tx.set(pool.bitmap[bin / 64], read(pool.bitmap[bin / 64]) | uint64_t{1} << (bin % 64));
  }
  tx.set(pool.heads[bin], uint64_t{granule} + 1);
  if (pool_index == Geometry::kCentralPool) tx.add(region_.super().central_free_granules, granules);
}

void FreeSpace::unlink(Transaction& tx, uint32_t granule) {
  Block& block = tx.block(granule);
  const Head head = head_of(block);
  if (tx.failed() || head.kind != Kind::kFree || !valid(tx, granule, head)) return tx.fail();
  Pool& pool = region_.pool(head.pool);
  const uint32_t bin = bin_of(head.granules);
  const uint64_t links = read(block.links);
  const uint32_t next = low(links), previous = high(links);
  if (next != 0) {
    Word& of_next = tx.block(uint64_t{next} - 1).links;
    if (high(read(of_next)) != granule + 1) return tx.fail();
    tx.set(of_next, with_high(read(of_next), previous));
  }
  if (previous != 0) {
    Word& of_previous = tx.block(uint64_t{previous} - 1).links;
    if (low(read(of_previous)) != granule + 1) return tx.fail();
    tx.set(of_previous, with_low(read(of_previous), next));
  } else {
    if (read(pool.heads[bin]) != uint64_t{granule} + 1) return tx.fail();
    tx.set(pool.heads[bin], next);
    if (next == 0) tx.set(pool.bitmap[bin / 64], read(pool.bitmap[bin / 64]) & ~(uint64_t{1} << (bin % 64)));
  }
  if (head.pool == Geometry::kCentralPool)
    tx.add(region_.super().central_free_granules, ~uint64_t{head.granules} + 1);
}

bool FreeSpace::return_to_central(Transaction& tx, uint32_t granule) {
  const Head head = head_of(tx.block(granule));
  if (tx.failed() || head.kind != Kind::kFree || head.pool == Geometry::kCentralPool ||
      !valid(tx, granule, head))
    return false;
  const uint32_t unit = geo_.chunk_granules;
  const uint32_t begin = (granule + unit - 1) / unit * unit;
  const uint32_t end = (granule + head.granules) / unit * unit;
  if (begin >= end) return false;
  const uint32_t freed = high(read(region_.block(granule).behind));
  unlink(tx, granule);
  if (tx.failed()) return false;
  auto leftover = [&](uint32_t from, uint32_t size) {
    write_head(tx, from, Kind::kFree, head.pool, size);
    Word& behind = region_.block(from).behind;
    tx.set(behind, with_high(read(behind), freed));
    link(tx, from, size, head.pool);
  };
  if (begin > granule) leftover(granule, begin - granule);
  if (end < granule + head.granules) leftover(end, granule + head.granules - end);
  // Its neighbours are in place now: it can merge with central ones like any freed block.
  write_head(tx, begin, Kind::kUsed, Geometry::kCentralPool, end - begin);
  insert_free(tx, begin, end - begin, Geometry::kCentralPool);
  return !tx.failed();
}

bool FreeSpace::reclaim_one_of(Transaction& tx, uint32_t pool_index) {
  Pool& pool = region_.pool(pool_index);
  const uint32_t lowest = bin_of(geo_.chunk_granules);  // smaller blocks cannot hold a chunk
  for (uint32_t bin = kPoolBins; bin-- > lowest;) {
    if ((read(pool.bitmap[bin / 64]) >> (bin % 64) & 1) == 0) continue;
    uint64_t at = read(pool.heads[bin]);
    // Blocks between one and two chunks may hold none whole; the bins are short, the bound is for nonsense.
    for (uint32_t i = 0; i < 1024 && at != 0; ++i) {
      const uint64_t next = low(read(tx.block(at - 1).links));
      if (tx.failed()) return false;
      if (return_to_central(tx, static_cast<uint32_t>(at - 1))) return true;
      if (tx.failed()) return false;
      at = next;
    }
  }
  return false;
}

bool FreeSpace::reclaim_one(Transaction& tx) {
  for (uint32_t pool = 1; pool < geo_.pools; ++pool) {
    Pool& p = region_.pool(pool);
    if ((read(p.bitmap[0]) | read(p.bitmap[1])) == 0) continue;
    if (reclaim_one_of(tx, pool)) return true;
    if (tx.failed()) return false;
  }
  return false;
}

std::optional<uint32_t> FreeSpace::largest_free(uint32_t pool_index) const {
  const Pool& pool = region_.pool(pool_index);
  for (uint32_t bin = kPoolBins; bin-- > 0;) {
    const uint64_t at = read(pool.heads[bin]);
    if (at != 0 && at <= geo_.granules) return static_cast<uint32_t>(at - 1);
  }
  return std::nullopt;
}

uint64_t FreeSpace::largest_free_bytes(uint32_t pool) const {
  const auto block = largest_free(pool);
  return block ? block_bytes(*block) : 0;
}

}  // namespace skate::store
