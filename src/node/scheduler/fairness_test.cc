// Whose turn comes when: owners that keep leases and give them back when their task ends, on virtual time.
#include <limits>
#include <random>

#include "node/scheduler/scheduler_testing.h"

namespace skate::node {
namespace {

constexpr int64_t kSecond = 1000 * kMs;
constexpr int64_t kEver = int64_t{1} << 50;

/// Each shape's tasks follow each other on its leases; a recall is answered when the task has ended.
struct BusyNode : Node {
  using Node::Node;

  struct Flow {
    ProcessNumber owner{};
    Resources need;
    std::function<int64_t()> task_us;
    uint32_t wanted{};
    uint64_t left{};  ///< tasks
    uint8_t job_number = 1;
    int32_t priority{};
    int64_t without_since{};  ///< -1: it has a lease
    int64_t longest_wait_us{};
  };

  ProcessNumber flow(uint64_t shape, const Resources& need, uint32_t wanted, std::function<int64_t()> task_us,
                     uint64_t tasks = std::numeric_limits<uint64_t>::max(), uint8_t job_number = 1,
                     int32_t priority = 0) {
    const ProcessNumber owner = scheduler.new_process();
    flows[shape] = {owner, need, std::move(task_us), wanted, tasks, job_number, priority, now, 0};
    demand(owner, shape, need, wanted, job_number, priority);
    return owner;
  }
  ProcessNumber flow(uint64_t shape, const Resources& need, uint32_t wanted, int64_t task_us,
                     uint64_t tasks = std::numeric_limits<uint64_t>::max()) {
    return flow(
        shape, need, wanted, [task_us] { return task_us; }, tasks);
  }

  void run_for(int64_t time_us) {
    const int64_t until = now + time_us;
    while (true) {
      settle();
      if (testing::Test::HasFatalFailure()) return;
      begin_tasks();
      note_waits();
      if (now >= until) return;
      int64_t next = until;
      for (const auto& [lease, end_us] : ends) next = std::min(next, end_us);
      if (auto deadline = scheduler.next_deadline(now)) next = std::min(next, *deadline);
      now = next;
      end_tasks();
    }
  }
  bool holds(uint64_t shape) const { return held(flows.at(shape).owner) > 0; }
  uint64_t done(uint64_t shape) const { return begun.contains(shape) ? begun.at(shape) : 0; }

  std::map<uint64_t, Flow> flows;
  std::map<LeaseNumber, int64_t> ends;
  std::map<uint64_t, uint64_t> begun;

 private:
  void begin_tasks() {
    for (const Grant& grant : leases)
      if (!ends.contains(grant.lease)) begin(grant);
  }
  void begin(const Grant& grant) {
    Flow& flow = flows.at(grant.shape_id);
    ASSERT_GT(flow.left, 0u);
    --flow.left;
    ++begun[grant.shape_id];
    ends[grant.lease] = now + flow.task_us();
    scheduler.works(grant.worker, now);
  }
  void end_tasks() {
    for (const Grant& grant : std::vector<Grant>(leases)) {
      auto end_at = ends.find(grant.lease);
      if (end_at == ends.end() || end_at->second > now) continue;
      ends.erase(end_at);
      scheduler.works(grant.worker, -now);
      const bool recalled =
          std::erase_if(recalls, [&](const Recall& recall) { return recall.lease == grant.lease; }) > 0;
      Flow& flow = flows.at(grant.shape_id);
      if (flow.left == 0) demand(flow.owner, grant.shape_id, flow.need, 0, flow.job_number, flow.priority);
      if (recalled || flow.left == 0) {
        give_back(grant.lease);
      } else {
        begin(grant);
      }
    }
  }
  void note_waits() {
    for (auto& [shape, flow] : flows) {
      if (flow.left == 0 || holds(shape)) {
        flow.without_since = -1;
        continue;
      }
      if (flow.without_since < 0) flow.without_since = now;
      flow.longest_wait_us = std::max(flow.longest_wait_us, now - flow.without_since);
    }
  }
};

TEST(Fairness, ALargeShapeWaitsForTheTasksThatRunAndForNoOthers) {
  BusyNode node(Node::options(cpu(2)));
  node.flow(1, cpu(1), 8, 400 * kMs);
  node.run_for(200 * kMs);
  node.flow(2, cpu(1), 8, 500 * kMs);
  node.run_for(5000 * kMs);
  node.flow(3, cpu(2), 1, kEver);
  node.run_for(100 * kMs + 500 * kMs);
  EXPECT_TRUE(node.holds(3));
}

TEST(Fairness, ALargeShapeIsServedBesideTasksThatLastLongerThanRoomIsKept) {
  for (int64_t length_us : {1200 * kMs, 1700 * kMs, 2000 * kMs, 3100 * kMs})
    for (int64_t apart_us : {0 * kMs, 300 * kMs, 900 * kMs}) {
      BusyNode node(Node::options(cpu(2)));
      node.flow(1, cpu(1), 1, length_us);
      node.run_for(apart_us);
      node.flow(2, cpu(1), 1, length_us);
      node.run_for(500 * kMs);
      node.flow(3, cpu(2), 1, kEver);
      node.run_for(4 * length_us);
      EXPECT_TRUE(node.holds(3)) << length_us << ", " << apart_us;
    }
}

TEST(Fairness, OthersPassWhileALongTaskHoldsALargeShapeBack) {
  BusyNode node(Node::options(cpu(2)));
  node.flow(1, cpu(1), 1, 100 * kSecond, 1);
  node.run_for(kMs);
  node.flow(2, cpu(2), 1, kSecond, 1);
  node.flow(3, cpu(1), 1, 10 * kMs);
  node.run_for(2 * kSecond);
  const uint64_t before = node.done(3);
  node.run_for(90 * kSecond);
  EXPECT_GE(node.done(3) - before, 8900u) << "all of the time";
  EXPECT_FALSE(node.holds(2));
  node.run_for(8100 * kMs);
  EXPECT_TRUE(node.holds(2)) << "once the long task has ended, they pass no more";
}

TEST(Fairness, TwoThatALongTaskHoldsBackDoNotStopTheOthersInTurns) {
  BusyNode node(Node::options(cpu(4)));
  node.flow(1, cpu(1), 1, kEver);
  node.run_for(kMs);
  node.flow(2, cpu(4), 1, kMs);
  node.run_for(500 * kMs);
  node.flow(3, {{"CPU", 4 * kUnit - 1}}, 1, kMs);
  node.run_for(3 * kSecond);
  for (uint64_t shape = 10; shape < 60; ++shape) {
    node.flow(shape, cpu(1), 1, 10 * kMs, 1);
    node.run_for(100 * kMs);
    EXPECT_EQ(node.done(shape), 1u) << shape;
  }
}

TEST(Fairness, WhatAnActorMakesImpossibleHidesNobody) {
  BusyNode node(Node::options(cpu(4)));
  node.scheduler.place_actor(1, job(1), cpu(1), cpu(1), "", "A", false, node.now);
  node.flow(1, cpu(4), 1, kMs);
  node.flow(2, cpu(1), 1, 30 * kMs);
  node.flow(3, cpu(1), 1, 40 * kMs);
  node.flow(4, cpu(1), 1, 50 * kMs);
  node.run_for(kSecond);
  node.flow(5, cpu(3), 1, kEver);
  node.run_for(200 * kMs);
  EXPECT_TRUE(node.holds(5));
  EXPECT_FALSE(node.holds(1));
}

TEST(Fairness, WhoWantsMoreDoesNotGoBeforeWhoHasNothing) {
  BusyNode node(Node::options(cpu(2)));
  node.flow(1, cpu(1), 1000, 5 * kMs);
  node.run_for(kSecond);
  node.flow(2, cpu(1), 1, 5 * kMs);
  node.run_for(10 * kMs);
  EXPECT_TRUE(node.holds(2)) << "the first lease that comes back is for it";
}

TEST(Fairness, ALeaseStuckInALongTaskIsNoTurn) {
  BusyNode node(Node::options(cpu(3)));
  uint64_t number = 0;
  const ProcessNumber owner = node.flow(1, cpu(1), 2, [&] { return number++ == 0 ? kEver : kMs; });
  node.flow(2, cpu(1), 1, 7 * kMs);
  node.flow(3, cpu(1), 1, 7 * kMs);
  node.run_for(kSecond);
  EXPECT_GE(node.held(owner), 1u);
  EXPECT_GT(node.done(1), 2u) << "its second lease";
}

/// Tasks up to a length, some of them eternal, an actor that stays: whoever can be served is, in bounded
/// time.
class Bypass : public testing::TestWithParam<uint32_t> {};

TEST_P(Bypass, IsBounded) {
  std::mt19937 random(GetParam());
  auto below = [&](int64_t bound) { return static_cast<int64_t>(random() % static_cast<uint64_t>(bound)); };
  BusyNode node(Node::options({{"CPU", 4 * kUnit}, {"gold", 2 * kUnit}}, {{"GPU", {0, 1}}}));
  const std::vector<Resources> needs = {cpu(1),
                                        cpu(1),
                                        cpu(2),
                                        cpu(4),
                                        cpu(0.5),
                                        gpu(0.5),
                                        gpu(2),
                                        {{"CPU", kUnit}, {"gold", kUnit}},
                                        {{"gold", 2 * kUnit}},
                                        {{"CPU", 3 * kUnit}, {"GPU", kUnit}},
                                        {}};
  const int64_t longest_us = std::vector<int64_t>{20 * kMs, 300 * kMs, 2500 * kMs}[GetParam() % 3];
  Resources gone;  // for good
  if (below(3) == 0) {
    node.scheduler.place_actor(1, job(1), cpu(1), cpu(1), "", "A", false, node.now);
    node.settle();
    add_to(gone, cpu(1));
  }
  if (below(3) == 0) {
    const Resources need = needs[static_cast<size_t>(below(5) < 3 ? 0 : 5)];
    node.flow(100, need, 1, kEver);
    node.run_for(kMs);
    add_to(gone, need);
  }
  std::vector<uint64_t> servable;
  const uint64_t shapes = static_cast<uint64_t>(3 + below(5));
  for (uint64_t shape = 1; shape <= shapes; ++shape) {
    const Resources& need = needs[static_cast<size_t>(below(static_cast<int64_t>(needs.size())))];
    const int64_t most_us = below(3) == 0 ? longest_us : std::max<int64_t>(5 * kMs, longest_us / 10);
    node.flow(
        shape, need, static_cast<uint32_t>(1 + below(6)),
        [most_us, &below] { return most_us / 2 + below(most_us / 2); }, std::numeric_limits<uint64_t>::max(),
        static_cast<uint8_t>(1 + below(2)), static_cast<int32_t>(below(2)));
    ResourceBook rest({{"CPU", 4 * kUnit}, {"gold", 2 * kUnit}}, {{"GPU", {0, 1}}});
    if (rest.fits_beside(need, gone)) servable.push_back(shape);
    node.run_for(below(200 * kMs));
    if (HasFatalFailure()) return;
  }
  node.run_for(20 * longest_us + 8 * kSecond);
  if (HasFatalFailure()) return;
  // Each round of keeping room lasts as long as the wait so far: four times the longest task at most.
  const int64_t bound_us = 4 * longest_us + 1100 * kMs;
  for (uint64_t shape : servable) {
    EXPECT_LE(node.flows.at(shape).longest_wait_us, bound_us)
        << describe(node.flows.at(shape).need) << ", shape " << shape << " of " << shapes;
    EXPECT_GT(node.done(shape), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, Bypass, testing::Range(1u, 46u));

}  // namespace
}  // namespace skate::node
