// Placement, placement groups, key-value and remembered answers.
#include <gtest/gtest.h>

#include "control/core/answers.h"
#include "control/core/groups.h"
#include "control/core/kv.h"
#include "control/core/placement.h"

namespace skate::control {
namespace {

wire::Resources cpus(int64_t count) { return {{"CPU", count * wire::kResourceUnit}}; }

NodeId node_id(uint8_t number) {
  NodeId id;
  id.bytes.fill(number);
  return id;
}

NodeView view(uint8_t number, int64_t total, int64_t available, uint64_t actors = 0) {
  return {node_id(number), cpus(total), cpus(available), actors};
}

TEST(Placement, PacksToHalfThenSpreads) {
  std::vector<NodeView> nodes{view(1, 10, 9), view(2, 10, 10)};
  EXPECT_EQ(choose_node(nodes, cpus(1), {}), node_id(1));
  nodes[0].available = cpus(4);
  EXPECT_EQ(choose_node(nodes, cpus(1), {}), node_id(2));
  nodes[1].available = cpus(3);
  EXPECT_EQ(choose_node(nodes, cpus(1), {}), node_id(1));
}

TEST(Placement, SpreadTakesTheLeastUsed) {
  const std::vector<NodeView> nodes{view(1, 10, 10, 3), view(2, 10, 10, 1), view(3, 10, 5)};
  EXPECT_EQ(choose_node(nodes, {}, parse_scheduling("SPREAD")), node_id(2));
  EXPECT_EQ(choose_node(nodes, {}, parse_scheduling("\"SPREAD\"")), node_id(2));
  EXPECT_EQ(choose_node(nodes, {}, parse_scheduling(R"({"strategy":"spread"})")), node_id(2));
}

TEST(Placement, RoomFirstThenWhatCouldEverFit) {
  std::vector<NodeView> nodes{view(1, 10, 0), view(2, 4, 4)};
  EXPECT_EQ(choose_node(nodes, cpus(4), {}), node_id(2));
  EXPECT_EQ(choose_node(nodes, cpus(8), {}), node_id(1)) << "it waits there";
  EXPECT_EQ(choose_node(nodes, cpus(11), {}), std::nullopt);
  EXPECT_EQ(choose_node(nodes, {{"GPU", 1}}, {}), std::nullopt);
}

TEST(Placement, Affinity) {
  const std::vector<NodeView> nodes{view(1, 4, 4), view(2, 4, 4)};
  auto wish = [](uint8_t number, bool soft) {
    return parse_scheduling(R"({"node_id":")" + node_id(number).hex() + R"(","soft":)" +
                            (soft ? "true" : "false") + "}");
  };
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(2, false)), node_id(2));
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(7, false)), std::nullopt);
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(7, true)), node_id(1));
  EXPECT_EQ(choose_node(nodes, cpus(1), parse_scheduling(R"({"node_id":"no id","soft":false})")),
            std::nullopt);
}

TEST(Placement, Bundles) {
  const std::vector<NodeView> two{view(1, 4, 4), view(2, 4, 4)};
  const std::vector<wire::Resources> pair{cpus(2), cpus(2)};
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kPack), (std::vector{node_id(1), node_id(1)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kStrictPack), (std::vector{node_id(1), node_id(1)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kSpread), (std::vector{node_id(1), node_id(2)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kStrictSpread), (std::vector{node_id(1), node_id(2)}));
  const std::vector<wire::Resources> three{cpus(2), cpus(2), cpus(2)};
  EXPECT_EQ(plan_bundles(two, three, GroupStrategy::kStrictSpread), std::nullopt);
  EXPECT_EQ(plan_bundles(two, three, GroupStrategy::kStrictPack), std::nullopt);
  EXPECT_TRUE(plan_bundles(two, three, GroupStrategy::kPack));
  const std::vector<wire::Resources> uneven{cpus(1), cpus(4), cpus(3)};
  EXPECT_EQ(plan_bundles(two, uneven, GroupStrategy::kPack),
            (std::vector{node_id(2), node_id(1), node_id(2)}));
}

class Groups : public testing::Test {
 protected:
  Groups() : groups_(nodes_) { add_node(1, 4); }
  void add_node(uint8_t number, int64_t count) {
    wire::RegisterNode info;
    info.node = node_id(number);
    info.resources = cpus(count);
    ASSERT_TRUE(nodes_.add(info, 0).ok());
  }
  wire::PlacementGroupReply create(std::vector<wire::Resources> bundles, std::string strategy = "PACK",
                                   bool detached = false) {
    wire::PlacementGroupRequest request;
    request.group = PlacementGroupId::random();
    request.bundles = std::move(bundles);
    request.strategy = std::move(strategy);
    request.detached = detached;
    request.job = JobId::from_bytes("job1");
    last_ = request.group;
    auto reply = groups_.create(request, out_);
    EXPECT_TRUE(reply.ok());
    return *reply;
  }
  NodeTable nodes_;
  GroupTable groups_;
  Outbox out_;
  PlacementGroupId last_;
};

TEST_F(Groups, AllOrNothing) {
  EXPECT_EQ(create({cpus(2), cpus(2)}).state, "CREATED");
  const PlacementGroupId first = last_;
  EXPECT_EQ(create({cpus(1)}).state, "PENDING") << "it fits once the first is gone";
  const PlacementGroupId second = last_;
  EXPECT_EQ(create({cpus(5)}).state, "INFEASIBLE");
  EXPECT_EQ(create({cpus(1), cpus(1)}, "STRICT_SPREAD").state, "INFEASIBLE");
  EXPECT_EQ(groups_.remove(first, out_)->state, "REMOVED");
  EXPECT_EQ(groups_.remove(first, out_)->state, "REMOVED") << "twice does no harm";
  EXPECT_EQ(groups_.get(second)->state, "CREATED");
}

TEST_F(Groups, PlacedAgainAsAWhole) {
  EXPECT_EQ(create({cpus(2), cpus(2)}).state, "CREATED");
  nodes_.die(node_id(1), "lost");
  groups_.node_died(node_id(1), out_);
  EXPECT_EQ(groups_.get(last_)->state, "INFEASIBLE");
  add_node(2, 4);
  groups_.plan_waiting(out_);
  EXPECT_EQ(groups_.get(last_)->state, "CREATED");
}

TEST_F(Groups, GoWithTheirJobUnlessDetached) {
  create({cpus(1)});
  const PlacementGroupId plain = last_;
  create({cpus(1)}, "PACK", true);
  groups_.job_finished(JobId::from_bytes("job1"), out_);
  EXPECT_EQ(groups_.get(plain)->state, "REMOVED");
  EXPECT_EQ(groups_.get(last_)->state, "CREATED");
}

TEST_F(Groups, BadRequests) {
  wire::PlacementGroupRequest request;
  EXPECT_FALSE(groups_.create(request, out_).ok());
  request.bundles = {cpus(1)};
  request.strategy = "NEAR";
  EXPECT_FALSE(groups_.create(request, out_).ok());
  request.strategy = "PACK";
  request.bundles = {{{"CPU", -1}}};
  EXPECT_FALSE(groups_.create(request, out_).ok());
  request.bundles = {wire::Resources{}};
  EXPECT_FALSE(groups_.create(request, out_).ok());
  EXPECT_FALSE(groups_.get(PlacementGroupId::random()).ok());
}

TEST(Kv, Operations) {
  KvTable table;
  Outbox out;
  auto apply = [&](wire::KvOperation operation, std::string name, std::string value = "", bool flag = false) {
    wire::Kv request;
    request.operation = operation;
    request.name_space = "s";
    request.name = std::move(name);
    request.value = std::move(value);
    request.overwrite = request.by_prefix = flag;
    return *table.apply(request, out);
  };
  using enum wire::KvOperation;
  EXPECT_FALSE(apply(kPut, "a1", "x").found);
  EXPECT_TRUE(apply(kPut, "a1", "y").found);
  EXPECT_EQ(apply(kGet, "a1").value, "x") << "not overwritten";
  apply(kPut, "a1", "z", true);
  apply(kPut, "a2", "w");
  apply(kPut, "b", "w");
  EXPECT_EQ(apply(kGet, "a1").value, "z");
  EXPECT_EQ(apply(kKeys, "a").keys, (std::vector<std::string>{"a1", "a2"}));
  EXPECT_FALSE(apply(kExists, "a").found);
  EXPECT_EQ(apply(kErase, "a", "", false).erased, 0u);
  EXPECT_EQ(apply(kErase, "a", "", true).erased, 2u);
  EXPECT_EQ(apply(kErase, "b").erased, 1u);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(table.bytes(), 0u);
}

TEST(Answers, AreRememberedAndBounded) {
  AnswerTable answers;
  Outbox out;
  answers.add({1, 1}, std::string("first"), out);
  EXPECT_TRUE(out.rows.empty()) << "what changed nothing durable is no durable answer";
  answers.add({1, 2}, Error{ErrorCode::kExists, "taken"}, out);
  EXPECT_EQ(**answers.find({1, 1}), "first");
  EXPECT_EQ(answers.find({1, 2})->error(), (Error{ErrorCode::kExists, "taken"}));
  EXPECT_FALSE(answers.find({2, 1}));
  for (uint64_t key = 10; key < 10 + AnswerTable::kEntriesMax; ++key)
    answers.add({3, key}, std::string("x"), out);
  EXPECT_FALSE(answers.find({1, 1}));
  EXPECT_TRUE(answers.find({3, 10}));
}

}  // namespace
}  // namespace skate::control
