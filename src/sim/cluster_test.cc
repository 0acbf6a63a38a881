#include <gtest/gtest.h>

#include "sim/cluster_sim.h"

namespace skate::sim {
namespace {

TEST(ClusterSim, SurvivesItsSeeds) {
  SimReport sum;
  for (uint64_t seed = 1; seed <= 18; ++seed) {
    const SimReport report = run_cluster(seed);
    ASSERT_EQ(report.problem, "") << "seed " << seed << ": run skate_sim --from " << seed << " --seeds 1";
    sum.tasks += report.tasks;
    sum.actors += report.actors;
    sum.groups += report.groups;
    sum.group_tasks += report.group_tasks;
    sum.node_crashes += report.node_crashes;
    sum.control_crashes += report.control_crashes;
    sum.cuts += report.cuts;
    sum.objects.messages += report.objects.messages;
    sum.objects.adopted += report.objects.adopted;
    sum.objects.lost += report.objects.lost;
    sum.objects.deaths += report.objects.deaths;
    sum.objects.hand_overs += report.objects.hand_overs;
    sum.objects.refusals += report.objects.refusals;
    sum.objects.calls += report.objects.calls;
  }
  // The workload would prove nothing if nothing happened in it.
  EXPECT_GT(sum.tasks, 1000u);
  EXPECT_GT(sum.actors, 100u);
  EXPECT_GT(sum.groups, 50u);
  EXPECT_GT(sum.group_tasks, 100u);
  EXPECT_GT(sum.node_crashes, 3u);
  EXPECT_GT(sum.control_crashes, 5u);
  EXPECT_GT(sum.cuts, 5u);
  EXPECT_GT(sum.objects.messages, 10'000u);
  EXPECT_GT(sum.objects.adopted, 100u);
  EXPECT_GT(sum.objects.lost, 100u);
  EXPECT_GT(sum.objects.deaths, 50u);
  EXPECT_GT(sum.objects.hand_overs, 50u);
  EXPECT_GT(sum.objects.refusals, 5u);
  EXPECT_GT(sum.objects.calls, 500u);
}

TEST(ClusterSim, TheSeedDecidesEverything) {
  const SimReport first = run_cluster(12345);
  const SimReport second = run_cluster(12345);
  EXPECT_EQ(first.steps, second.steps);
  EXPECT_EQ(first.tasks, second.tasks);
  EXPECT_EQ(first.problem, second.problem);
}

}  // namespace
}  // namespace skate::sim
