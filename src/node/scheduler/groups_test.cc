// Placement groups in the scheduler of one node.
#include <random>

#include "node/scheduler/scheduler_testing.h"

namespace skate::node {
namespace {

PlacementGroupId group_id(uint8_t number) {
  PlacementGroupId id;
  id.bytes.fill(number);
  return id;
}
Place in(uint8_t group, int32_t bundle = -1) { return Place{group_id(group), bundle, ""}; }

struct GroupNode : Node {
  using Node::Node;
  void reserve(uint8_t group, Bundles bundles, uint64_t attempt = 1) {
    scheduler.reserve(group_id(group), attempt, std::move(bundles), now);
    settle();
  }
  void demand_in(ProcessNumber owner, uint64_t shape, const Resources& need, uint32_t wanted, Place place) {
    demand(owner, shape, need, wanted, 1, 0, place);
    settle();
  }
  int64_t free_cpus() const { return scheduler.available().at("CPU") / kUnit; }
};

TEST(SchedulerGroups, AReservationLeavesTheOpenPool) {
  GroupNode node(Node::options(cpu(3)));
  node.reserve(1, {{0, cpu(1)}, {1, cpu(1)}});
  ASSERT_EQ(node.reserved.size(), 1u);
  EXPECT_EQ(node.free_cpus(), 1);
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand(driver, 1, cpu(1), 3);
  node.settle();
  EXPECT_EQ(node.held(driver), 1u) << "two CPUs belong to the group";
}

TEST(SchedulerGroups, WhatRunsInABundleTakesFromItAndWaitsWhenItIsFull) {
  GroupNode node(Node::options(cpu(4)));
  node.reserve(1, {{0, cpu(1)}, {1, cpu(1)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 2, in(1, 0));
  EXPECT_EQ(node.held(driver), 1u) << "the bundle has one CPU, whatever else is free";
  node.demand_in(driver, 2, cpu(1), 2, in(1));
  EXPECT_EQ(node.held(driver), 2u) << "index -1 takes the other bundle";
  EXPECT_EQ(node.free_cpus(), 2);
  node.give_back(node.leases[0].lease);
  node.settle();
  EXPECT_EQ(node.held(driver), 2u);
}

TEST(SchedulerGroups, DemandsWaitForTheCommit) {
  GroupNode node(Node::options(cpu(2)));
  node.commits = false;
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 1, in(1, 0));
  node.reserve(1, {{0, cpu(1)}});
  EXPECT_EQ(node.held(driver), 0u);
  node.scheduler.commit(group_id(1), 1);
  node.settle();
  EXPECT_EQ(node.held(driver), 1u);
  EXPECT_TRUE(node.refusals.empty());
}

TEST(SchedulerGroups, AReservationWaitsForRoomAndASmallerOneOvertakes) {
  GroupNode node(Node::options(cpu(2)));
  node.scheduler.place_actor(1, job(1), cpu(1), cpu(1), "", "A", false, node.now);
  node.settle();
  node.reserve(1, {{0, cpu(2)}});
  EXPECT_TRUE(node.reserved.empty());
  node.reserve(2, {{0, cpu(1)}});
  ASSERT_EQ(node.reserved.size(), 1u);
  EXPECT_EQ(node.reserved[0].group, group_id(2));
  node.scheduler.end_group(group_id(2), "removed");
  node.end(node.placements[0].worker);
  node.settle();
  ASSERT_EQ(node.reserved.size(), 2u);
  EXPECT_EQ(node.reserved[1].group, group_id(1));
}

TEST(SchedulerGroups, AReservationThatMayNotWaitIsAnsweredAtOnce) {
  GroupNode node(Node::options(cpu(2)));
  node.scheduler.reserve(group_id(1), 1, {{0, cpu(3)}}, node.now, false);
  node.settle();
  ASSERT_EQ(node.reserved.size(), 1u);
  EXPECT_FALSE(node.reserved[0].ok);
  EXPECT_TRUE(node.scheduler.is_idle());
}

TEST(SchedulerGroups, LeasesAreRecalledForAReservation) {
  GroupNode node(Node::options(cpu(2)));
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand(driver, 1, cpu(1), 9);
  node.settle();
  ASSERT_EQ(node.held(driver), 2u);
  node.now += 20 * kMs;
  node.reserve(1, {{0, cpu(1)}, {1, cpu(1)}});
  EXPECT_EQ(node.recalls.size(), 2u);
  node.answer_recalls();
  node.settle();
  EXPECT_EQ(node.reserved.size(), 1u) << "what was recalled for it is not granted to others";
}

TEST(SchedulerGroups, AnEndedGroupEvictsRefusesAndFreesAll) {
  GroupNode node(Node::options(cpu(2)));
  node.reserve(1, {{0, cpu(1)}, {1, cpu(1)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 2, in(1, 0));
  ASSERT_EQ(node.held(driver), 1u);
  const ProcessNumber worker = node.leases[0].worker;
  node.scheduler.end_group(group_id(1), "it was removed");
  EXPECT_EQ(node.free_cpus(), 1) << "an empty bundle is free at once, the other when its worker is dead";
  node.settle();
  ASSERT_EQ(node.evictions.size(), 1u);
  EXPECT_EQ(node.evictions[0].worker, worker);
  ASSERT_EQ(node.refusals.size(), 1u);
  EXPECT_EQ(node.refusals[0].why, Refusal::Why::kGroupRemoved);
  EXPECT_EQ(node.free_cpus(), 2);
  node.scheduler.process_died(driver, node.now);
  node.settle();
  EXPECT_TRUE(node.scheduler.is_idle());
}

TEST(SchedulerGroups, WhatNoBundleCanHoldIsRefused) {
  GroupNode node(Node::options(cpu(8)));
  node.reserve(1, {{0, cpu(1)}, {1, cpu(2)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(3), 1, in(1));
  node.demand_in(driver, 2, cpu(2), 1, in(1, 0));
  node.demand_in(driver, 3, cpu(2), 1, in(1, 1));
  ASSERT_EQ(node.refusals.size(), 2u);
  for (const Refusal& refusal : node.refusals) EXPECT_EQ(refusal.why, Refusal::Why::kBundleTooSmall);
  EXPECT_EQ(node.held(driver), 1u);
}

TEST(SchedulerGroups, ABlockedTaskLendsItsCpuWithinItsBundle) {
  GroupNode node(Node::options(cpu(1)));
  node.reserve(1, {{0, cpu(1)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 1, in(1, 0));
  const ProcessNumber parent = node.leases[0].worker;
  node.demand_in(parent, 2, cpu(1), 1, in(1));
  EXPECT_EQ(node.held(parent), 0u);
  node.scheduler.blocked(parent, true);
  node.settle();
  EXPECT_EQ(node.held(parent), 1u);
  EXPECT_EQ(node.free_cpus(), 0) << "nobody outside gets it";
}

TEST(SchedulerGroups, GpusOfABundleKeepTheirIds) {
  GroupNode node(Node::options(cpu(1), {{"GPU", {4, 5}}}));
  node.reserve(1, {{0, gpu(1)}, {1, gpu(0.5)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, gpu(1), 1, in(1, 0));
  node.demand_in(driver, 2, gpu(0.5), 1, in(1, 1));
  ASSERT_EQ(node.leases.size(), 2u);
  EXPECT_EQ(node.leases[0].instances, (ResourceInstances{{"GPU", {4}}}));
  EXPECT_EQ(node.leases[1].instances, (ResourceInstances{{"GPU", {5}}}));
}

TEST(SchedulerGroups, OnlyTheLatestAttemptCounts) {
  GroupNode node(Node::options(cpu(2)));
  node.reserve(1, {{0, cpu(1)}}, 2);
  node.reserve(1, {{0, cpu(2)}}, 1);
  EXPECT_EQ(node.free_cpus(), 1) << "an earlier attempt is late";
  node.reserve(1, {{0, cpu(1)}}, 2);
  EXPECT_EQ(node.reserved.size(), 2u) << "asked again, told again";
  EXPECT_EQ(node.free_cpus(), 1);
  node.scheduler.unreserve(group_id(1), 1, "late");
  EXPECT_EQ(node.free_cpus(), 1);
  node.reserve(1, {{0, cpu(2)}}, 3);
  EXPECT_EQ(node.free_cpus(), 0);
  node.scheduler.unreserve(group_id(1), 3, "taken back");
  EXPECT_EQ(node.free_cpus(), 2);
}

TEST(SchedulerGroups, WhatIsBarredWaitsAndSaysWhy) {
  GroupNode node(Node::options(cpu(2)));
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 1, Place{PlacementGroupId::nil(), -1, "needs other labels"});
  ASSERT_EQ(node.refusals.size(), 1u);
  EXPECT_EQ(node.refusals[0].why, Refusal::Why::kInfeasible);
  EXPECT_NE(node.refusals[0].message.find("needs other labels"), std::string::npos);
  EXPECT_EQ(node.held(driver), 0u);
}

TEST(SchedulerGroups, ResourcesByRaysNames) {
  GroupNode node(Node::options(cpu(2)));
  node.reserve(1, {{0, cpu(1)}, {1, cpu(1)}});
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand_in(driver, 1, cpu(1), 1, in(1, 0));
  const std::string id = group_id(1).hex();
  const Resources total = node.scheduler.bundle_resources(false);
  EXPECT_EQ(total.at("CPU_group_0_" + id), kUnit);
  EXPECT_EQ(total.at("CPU_group_" + id), 2 * kUnit);
  EXPECT_EQ(total.at("bundle_group_" + id), 2000 * kUnit);
  EXPECT_EQ(node.scheduler.bundle_resources(true), total) << "nothing runs on the lease yet";
  node.scheduler.works(node.leases.at(0).worker, node.now);
  const Resources available = node.scheduler.bundle_resources(true);
  EXPECT_EQ(available.at("CPU_group_0_" + id), 0);
  EXPECT_EQ(available.at("CPU_group_" + id), kUnit);
  EXPECT_EQ(available.at("bundle_group_0_" + id), 1000 * kUnit - kUnit / 1000);
}

class RandomGroups : public testing::TestWithParam<uint32_t> {};

TEST_P(RandomGroups, NeverExceedTheNodeAndAllIsFreedAtTheEnd) {
  std::mt19937 random(GetParam());
  auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
  GroupNode node(Node::options(cpu(4), {{"GPU", {0, 1}}}));
  std::vector<ProcessNumber> owners;
  for (int i = 0; i < 3; ++i) owners.push_back(node.scheduler.new_process());
  uint64_t attempt = 0, actors = 0;
  const std::vector<Resources> sizes = {cpu(1), cpu(2), cpu(0.5), gpu(0.5), gpu(1)};
  for (int step = 0; step < 400; ++step) {
    node.now += below(20) * kMs;
    const auto group = static_cast<uint8_t>(1 + below(5));
    switch (below(8)) {
      case 0: {
        Bundles bundles;
        for (int32_t i = 0; i < static_cast<int32_t>(1 + below(3)); ++i) bundles[i] = sizes[below(5)];
        node.scheduler.reserve(group_id(group), ++attempt, bundles, node.now);
        break;
      }
      case 1: node.scheduler.end_group(group_id(group), "removed"); break;
      case 2: node.scheduler.unreserve(group_id(group), attempt, "placed anew"); break;
      case 3:
      case 4: {
        const uint32_t shape = below(5), owner = below(3);
        const Place place = below(3) == 0 ? Place{} : in(group, static_cast<int32_t>(below(3)) - 1);
        const uint64_t number =
            1 + shape +
            5 * (place.group.is_nil() ? 0 : 1 + group * 3 + static_cast<uint64_t>(place.bundle + 1));
        node.demand(owners[owner], number, sizes[shape], below(3), 1, 0, place);
        break;
      }
      case 5:
        if (!node.leases.empty())
          node.give_back(node.leases[below(static_cast<uint32_t>(node.leases.size()))].lease);
        break;
      case 6:
        if (!node.leases.empty())
          node.scheduler.blocked(node.leases[below(static_cast<uint32_t>(node.leases.size()))].worker,
                                 below(2) == 0);
        break;
      case 7:
        if (below(3) == 0) {
          node.scheduler.place_actor(++actors, job(1), cpu(1), below(2) ? cpu(1) : Resources{}, "", "A",
                                     false, node.now, below(2) ? in(group) : Place{});
        } else if (!node.placements.empty()) {
          below(2) ? node.scheduler.actor_created(node.placements[0].worker)
                   : node.end(node.placements[0].worker);
        }
        node.answer_recalls();
        break;
    }
    node.settle();
    if (HasFatalFailure()) return;
  }
  for (uint8_t group = 1; group <= 5; ++group) node.scheduler.end_group(group_id(group), "removed");
  for (uint64_t actor = 1; actor <= actors; ++actor) node.scheduler.cancel_actor(actor);
  node.settle();
  while (!node.placements.empty()) node.end(node.placements[0].worker);
  for (ProcessNumber owner : owners) node.scheduler.process_died(owner, node.now);
  node.settle();
  EXPECT_TRUE(node.scheduler.is_idle());
}

/// Groups that are asked for side by side are all made in the end, whatever order their room comes in.
TEST_P(RandomGroups, CreatedInParallelNeverDeadlock) {
  std::mt19937 random(GetParam());
  GroupNode node(Node::options(cpu(4)));
  const ProcessNumber driver = node.scheduler.new_process();
  node.demand(driver, 1, cpu(1), 4);
  node.settle();
  std::set<PlacementGroupId> waiting;
  for (uint8_t group = 1; group <= 12; ++group) {
    Bundles bundles;
    const auto count = static_cast<int32_t>(1 + random() % 3);
    for (int32_t i = 0; i < count; ++i) bundles[i] = cpu(1);
    node.scheduler.reserve(group_id(group), 1, bundles, node.now);
    waiting.insert(group_id(group));
  }
  size_t seen = 0;
  for (int round = 0; round < 2000 && !waiting.empty(); ++round) {
    node.now += 10 * kMs;
    node.settle();
    if (HasFatalFailure()) return;
    node.answer_recalls();
    for (; seen < node.reserved.size(); ++seen) {
      waiting.erase(node.reserved[seen].group);
      if (random() % 2 == 0) node.settle();
      node.scheduler.end_group(node.reserved[seen].group, "removed");
    }
  }
  EXPECT_TRUE(waiting.empty()) << waiting.size() << " groups were never made";
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomGroups, testing::Range(1u, 61u));

}  // namespace
}  // namespace skate::node
