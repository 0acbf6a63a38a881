#include "store/arena.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <random>
#include <set>

#include "store/client/core.h"
#include "store/store_testing.h"

namespace skate::store {
namespace {

using testing::attach;
using testing::holds;
using testing::id_of;
using testing::make_arena;
using testing::put;
using testing::small_options;

TEST(Arena, RefusesImpossibleOptions) {
  ArenaOptions options = small_options(1000);
  EXPECT_EQ(Arena::create(options).error().code, ErrorCode::kInvalid);
  options = small_options();
  options.clients_max = 1;
  EXPECT_EQ(Arena::create(options).error().code, ErrorCode::kInvalid);
  options = small_options();
  options.objects_max = 0;
  EXPECT_EQ(Arena::create(options).error().code, ErrorCode::kInvalid);
}

TEST(Arena, CannotBeShrunkAndCostsNothingWhenIdle) {
  ArenaOptions options;
  options.capacity_bytes = 4ull << 30;
  auto arena = make_arena(options);
  EXPECT_NE(::ftruncate(arena->data_fd(), 0), 0);
  EXPECT_NE(::ftruncate(arena->index_fd(), 0), 0);
  EXPECT_EQ(arena->stats().resident_bytes, 0u);
  struct stat index {
  }, data{};
  ASSERT_EQ(::fstat(arena->index_fd(), &index), 0);
  ASSERT_EQ(::fstat(arena->data_fd(), &data), 0);
  EXPECT_LT(index.st_blocks * 512, 256 << 10);
  EXPECT_EQ(data.st_blocks, 0);
}

TEST(Arena, ClientsAreLimitedAndSlotsComeBack) {
  auto arena = make_arena();
  std::set<uint32_t> slots;
  for (int i = 0; i < 15; ++i) slots.insert(*arena->attach_client(1));
  EXPECT_EQ(slots.size(), 15u);
  EXPECT_EQ(arena->attach_client(1).error().code, ErrorCode::kFull);
  EXPECT_EQ(arena->stats().clients, 15u);
  ASSERT_TRUE(arena->recover_client(7).ok());
  ASSERT_TRUE(arena->recover_client(7).ok());
  EXPECT_EQ(*arena->attach_client(1), 7u);
  EXPECT_EQ(arena->recover_client(0).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(arena->recover_client(16).error().code, ErrorCode::kInvalid);
}

TEST(Arena, ListsWhatIsThere) {
  auto arena = make_arena();
  Client client = attach(*arena);
  for (uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(put(client, id_of(i), 100 + i).ok());
  client.erase(id_of(4));
  std::set<ObjectId> found;
  uint32_t cursor = 0;
  do {
    for (const StoredObject& object : arena->list(&cursor, 3)) {
      EXPECT_EQ(object.info.creator_slot, client.slot());
      EXPECT_EQ(object.info.state, ObjectState::kSealed);
      found.insert(object.id);
    }
  } while (cursor != 0);
  EXPECT_EQ(found.size(), 9u);
  EXPECT_EQ(found.count(id_of(4)), 0u);
}

/// Runs steps until the arena is content.
void settle(Arena& arena, uint64_t now_ms) {
  for (int i = 0; i < 10'000; ++i)
    if (arena.step(now_ms) > 1) return;
  FAIL() << "the arena never comes to rest";
}

TEST(ArenaStep, FetchesNothingBeforeTheFirstLargePutAndIsBoundedThen) {
  ArenaOptions options = small_options(64 << 20);
  options.prefault_ahead_bytes = 8 << 20;
  auto arena = make_arena(options);
  Client client = attach(*arena);
  const uint64_t now = coarse_ms();
  ASSERT_TRUE(put(client, id_of(1), 1000).ok());
  const uint64_t little = arena->stats().resident_bytes;
  settle(*arena, now);
  EXPECT_EQ(arena->stats().resident_bytes, little);
  ASSERT_TRUE(put(client, id_of(2), 2 << 20).ok());
  settle(*arena, now);
  EXPECT_EQ(arena->stats().resident_bytes, little + (2 << 20) + (8 << 20));
  EXPECT_SOUND(*arena, true);
}

TEST(ArenaStep, MemoryUnusedForAMinuteGoesBackAndContentsInUseStay) {
  ArenaOptions options = small_options(64 << 20);
  options.prefault_ahead_bytes = 0;
  auto arena = make_arena(options);
  Client client = attach(*arena);
  const uint64_t start = coarse_ms();
  arena->step(start);
  ASSERT_TRUE(put(client, id_of(1), 3 << 20).ok());
  ASSERT_TRUE(put(client, id_of(2), 16 << 20).ok());
  ASSERT_TRUE(put(client, id_of(3), 3 << 20).ok());
  client.erase(id_of(2));
  settle(*arena, start + 1000);
  EXPECT_EQ(arena->stats().resident_bytes, 22u << 20);  // still the client's, warm
  for (uint64_t at = start + 5000; at <= start + 200'000; at += 5000) settle(*arena, at);
  EXPECT_EQ(arena->stats().resident_bytes, 6u << 20);
  struct stat data {};
  ASSERT_EQ(::fstat(arena->data_fd(), &data), 0);
  EXPECT_EQ(data.st_blocks * 512, 6 << 20);
  auto view = client.get(id_of(3));
  ASSERT_TRUE(view.has_value());
  EXPECT_TRUE(holds(view->data(), view->size(), id_of(3)));
  EXPECT_SOUND(*arena, false);
  // And it can be had again.
  ASSERT_TRUE(put(client, id_of(4), 16 << 20).ok());
  auto again = client.get(id_of(4));
  EXPECT_TRUE(holds(again->data(), again->size(), id_of(4)));
}

TEST(ArenaStep, PressureReleasesAtOnce) {
  auto arena = make_arena(small_options(64 << 20));
  Client client = attach(*arena);
  ASSERT_TRUE(put(client, id_of(1), 16 << 20).ok());
  ASSERT_TRUE(put(client, id_of(2), 10'000).ok());
  client.erase(id_of(1));
  arena->set_memory_pressure(true);
  const uint64_t now = coarse_ms();
  settle(*arena, now);
  EXPECT_LE(arena->stats().resident_bytes, 128u << 10);
  EXPECT_SOUND(*arena, true);
}

TEST(ArenaStep, SweepsUpWhatCouldNotBeFreedForTheLock) {
  auto arena = make_arena();
  Client client = attach(*arena, ClientOptions{1});
  ASSERT_TRUE(put(client, id_of(1), 1000).ok());
  const auto slot = arena->attach_client(1);
  auto core = Core::open(arena->index_fd(), arena->data_fd(), *slot, CoreOptions{});
  ASSERT_TRUE(core.ok());
  {
    Core::Critical critical(**core);
    ASSERT_TRUE(critical.held());
    EXPECT_TRUE(client.erase(id_of(1)));
  }
  EXPECT_FALSE(client.contains(id_of(1)));
  EXPECT_EQ(arena->stats().objects, 1u);
  settle(*arena, coarse_ms());
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_SOUND(*arena, true);
}

TEST(ArenaStep, UnderRandomUseNothingBreaks) {
  ArenaOptions options = small_options(32 << 20);
  options.prefault_ahead_bytes = 4 << 20;
  options.release_idle_ms = 500;
  options.lease_idle_ms = 100;
  auto arena = make_arena(options);
  Client a = attach(*arena), b = attach(*arena);
  std::mt19937_64 random(5);
  uint64_t now = coarse_ms();
  for (int i = 0; i < 3000; ++i) {
    Client& client = random() % 2 == 0 ? a : b;
    const ObjectId id = id_of(random() % 30);
    if (random() % 2 == 0) {
      (void)put(client, id, random() % 5 == 0 ? random() % (4 << 20) : random() % 30'000);
    } else {
      client.erase(id);
    }
    auto view = client.get(id);
    ASSERT_TRUE(!view || holds(view->data(), view->size(), id));
    now += random() % 200;
    arena->step(now);
    arena->set_memory_pressure(random() % 50 == 0);
    if (i % 100 == 0) EXPECT_SOUND(*arena, true);
  }
  EXPECT_SOUND(*arena, true);
}

TEST(Corruption, CostsTheObjectItTouchesAndIsCounted) {
  auto arena = make_arena();
  Client client = attach(*arena);
  ASSERT_TRUE(put(client, id_of(1), 1000).ok());
  ASSERT_TRUE(put(client, id_of(2), 1000).ok());
  const auto slot = arena->attach_client(1);
  auto core = Core::open(arena->index_fd(), arena->data_fd(), *slot, CoreOptions{});
  const auto found = (*core)->find(id_words(id_of(1)));
  ASSERT_TRUE(found.has_value());
  (*core)->region().entry(found->entry).offset.store(uint64_t{1} << 50);
  EXPECT_FALSE(client.get(id_of(1)).has_value());
  EXPECT_GT(client.corruptions(), 0u);
  EXPECT_TRUE(client.get(id_of(2)).has_value());
  EXPECT_EQ(arena->verify(false).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(client.erase(id_of(1)));
  EXPECT_TRUE(client.erase(id_of(2)));
  EXPECT_TRUE(put(client, id_of(3), 1000).ok());
}

}  // namespace
}  // namespace skate::store
