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
  EXPECT_EQ(choose_node(nodes, {}, wire::parse_scheduling("SPREAD")), node_id(2));
  EXPECT_EQ(choose_node(nodes, {}, wire::parse_scheduling("\"SPREAD\"")), node_id(2));
  EXPECT_EQ(choose_node(nodes, {}, wire::parse_scheduling(R"({"strategy":"spread"})")), node_id(2));
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
    return wire::parse_scheduling(R"({"node_id":")" + node_id(number).hex() + R"(","soft":)" +
                                  (soft ? "true" : "false") + "}");
  };
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(2, false)), node_id(2));
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(7, false)), std::nullopt);
  EXPECT_EQ(choose_node(nodes, cpus(1), wish(7, true)), node_id(1));
  EXPECT_EQ(choose_node(nodes, cpus(1), wire::parse_scheduling(R"({"node_id":"no id","soft":false})")),
            std::nullopt);
}

TEST(Placement, Bundles) {
  const std::vector<NodeView> two{view(1, 4, 4), view(2, 4, 4)};
  const std::vector<BundleWish> pair{{cpus(2)}, {cpus(2)}};
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kPack), (std::vector{node_id(1), node_id(1)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kStrictPack), (std::vector{node_id(1), node_id(1)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kSpread), (std::vector{node_id(1), node_id(2)}));
  EXPECT_EQ(plan_bundles(two, pair, GroupStrategy::kStrictSpread), (std::vector{node_id(1), node_id(2)}));
  const std::vector<BundleWish> three{{cpus(2)}, {cpus(2)}, {cpus(2)}};
  EXPECT_EQ(plan_bundles(two, three, GroupStrategy::kStrictSpread), std::nullopt);
  EXPECT_EQ(plan_bundles(two, three, GroupStrategy::kStrictPack), std::nullopt);
  EXPECT_TRUE(plan_bundles(two, three, GroupStrategy::kPack));
  const std::vector<BundleWish> uneven{{cpus(1)}, {cpus(4)}, {cpus(3)}};
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
  PlacementGroupId create(std::vector<wire::Resources> bundles, std::string strategy = "PACK",
                          bool detached = false, const WorkerId& creator = WorkerId::nil()) {
    wire::PlacementGroupRequest request;
    request.group = PlacementGroupId::random();
    request.bundles = std::move(bundles);
    request.strategy = std::move(strategy);
    request.detached = detached;
    request.creator = creator;
    request.job = JobId::from_bytes("job1");
    EXPECT_TRUE(groups_.create(request, false, out_).ok());
    return request.group;
  }
  std::string state(const PlacementGroupId& group) {
    wire::PlacementGroupRequest request;
    request.group = group;
    return groups_.get(request, NodeId::nil())->state;
  }
  /// The nodes answer every reservation that was ordered since the last call. Returns how many there were.
  size_t answer(bool ok = true) {
    size_t answered = 0;
    for (const NodeMessage& message : std::exchange(out_.messages, {})) {
      if (message.command != wire::NodeCommand::kReserveBundles) continue;
      const auto order = wire::decode<wire::ReserveBundles>(std::string_view(message.body));
      groups_.reserved(message.node, {order->group, order->attempt, ok}, out_);
      ++answered;
    }
    EXPECT_EQ(groups_.check(), "");
    return answered;
  }
  size_t sent(wire::NodeCommand command) const {
    return static_cast<size_t>(
        std::count_if(out_.messages.begin(), out_.messages.end(),
                      [&](const NodeMessage& message) { return message.command == command; }));
  }
  NodeTable nodes_;
  GroupTable groups_;
  Outbox out_;
};

TEST_F(Groups, CreatedWhenItsNodeHasReserved) {
  const PlacementGroupId group = create({cpus(2), cpus(2)});
  EXPECT_EQ(state(group), "PENDING");
  EXPECT_EQ(sent(wire::NodeCommand::kReserveBundles), 1u) << "one order for all bundles of a node";
  EXPECT_EQ(answer(), 1u);
  EXPECT_EQ(state(group), "CREATED");
  EXPECT_EQ(sent(wire::NodeCommand::kCommitBundles), 1u);
}

TEST_F(Groups, EveryNodeOrNone) {
  add_node(2, 4);
  const PlacementGroupId group = create({cpus(1), cpus(1)}, "STRICT_SPREAD");
  ASSERT_EQ(sent(wire::NodeCommand::kReserveBundles), 2u);
  std::vector<wire::ReserveBundles> orders;
  for (const NodeMessage& message : std::exchange(out_.messages, {}))
    orders.push_back(*wire::decode<wire::ReserveBundles>(std::string_view(message.body)));
  EXPECT_FALSE(orders[0].waits) << "nobody holds a part and waits for the rest";
  groups_.reserved(node_id(1), {group, 1, true}, out_);
  EXPECT_EQ(state(group), "PENDING");
  groups_.reserved(node_id(2), {group, 1, false}, out_);
  EXPECT_EQ(sent(wire::NodeCommand::kReturnBundles), 2u);
  groups_.reserved(node_id(1), {group, 1, true}, out_);
  EXPECT_EQ(state(group), "PENDING") << "an answer to an earlier attempt changes nothing";
  out_.messages.clear();
  groups_.plan_waiting(out_);
  EXPECT_EQ(answer(), 2u);
  EXPECT_EQ(state(group), "CREATED");
}

TEST_F(Groups, WaitsAtTheOneNodeThatCouldHoldIt) {
  nodes_.report({node_id(1), 1, cpus(0), 0, {}, {}, {}});
  const PlacementGroupId group = create({cpus(2)});
  ASSERT_EQ(out_.messages.size(), 1u);
  EXPECT_TRUE(wire::decode<wire::ReserveBundles>(std::string_view(out_.messages[0].body))->waits);
  EXPECT_EQ(state(group), "PENDING");
  EXPECT_EQ(state(create({cpus(5)})), "INFEASIBLE");
  EXPECT_EQ(state(create({cpus(1), cpus(1)}, "STRICT_SPREAD")), "INFEASIBLE");
}

TEST_F(Groups, RemovalReturnsTheBundlesAndTwiceDoesNoHarm) {
  const PlacementGroupId group = create({cpus(2)});
  answer();
  out_.messages.clear();
  EXPECT_EQ(groups_.remove(group, out_)->state, "REMOVED");
  EXPECT_EQ(groups_.remove(group, out_)->state, "REMOVED");
  ASSERT_EQ(out_.messages.size(), 1u);
  const auto order = wire::decode<wire::GroupOrder>(std::string_view(out_.messages[0].body));
  EXPECT_TRUE(order->removed);
  EXPECT_NE(order->why.find(group.hex()), std::string::npos) << "the cause names the group";
}

TEST_F(Groups, WatchersHearOfEachChange) {
  const PlacementGroupId group = create({cpus(2)});
  wire::PlacementGroupRequest request;
  request.group = group;
  ASSERT_TRUE(groups_.get(request, node_id(1)).ok());
  answer();
  EXPECT_EQ(sent(wire::NodeCommand::kPublish), 1u);
  ASSERT_TRUE(groups_.remove(group, out_).ok());
  EXPECT_EQ(sent(wire::NodeCommand::kPublish), 2u);
}

TEST_F(Groups, LabelsOfBundles) {
  wire::RegisterNode info;
  info.node = node_id(2);
  info.resources = cpus(1);
  info.labels = {{"region", "eu"}};
  ASSERT_TRUE(nodes_.add(info, 0).ok());
  wire::PlacementGroupRequest request;
  request.bundles = {cpus(1)};
  for (const auto& [selector, expected] :
       std::map<std::string, std::string>{{"eu", "PENDING"}, {"!eu", "PENDING"}, {"us", "INFEASIBLE"}}) {
    request.group = PlacementGroupId::random();
    request.bundle_labels = {{{"region", selector}}};
    EXPECT_EQ(groups_.create(request, false, out_)->state, expected) << selector;
  }
  ASSERT_EQ(out_.messages.size(), 2u);
  EXPECT_NE(out_.messages[0].node, out_.messages[1].node);
}

TEST_F(Groups, PlacedAgainAsAWhole) {
  const PlacementGroupId group = create({cpus(2), cpus(2)});
  answer();
  nodes_.die(node_id(1), "lost");
  groups_.node_died(node_id(1), out_);
  EXPECT_EQ(state(group), "INFEASIBLE");
  add_node(2, 4);
  out_.messages.clear();
  groups_.plan_waiting(out_);
  answer();
  EXPECT_EQ(state(group), "CREATED");
}

TEST_F(Groups, ANodeThatComesBackIsToldWhatItHolds) {
  const PlacementGroupId kept = create({cpus(1)}), removed = create({cpus(1)});
  answer();
  ASSERT_TRUE(groups_.remove(removed, out_).ok());
  out_.messages.clear();
  wire::RegisterNode info;
  info.node = node_id(1);
  info.reservations = {{kept, 1}, {removed, 1}};
  groups_.node_registered(info, out_);
  EXPECT_EQ(sent(wire::NodeCommand::kReserveBundles), 1u);
  EXPECT_EQ(sent(wire::NodeCommand::kCommitBundles), 1u);
  EXPECT_EQ(sent(wire::NodeCommand::kReturnBundles), 1u);
}

TEST_F(Groups, GoWithTheirJobUnlessDetachedOrMadeByALivingActor) {
  const WorkerId actor = WorkerId::random();
  const PlacementGroupId plain = create({cpus(1)}), detached = create({cpus(1)}, "PACK", true),
                         by_actor = create({cpus(1)}, "PACK", false, actor);
  answer();
  bool lives = true;
  auto is_living = [&](const WorkerId& worker) { return worker == actor && lives; };
  groups_.job_finished(JobId::from_bytes("job1"), is_living, out_);
  EXPECT_EQ(state(plain), "REMOVED");
  EXPECT_EQ(state(detached), "CREATED");
  EXPECT_EQ(state(by_actor), "CREATED");
  lives = false;
  groups_.end_orphans(is_living, out_);
  EXPECT_EQ(state(by_actor), "REMOVED");
}

TEST_F(Groups, NamesAreFoundAndTakenOnce) {
  wire::PlacementGroupRequest request;
  request.group = PlacementGroupId::random();
  request.bundles = {cpus(1)};
  request.name = "mine";
  request.name_space = "ns";
  ASSERT_TRUE(groups_.create(request, false, out_).ok());
  wire::PlacementGroupRequest again = request;
  again.group = PlacementGroupId::random();
  EXPECT_EQ(groups_.create(again, false, out_).error().code, ErrorCode::kExists);
  wire::PlacementGroupRequest by_name = request;
  by_name.group = PlacementGroupId::nil();
  EXPECT_EQ(groups_.get(by_name, NodeId::nil())->group, request.group);
  ASSERT_TRUE(groups_.remove(request.group, out_).ok());
  EXPECT_FALSE(groups_.get(by_name, NodeId::nil()).ok());
  EXPECT_TRUE(groups_.create(again, false, out_).ok());
}

TEST_F(Groups, WhereWhatRunsInAGroupGoes) {
  const PlacementGroupId group = create({cpus(1), cpus(2)});
  EXPECT_EQ(groups_.place_for(group, -1, cpus(1)).kind, GroupPlace::Kind::kLater);
  answer();
  EXPECT_EQ(groups_.place_for(group, -1, cpus(2)).node, node_id(1));
  EXPECT_EQ(groups_.place_for(group, 0, cpus(2)).kind, GroupPlace::Kind::kNever);
  EXPECT_EQ(groups_.place_for(group, 7, cpus(1)).kind, GroupPlace::Kind::kNever);
  EXPECT_EQ(groups_.place_for(PlacementGroupId::random(), -1, cpus(1)).kind, GroupPlace::Kind::kNever);
}

TEST_F(Groups, BadRequests) {
  wire::PlacementGroupRequest request;
  request.group = PlacementGroupId::random();
  EXPECT_FALSE(groups_.create(request, false, out_).ok());
  request.bundles = {cpus(1)};
  request.strategy = "NEAR";
  EXPECT_FALSE(groups_.create(request, false, out_).ok());
  request.strategy = "PACK";
  request.bundles = {{{"CPU", -1}}};
  EXPECT_FALSE(groups_.create(request, false, out_).ok());
  request.bundles = {wire::Resources{}};
  EXPECT_FALSE(groups_.create(request, false, out_).ok());
  request.group = PlacementGroupId::random();
  EXPECT_FALSE(groups_.get(request, NodeId::nil()).ok());
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
