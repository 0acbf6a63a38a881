#include "wire/scheduling.h"

#include <gtest/gtest.h>

namespace skate::wire {
namespace {

const Labels kLabels{{"region", "us"}, {"tier", "gold"}};

bool allows(const Labels& selector) { return matches(parse_selector(selector), kLabels); }

TEST(LabelSelector, EqualsAndNot) {
  EXPECT_TRUE(allows({{"region", "us"}}));
  EXPECT_FALSE(allows({{"region", "eu"}}));
  EXPECT_FALSE(allows({{"region", "!us"}}));
  EXPECT_TRUE(allows({{"region", "!eu"}}));
  EXPECT_FALSE(allows({{"absent", "x"}}));
  EXPECT_TRUE(allows({{"absent", "!x"}}));
}

TEST(LabelSelector, InAndNotIn) {
  EXPECT_TRUE(allows({{"region", "in(eu, us)"}}));
  EXPECT_TRUE(allows({{"region", "in(eu,us)"}}));
  EXPECT_FALSE(allows({{"region", "!in(eu, us)"}}));
  EXPECT_TRUE(allows({{"region", "!in(eu)"}}));
  EXPECT_TRUE(allows({{"absent", "!in(a, b)"}}));
  EXPECT_FALSE(allows({{"absent", "in(a, b)"}}));
}

TEST(LabelSelector, EveryTermMustHold) {
  EXPECT_TRUE(allows({{"region", "us"}, {"tier", "gold"}}));
  EXPECT_FALSE(allows({{"region", "us"}, {"tier", "silver"}}));
  EXPECT_TRUE(allows({}));
}

TEST(SchedulingPlan, EmptyAndNonsenseAreTheDefault) {
  for (const char* text : {"", "{", "[]", "17", "{\"strategy\": 3}", "{\"label_selector\": 1}"}) {
    const SchedulingPlan plan = parse_scheduling(text);
    EXPECT_FALSE(plan.spread);
    EXPECT_FALSE(plan.node);
    EXPECT_FALSE(plan.group);
    EXPECT_TRUE(choice_for(plan, kLabels)) << text;
  }
}

TEST(SchedulingPlan, Affinity) {
  const NodeId id = NodeId::random();
  const SchedulingPlan plan = parse_scheduling(R"({"node_id": ")" + id.hex() + R"(", "soft": false})");
  ASSERT_TRUE(plan.node);
  EXPECT_EQ(*plan.node, id);
  EXPECT_FALSE(plan.soft);
  EXPECT_EQ(parse_scheduling(R"({"node_id": "zz"})").node, NodeId::nil());
}

TEST(SchedulingPlan, Group) {
  const PlacementGroupId id = PlacementGroupId::random();
  const SchedulingPlan plan =
      parse_scheduling(R"({"strategy": "placement_group", "id": ")" + id.hex() + R"(", "bundle_index": 2})");
  ASSERT_TRUE(plan.group);
  EXPECT_EQ(*plan.group, id);
  EXPECT_EQ(plan.bundle, 2);
}

TEST(SchedulingPlan, FallbacksComeInOrder) {
  const SchedulingPlan plan = parse_scheduling(
      R"({"label_selector": {"region": "eu"}, "fallback": [{"region": "ap"}, {"region": "us"}]})");
  EXPECT_EQ(choice_for(plan, kLabels), 2u);
  EXPECT_EQ(choice_for(plan, {{"region", "ap"}}), 1u);
  EXPECT_FALSE(choice_for(plan, {{"region", "af"}}));
  EXPECT_EQ(describe_labels(plan), "region in (eu); or region in (ap); or region in (us)");
}

TEST(SchedulingPlan, NodeLabelStrategy) {
  auto allowed = [](const std::string& op, const std::string& values) {
    return choice_for(parse_scheduling(R"({"strategy": "node_label", "hard": {"region": {"op": ")" + op +
                                       R"(", "values": [)" + values + R"(]}}})"),
                      kLabels)
        .has_value();
  };
  EXPECT_TRUE(allowed("in", "\"us\", \"eu\""));
  EXPECT_FALSE(allowed("in", "\"eu\""));
  EXPECT_TRUE(allowed("not_in", "\"eu\""));
  EXPECT_TRUE(allowed("exists", ""));
  EXPECT_FALSE(allowed("does_not_exist", ""));
}

}  // namespace
}  // namespace skate::wire
