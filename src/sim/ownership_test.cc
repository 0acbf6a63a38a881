#include <gtest/gtest.h>

#include "sim/ownership_sim.h"

namespace skate::sim {
namespace {

TEST(OwnershipSim, SurvivesItsSeeds) {
  OwnershipReport sum;
  for (uint64_t seed = 1; seed <= 250; ++seed) {
    const OwnershipReport report = run_ownership(seed);
    ASSERT_EQ(report.problem, "") << "seed " << seed << ": run skate_sim --from " << seed << " --seeds 1";
    sum.messages += report.messages;
    sum.adopted += report.adopted;
    sum.lost += report.lost;
    sum.deaths += report.deaths;
    sum.hand_overs += report.hand_overs;
    sum.refusals += report.refusals;
  }
  // The workload would prove nothing if nothing happened in it.
  EXPECT_GT(sum.messages, 10'000u);
  EXPECT_GT(sum.adopted, 100u);
  EXPECT_GT(sum.lost, 100u);
  EXPECT_GT(sum.deaths, 50u);
  EXPECT_GT(sum.hand_overs, 50u);
  EXPECT_GT(sum.refusals, 5u);
}

}  // namespace
}  // namespace skate::sim
