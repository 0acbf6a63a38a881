#include "base/ids.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <unordered_set>
#include <vector>

namespace skate {
namespace {

std::string bytes_of(const auto& id, size_t begin, size_t size) { return to_hex(id.data() + begin, size); }

WorkerId worker_of(uint8_t fill) {
  WorkerId worker;
  worker.bytes.fill(fill);
  return worker;
}

JobId job_of(uint32_t number) { return JobId::from_bytes(&number); }

TEST(Hex, WritesLowerCaseDigits) {
  const uint8_t data[] = {0x00, 0x0F, 0xA5, 0xFF};
  EXPECT_EQ(to_hex(data, sizeof data), "000fa5ff");
  EXPECT_EQ(to_hex(data, 0), "");
}

TEST(Hex, ReadsBothCasesAndNothingElse) {
  uint8_t out[2] = {};
  EXPECT_TRUE(from_hex("aB0f", out, 2));
  EXPECT_EQ(out[0], 0xAB);
  EXPECT_EQ(out[1], 0x0F);
  for (const char* bad : {"", "abc", "abcde", "ab0g", "0x01", "ab 0", "-b0f", "ab0\xC3"})
    EXPECT_FALSE(from_hex(bad, out, 2)) << bad;
  EXPECT_FALSE(from_hex(std::string_view("ab\0f", 4), out, 2));
}

TEST(Ids, HaveTheSizesThatProgramsKnow) {
  EXPECT_EQ(sizeof(JobId), 4u);
  EXPECT_EQ(sizeof(ActorId), 16u);
  EXPECT_EQ(sizeof(TaskId), 24u);
  EXPECT_EQ(sizeof(ObjectId), 28u);
  EXPECT_EQ(sizeof(NodeId), 28u);
  EXPECT_EQ(sizeof(WorkerId), 28u);
  EXPECT_EQ(sizeof(PlacementGroupId), 18u);
}

TEST(Ids, AreNilUntilSet) {
  EXPECT_TRUE(NodeId().is_nil());
  EXPECT_TRUE(ObjectId().is_nil());
  EXPECT_EQ(JobId::nil().hex(), "ffffffff");
  EXPECT_FALSE(job_of(1).is_nil());
}

TEST(Ids, TravelThroughHex) {
  const NodeId id = NodeId::random();
  EXPECT_EQ(id.hex().size(), 2 * NodeId::kSize);
  EXPECT_EQ(NodeId::parse_hex(id.hex()), id);
  EXPECT_EQ(NodeId::parse_hex(id.hex() + "0"), std::nullopt);
  EXPECT_EQ(NodeId::parse_hex(""), std::nullopt);
}

TEST(Ids, AreOrderedByTheirBytes) {
  EXPECT_LT(worker_of(1), worker_of(2));
  EXPECT_LT(worker_of(0x7F), worker_of(0x80));
  EXPECT_EQ(worker_of(3), worker_of(3));
}

TEST(Ids, RandomOnesDiffer) {
  std::set<WorkerId> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(WorkerId::random());
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(ActorIds, EndWithTheirJob) {
  const ActorId actor = ActorId::make(job_of(7));
  EXPECT_EQ(actor.job(), job_of(7));
  EXPECT_EQ(bytes_of(actor, 12, 4), "07000000");
  EXPECT_NE(actor, ActorId::make(job_of(7)));
}

TEST(TaskIds, OfANormalTaskNameSubmitterAndJob) {
  const TaskId task = TaskId::normal(0x0102, worker_of(0xAB), job_of(9));
  EXPECT_EQ(task.job(), job_of(9));
  EXPECT_EQ(bytes_of(task, 8, 1), "ff") << "an origin of FF marks a task of no actor";
  EXPECT_EQ(bytes_of(task, 9, 11), "ababababababababababab");
  EXPECT_EQ(bytes_of(task, 20, 4), "09000000");
  EXPECT_TRUE(task.actor().is_nil());
  EXPECT_FALSE(task.is_nil());
}

TEST(TaskIds, DifferBySequenceSubmitterAndJob) {
  const std::set<TaskId> tasks = {
      TaskId::normal(1, worker_of(1), job_of(1)),          TaskId::normal(2, worker_of(1), job_of(1)),
      TaskId::normal(1, worker_of(2), job_of(1)),          TaskId::normal(1, worker_of(1), job_of(2)),
      TaskId::normal(1ull << 63, worker_of(1), job_of(1)),
  };
  EXPECT_EQ(tasks.size(), 5u);
}

TEST(TaskIds, OfAnActorNameTheActor) {
  // Actor ids are random: many of them, so that an origin that looks like a normal task's would show.
  for (int i = 0; i < 2000; ++i) {
    const ActorId actor = ActorId::make(job_of(3));
    const TaskId call = TaskId::actor_call(5, actor);
    ASSERT_EQ(call.actor(), actor);
    ASSERT_EQ(call.job(), job_of(3));
    const TaskId creation = TaskId::actor_creation(actor);
    ASSERT_EQ(creation.actor(), actor);
    ASSERT_NE(creation, call);
  }
  const ActorId actor = ActorId::make(job_of(3));
  EXPECT_NE(TaskId::actor_call(1, actor), TaskId::actor_call(2, actor));
}

TEST(ObjectIds, AreTheirTaskAndALittleEndianIndex) {
  const TaskId task = TaskId::normal(1, worker_of(1), job_of(4));
  const ObjectId object = ObjectId::of(task, 0x01020304);
  EXPECT_EQ(object.task(), task);
  EXPECT_EQ(object.index(), 0x01020304u);
  EXPECT_EQ(object.job(), job_of(4));
  EXPECT_EQ(bytes_of(object, 24, 4), "04030201");
  EXPECT_NE(ObjectId::of(task, 1), ObjectId::of(task, 2));
}

/// How many of `ids` share one of 2^16 slots with an earlier one, by the low and by the high bits.
template <class AnyId>
std::pair<size_t, size_t> collisions(const std::vector<AnyId>& ids) {
  std::unordered_set<size_t> low, high;
  for (const AnyId& id : ids) {
    const size_t hash = std::hash<AnyId>{}(id);
    low.insert(hash & 0xFFFF);
    high.insert(hash >> 48);
  }
  return {ids.size() - low.size(), ids.size() - high.size()};
}

// 4096 keys thrown at random into 65536 slots meet about 125 times.
constexpr size_t kKeys = 4096, kCollisionsMax = 250;

TEST(IdHashes, SpreadTheObjectsOfOneTask) {
  const TaskId task = TaskId::normal(1, worker_of(1), job_of(1));
  std::vector<ObjectId> ids;
  for (uint32_t i = 0; i < kKeys; ++i) ids.push_back(ObjectId::of(task, i));
  const auto [low, high] = collisions(ids);
  EXPECT_LT(low, kCollisionsMax);
  EXPECT_LT(high, kCollisionsMax);
}

TEST(IdHashes, SpreadTheFirstObjectsOfManyTasks) {
  std::vector<ObjectId> ids;
  for (uint64_t i = 0; i < kKeys; ++i)
    ids.push_back(ObjectId::of(TaskId::normal(i, worker_of(1), job_of(1)), 1));
  const auto [low, high] = collisions(ids);
  EXPECT_LT(low, kCollisionsMax);
  EXPECT_LT(high, kCollisionsMax);
}

TEST(IdHashes, SpreadTheTasksOfOneSubmitter) {
  std::vector<TaskId> ids;
  for (uint64_t i = 0; i < kKeys; ++i) ids.push_back(TaskId::normal(i, worker_of(1), job_of(1)));
  const auto [low, high] = collisions(ids);
  EXPECT_LT(low, kCollisionsMax);
  EXPECT_LT(high, kCollisionsMax);
}

TEST(IdHashes, SpreadJobs) {
  std::unordered_set<size_t> hashes;
  for (uint32_t i = 0; i < kKeys; ++i) hashes.insert(std::hash<JobId>{}(job_of(i)));
  EXPECT_EQ(hashes.size(), kKeys);
}

}  // namespace
}  // namespace skate
