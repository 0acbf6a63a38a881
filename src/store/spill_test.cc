#include "store/spill.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <unordered_map>

#include "store/store_testing.h"

namespace skate::store {
namespace {

using testing::attach;
using testing::fill;
using testing::holds;
using testing::id_of;
using testing::make_arena;
using testing::put;
using testing::small_options;

class Folder {
 public:
  Folder() {
    char path[] = "/tmp/skate-spill-test-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    path_ = path;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<uint8_t> contents(const ObjectId& id, size_t bytes) {
  std::vector<uint8_t> data(bytes);
  fill(data.data(), bytes, id);
  return data;
}

TEST(SpillPlan, FilesFillUpAndCloseWhenTheirLastObjectIsGone) {
  SpillPlan plan(SpillPlanOptions{10'000});
  const auto a = plan.reserve(5000), b = plan.reserve(5000), c = plan.reserve(1);
  EXPECT_TRUE(a.new_file);
  EXPECT_FALSE(b.new_file);
  EXPECT_EQ(a.place.file, b.place.file);
  EXPECT_EQ(b.place.offset, 8192u);
  EXPECT_TRUE(c.new_file);
  EXPECT_NE(c.place.file, a.place.file);
  plan.record(id_of(1), a.place);
  plan.record(id_of(2), b.place);
  plan.record(id_of(3), c.place);
  EXPECT_EQ(plan.files(), 2u);
  EXPECT_EQ(plan.live_bytes(), 10'001u);

  auto garbage = plan.forget(id_of(1));
  ASSERT_TRUE(garbage.has_value());
  EXPECT_FALSE(garbage->close_file);
  EXPECT_EQ(garbage->hole, (SpillPlace{a.place.file, 0, 8192}));
  EXPECT_FALSE(plan.forget(id_of(1)).has_value());
  EXPECT_TRUE(plan.forget(id_of(2))->close_file);
  EXPECT_TRUE(plan.cancel(plan.reserve(0).place).close_file == false);
  EXPECT_TRUE(plan.forget(id_of(3))->close_file);
  EXPECT_EQ(plan.files(), 0u);
  EXPECT_EQ(plan.live_bytes(), 0u);
  EXPECT_TRUE(plan.reserve(1).new_file);
}

TEST(SpillPlan, PlacesNeverOverlap) {
  std::mt19937_64 random(3);
  SpillPlan plan(SpillPlanOptions{200'000});
  std::unordered_map<uint64_t, SpillPlace> live;
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto made = plan.reserve(random() % 50'000);
    for (const auto& [number, other] : live) {
      if (other.file != made.place.file) continue;
      ASSERT_TRUE(made.place.offset >= other.offset + other.bytes ||
                  other.offset >= made.place.offset + made.place.bytes);
    }
    plan.record(id_of(i), made.place);
    live[i] = made.place;
    if (random() % 2 == 0) {
      const auto victim = live.begin()->first;
      ASSERT_TRUE(plan.forget(id_of(victim)).has_value());
      live.erase(victim);
    }
    ASSERT_EQ(plan.objects(), live.size());
  }
}

TEST(Spill, WritesReadsAndForgets) {
  Folder folder;
  auto spill = Spill::open({folder.path(), 100'000, 0});
  ASSERT_TRUE(spill.ok()) << spill.error().message;
  std::vector<std::vector<uint8_t>> data;
  std::vector<SpillItem> items;
  for (uint64_t i = 0; i < 10; ++i) {
    data.push_back(contents(id_of(i), 40'000 + i));
    items.push_back({id_of(i), data.back().data(), data.back().size()});
  }
  ASSERT_TRUE((*spill)->write(items).ok());
  EXPECT_EQ((*spill)->stats().files, 4u);
  EXPECT_EQ((*spill)->write({items.data(), 1}).error().code, ErrorCode::kExists);
  EXPECT_EQ((*spill)->size_of(id_of(3)), 40'003u);
  std::vector<uint8_t> back(40'003);
  ASSERT_TRUE((*spill)->read(id_of(3), back).ok());
  EXPECT_EQ(back, data[3]);
  std::vector<uint8_t> short_one(10);
  EXPECT_EQ((*spill)->read(id_of(3), short_one).error().code, ErrorCode::kInvalid);
  EXPECT_TRUE((*spill)->forget(id_of(3)));
  EXPECT_FALSE((*spill)->forget(id_of(3)));
  EXPECT_EQ((*spill)->read(id_of(3), back).error().code, ErrorCode::kNotFound);
  std::vector<uint8_t> neighbour(40'004);
  ASSERT_TRUE((*spill)->read(id_of(4), neighbour).ok());
  EXPECT_EQ((*spill)->sweep([](const ObjectId& id) { return id != id_of(4); }, 100), 8u);
  EXPECT_EQ((*spill)->stats().objects, 1u);
  EXPECT_EQ((*spill)->stats().files, 1u);
}

TEST(Spill, NothingHasANameThatCouldBeLeft) {
  Folder folder;
  auto spill = Spill::open({folder.path(), 1 << 20, 0});
  ASSERT_TRUE(spill.ok());
  const auto data = contents(id_of(1), 100'000);
  const SpillItem item{id_of(1), data.data(), data.size()};
  ASSERT_TRUE((*spill)->write({&item, 1}).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Spill, AFullDiskIsAnErrorWithSizesAndLeavesNothing) {
  Folder folder;
  auto spill = Spill::open({folder.path(), 1 << 20, uint64_t{1} << 60});
  ASSERT_TRUE(spill.ok());
  const auto data = contents(id_of(1), 100'000);
  const SpillItem item{id_of(1), data.data(), data.size()};
  const auto done = (*spill)->write({&item, 1});
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kFull);
  EXPECT_NE(done.error().message.find("spill 100000 bytes"), std::string::npos);
  EXPECT_EQ((*spill)->stats().objects, 0u);
  EXPECT_EQ((*spill)->stats().bytes, 0u);
}

TEST(Spill, AWriteThatFailsHalfWayIsUndone) {
  Folder folder;
  auto spill = Spill::open({folder.path(), 1 << 20, 0});
  ASSERT_TRUE(spill.ok());
  const auto data = contents(id_of(1), 5000);
  const std::vector<SpillItem> items{{id_of(1), data.data(), data.size()},
                                     {id_of(2), nullptr, 5000}};  // EFAULT
  const auto done = (*spill)->write(items);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kIo);
  EXPECT_EQ((*spill)->stats().objects, 0u);
  EXPECT_EQ((*spill)->stats().files, 0u);
  const std::vector<SpillItem> twice{{id_of(1), data.data(), data.size()},
                                     {id_of(1), data.data(), data.size()}};
  EXPECT_EQ((*spill)->write(twice).error().code, ErrorCode::kExists);
  EXPECT_EQ((*spill)->stats().files, 0u);
}

TEST(Spill, AMissingDirectoryIsFoundAtOnce) {
  EXPECT_EQ(Spill::open({"/nonexistent/spill", 1, 0}).error().code, ErrorCode::kIo);
}

TEST(Spill, TheChecksumSeesEveryBit) {
  std::vector<uint8_t> data = contents(id_of(9), 77);
  const uint64_t sum = spill_checksum(data);
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    EXPECT_NE(spill_checksum(data), sum);
    data[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
  data.push_back(0);
  EXPECT_NE(spill_checksum(data), sum);
}

// Arena and Spill together: out to disk, and back.

std::vector<SpillItem> items_of(const std::vector<SpillVictim>& victims) {
  std::vector<SpillItem> items;
  for (const SpillVictim& victim : victims) items.push_back({victim.id, victim.data, victim.bytes});
  return items;
}

TEST(Spilling, MakesRoomAndBringsTheObjectBack) {
  Folder folder;
  auto spill = Spill::open({folder.path(), 1 << 20, 0});
  ASSERT_TRUE(spill.ok());
  auto arena = make_arena(small_options(4 << 20));
  Client client = attach(*arena);
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(put(client, id_of(i), 1 << 20).ok());
  ASSERT_EQ(put(client, id_of(9), 1 << 20).error().code, ErrorCode::kFull);
  auto in_use = client.get(id_of(0));

  const auto victims = arena->pick_spill_victims(1);
  ASSERT_EQ(victims.size(), 1u);
  EXPECT_NE(victims[0].id, id_of(0));
  ASSERT_TRUE((*spill)->write(items_of(victims)).ok());
  ASSERT_TRUE(arena->commit_spill(victims[0]));
  EXPECT_EQ(client.info(victims[0].id).state, ObjectState::kSpilled);
  EXPECT_FALSE(client.get(victims[0].id).has_value());
  EXPECT_EQ(arena->stats().spilled_objects, 1u);
  EXPECT_SOUND(*arena, true);
  ASSERT_TRUE(put(client, id_of(9), 1 << 20).ok());

  EXPECT_EQ(arena->begin_restore(victims[0].id).error().code, ErrorCode::kFull);
  EXPECT_EQ(client.info(victims[0].id).state, ObjectState::kSpilled);
  client.erase(id_of(9));
  auto target = arena->begin_restore(victims[0].id);
  ASSERT_TRUE(target.ok()) << target.error().message;
  EXPECT_EQ(arena->begin_restore(victims[0].id).error().code, ErrorCode::kExists);
  ASSERT_TRUE((*spill)->read(victims[0].id, {target->data, target->bytes}).ok());
  arena->finish_restore(*target, true);
  auto view = client.get(victims[0].id);
  ASSERT_TRUE(view.has_value());
  EXPECT_TRUE(holds(view->data(), view->size(), victims[0].id));
  EXPECT_EQ(arena->stats().spilled_objects, 0u);
  EXPECT_SOUND(*arena, true);
}

TEST(Spilling, AnObjectThatIsReadOrErasedMeanwhileIsLeftAlone) {
  auto arena = make_arena(small_options(4 << 20));
  Client client = attach(*arena);
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(put(client, id_of(i), 1 << 20).ok());
  const auto victims = arena->pick_spill_victims(UINT64_MAX);
  ASSERT_EQ(victims.size(), 3u);
  auto view = client.get(victims[0].id);
  client.erase(victims[1].id);
  EXPECT_FALSE(arena->commit_spill(victims[0]));
  EXPECT_FALSE(arena->commit_spill(victims[1]));
  arena->abandon_spill(victims[2]);
  EXPECT_TRUE(client.contains(victims[0].id));
  EXPECT_FALSE(client.contains(victims[1].id));
  EXPECT_TRUE(client.contains(victims[2].id));
  EXPECT_EQ(arena->stats().objects, 2u);
  view.reset();
  EXPECT_SOUND(*arena, true);
}

TEST(Spilling, ErasingASpilledObjectIsNoticed) {
  auto arena = make_arena(small_options(4 << 20));
  Client client = attach(*arena);
  ASSERT_TRUE(put(client, id_of(1), 1 << 20).ok());
  ASSERT_TRUE(put(client, id_of(2), 1 << 20).ok());
  for (const auto& victim : arena->pick_spill_victims(UINT64_MAX)) ASSERT_TRUE(arena->commit_spill(victim));
  EXPECT_EQ(arena->stats().used_bytes, 0u);
  const uint64_t before = arena->spilled_erased();
  EXPECT_TRUE(client.erase(id_of(1)));
  EXPECT_GT(arena->spilled_erased(), before);
  // Erased while it comes back: gone when it is there. A failed restore: spilled as before.
  auto target = arena->begin_restore(id_of(2));
  ASSERT_TRUE(target.ok());
  arena->finish_restore(*target, false);
  EXPECT_EQ(client.info(id_of(2)).state, ObjectState::kSpilled);
  target = arena->begin_restore(id_of(2));
  ASSERT_TRUE(target.ok());
  EXPECT_TRUE(client.erase(id_of(2)));
  arena->finish_restore(*target, true);
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_SOUND(*arena, true);
}

}  // namespace
}  // namespace skate::store
