// The life of actors, event by event, against the whole core.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "control/core/control_core.h"

namespace skate::control {
namespace {

using wire::ActorState;
using wire::ControlMethod;
using wire::DeathKind;

class Actors : public testing::Test {
 protected:
  static std::unique_ptr<ControlCore> fresh_core() {
    CoreOptions options{"session", "{}", "1.0", 10'000};
    return std::make_unique<ControlCore>(std::move(options));
  }
  Actors() {
    node_ = NodeId::random();
    register_node(node_, 4);
    driver_ = {WorkerId::random(), node_};
    wire::RegisterJob job;
    job.key = ++key_;
    job.driver = driver_;
    job.name_space = "ns";
    job.job_json = R"({"entrypoint":"test"})";
    job_ = ask<wire::RegisterJobReply>(ControlMethod::kRegisterJob, job)->job;
  }

  template <class Reply, class Message>
  Result<Reply> ask(ControlMethod method, const Message& message, std::optional<NodeId> from = {}) {
    out_ = {};
    Result<std::string> result =
        core_owner_->handle(from.value_or(node_), method, wire::encode(message), {now_, 1000 + now_}, out_);
    EXPECT_EQ(core_owner_->check(), "");
    for (const NodeMessage& sent : out_.messages) sent_.push_back(sent);
    if (!result) return result.error();
    return wire::decode<Reply>(std::string_view(*result));
  }
  template <class Reply, class Message>
  void tell(ControlMethod method, const Message& message) {
    Result<Reply> reply = ask<Reply>(method, message);
    EXPECT_TRUE(reply.ok()) << reply.error().message;
  }
  void register_node(const NodeId& node, int64_t cpus, std::vector<wire::ActorInfo> live = {}) {
    wire::RegisterNode message;
    message.node = node;
    message.version = "1.0";
    message.resources = {{"CPU", cpus * wire::kResourceUnit}};
    message.live_actors = std::move(live);
    Result<wire::RegisterNodeReply> reply =
        ask<wire::RegisterNodeReply>(ControlMethod::kRegisterNode, message, node);
    EXPECT_TRUE(reply.ok()) << reply.error().message;
  }

  wire::RegisterActor actor(std::string name = "", int64_t max_restarts = 0) {
    wire::RegisterActor message;
    message.key = ++key_;
    message.actor = ActorId::make(job_);
    message.owner = driver_;
    message.job = job_;
    message.class_name = "Counter";
    message.name = std::move(name);
    message.name_space = "ns";
    message.max_restarts = max_restarts;
    return message;
  }
  wire::PlaceActor place_message(const wire::RegisterActor& actor) {
    wire::PlaceActor message;
    message.key = ++key_;
    message.spec.actor = actor.actor;
    message.spec.job = actor.job;
    message.spec.placement_resources = {{"CPU", wire::kResourceUnit}};
    return message;
  }
  void add(const wire::RegisterActor& message) {
    ASSERT_TRUE(ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, message).ok());
  }
  void place(const wire::RegisterActor& message) {
    ASSERT_TRUE(ask<wire::Empty>(ControlMethod::kPlaceActor, place_message(message)).ok());
  }
  WorkerId created(const ActorId& id, uint64_t incarnation = 0) {
    wire::ActorCreatedReport report;
    report.actor = id;
    report.incarnation = incarnation;
    report.address = {WorkerId::random(), node_};
    report.ok = true;
    EXPECT_TRUE(ask<wire::Empty>(ControlMethod::kActorCreated, report).ok());
    return report.address.worker;
  }
  WorkerId live(const wire::RegisterActor& message) {
    add(message);
    place(message);
    return created(message.actor);
  }
  void died(const WorkerId& worker, const ActorId& id, uint64_t incarnation,
            DeathKind kind = DeathKind::kSignalled) {
    wire::WorkerDied report;
    report.worker = {worker, node_};
    report.actor = id;
    report.incarnation = incarnation;
    report.cause.kind = kind;
    report.cause.message = "it died";
    EXPECT_TRUE(ask<wire::Empty>(ControlMethod::kWorkerDied, report).ok());
  }
  wire::ActorInfo info(const ActorId& id) {
    return *ask<wire::ActorInfo>(ControlMethod::kGetActor, wire::ActorRef{id});
  }
  size_t count(wire::NodeCommand command) const {
    return static_cast<size_t>(std::count_if(out_.messages.begin(), out_.messages.end(),
                                             [&](const NodeMessage& m) { return m.command == command; }));
  }
  void kill(const ActorId& id, bool no_restart) {
    wire::KillActor message;
    message.key = ++key_;
    message.actor = id;
    message.no_restart = no_restart;
    EXPECT_TRUE(ask<wire::Empty>(ControlMethod::kKillActor, message).ok());
  }

  std::unique_ptr<ControlCore> core_owner_ = fresh_core();
  TimeMs now_ = 0;
  uint64_t key_ = 0;
  NodeId node_;
  wire::Address driver_;
  JobId job_;
  Outbox out_;
  std::vector<NodeMessage> sent_;
};

TEST_F(Actors, LivesAndDies) {
  const auto message = actor("one");
  add(message);
  EXPECT_EQ(info(message.actor).state, ActorState::kPending);
  place(message);
  ASSERT_EQ(out_.messages.size(), 1u);
  const auto start = *wire::decode<wire::StartActor>(std::string_view(out_.messages[0].body));
  EXPECT_EQ(start.job_json, R"({"entrypoint":"test"})");
  const WorkerId worker = created(message.actor);
  EXPECT_EQ(count(wire::NodeCommand::kPublish), 1u) << "the owner is told";
  EXPECT_EQ(info(message.actor).address.worker, worker);
  died(worker, message.actor, 0);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
  EXPECT_EQ(info(message.actor).death.message, "it died");
  EXPECT_FALSE(ask<wire::ActorInfo>(ControlMethod::kGetNamedActor, wire::GetNamedActor{"one", "ns"}).ok());
}

TEST_F(Actors, NamesAreTakenOnceAndFreedOnDeath) {
  const auto first = actor("one");
  const WorkerId worker = live(first);
  EXPECT_EQ(ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, actor("one")).error().code,
            ErrorCode::kExists);
  auto other_space = actor("one");
  other_space.name_space = "other";
  add(other_space);
  auto second = actor("one");
  second.get_if_exists = true;
  auto reply = ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, second);
  EXPECT_TRUE(reply->existed);
  EXPECT_EQ(reply->info.actor, first.actor);
  died(worker, first.actor, 0);
  // A late duplicate gets the first answer, although the name is free by now.
  reply = ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, second);
  EXPECT_TRUE(reply->existed);
  add(actor("one"));
  EXPECT_EQ(ask<wire::ListNamedActorsReply>(ControlMethod::kListNamedActors, wire::ListNamedActors{true, ""})
                ->names.size(),
            2u);
  EXPECT_EQ(
      ask<wire::ListNamedActorsReply>(ControlMethod::kListNamedActors, wire::ListNamedActors{false, "other"})
          ->names.size(),
      1u);
}

TEST_F(Actors, RestartsAreCountedAndEnd) {
  const auto message = actor("", 2);
  WorkerId worker = live(message);
  for (uint64_t life = 0; life < 2; ++life) {
    died(worker, message.actor, life);
    EXPECT_EQ(info(message.actor).state, ActorState::kRestarting);
    EXPECT_EQ(info(message.actor).restarts_left, static_cast<int64_t>(1 - life));
    died(worker, message.actor, life);  // again: no effect
    EXPECT_EQ(info(message.actor).incarnation, life + 1);
    worker = created(message.actor, life + 1);
  }
  died(worker, message.actor, 2);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
}

TEST_F(Actors, UnlimitedRestarts) {
  const auto message = actor("", -1);
  WorkerId worker = live(message);
  for (uint64_t life = 0; life < 50; ++life) {
    died(worker, message.actor, life);
    worker = created(message.actor, life + 1);
  }
  EXPECT_EQ(info(message.actor).restarts_left, -1);
  died(worker, message.actor, 50, DeathKind::kIntended);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead) << "exit_actor ends it for good";
}

TEST_F(Actors, ConstructorFailureIsFinalACrashInItIsNot) {
  const auto message = actor("", 1);
  add(message);
  place(message);
  died(WorkerId::random(), message.actor, 0, DeathKind::kOutOfMemory);
  EXPECT_EQ(info(message.actor).state, ActorState::kRestarting);
  wire::ActorCreatedReport report;
  report.actor = message.actor;
  report.incarnation = 1;
  report.cause.kind = DeathKind::kConstructor;
  report.cause.error_value = "the exception";
  tell<wire::Empty>(ControlMethod::kActorCreated, report);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
  EXPECT_EQ(info(message.actor).death.error_value, "the exception");
}

TEST_F(Actors, KillAndKillWithRestart) {
  const auto message = actor("one", 1);
  const WorkerId worker = live(message);
  kill(message.actor, false);
  EXPECT_EQ(info(message.actor).state, ActorState::kAlive) << "until its node says so";
  EXPECT_EQ(sent_.back().command, wire::NodeCommand::kStopActor);
  died(worker, message.actor, 0, DeathKind::kKilled);
  created(message.actor, 1);
  EXPECT_EQ(info(message.actor).state, ActorState::kAlive);
  kill(message.actor, true);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
  EXPECT_EQ(info(message.actor).death.kind, DeathKind::kKilled);
  created(message.actor, 1);  // a report that was under way
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
}

TEST_F(Actors, ARepeatedKillDoesNotReachTheNextLife) {
  const auto message = actor("", 5);
  const WorkerId worker = live(message);
  wire::KillActor kill_once;
  kill_once.key = ++key_;
  kill_once.actor = message.actor;
  tell<wire::Empty>(ControlMethod::kKillActor, kill_once);
  EXPECT_EQ(count(wire::NodeCommand::kStopActor), 1u);
  died(worker, message.actor, 0, DeathKind::kKilled);
  created(message.actor, 1);
  tell<wire::Empty>(ControlMethod::kKillActor, kill_once);
  EXPECT_EQ(count(wire::NodeCommand::kStopActor), 0u);
}

TEST_F(Actors, OutOfScopeDrains) {
  const auto message = actor("", 3);
  add(message);
  place(message);
  tell<wire::Empty>(ControlMethod::kActorOutOfScope, wire::ActorRef{message.actor});
  EXPECT_EQ(count(wire::NodeCommand::kStopActor), 0u) << "its queued calls come first";
  const WorkerId worker = created(message.actor);
  ASSERT_EQ(count(wire::NodeCommand::kStopActor), 1u);
  died(worker, message.actor, 0, DeathKind::kSignalled);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead) << "nobody needs another life of it";
}

TEST_F(Actors, OwnersTakeTheirActorsAlong) {
  const auto parent = actor();
  const WorkerId parent_worker = live(parent);
  auto child = actor("child");
  child.owner = {parent_worker, node_};
  const WorkerId child_worker = live(child);
  auto grandchild = actor();
  grandchild.owner = {child_worker, node_};
  live(grandchild);
  auto detached = actor("stays");
  detached.owner = {child_worker, node_};
  detached.detached = true;
  live(detached);
  died(parent_worker, parent.actor, 0);
  EXPECT_EQ(info(child.actor).state, ActorState::kDead);
  EXPECT_EQ(info(child.actor).death.kind, DeathKind::kOwnerDied);
  EXPECT_EQ(info(grandchild.actor).state, ActorState::kDead);
  EXPECT_EQ(info(detached.actor).state, ActorState::kAlive);
  auto late = actor();
  late.owner = {child_worker, node_};
  EXPECT_FALSE(ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, late).ok())
      << "asked for by the dead";
}

TEST_F(Actors, AnyWorkerCanOwn) {
  auto owned = actor();
  owned.owner = {WorkerId::random(), node_};
  live(owned);
  died(owned.owner.worker, ActorId(), 0);
  EXPECT_EQ(info(owned.actor).state, ActorState::kDead);
}

TEST_F(Actors, LongChainsOfOwnersNeedNoStack) {
  WorkerId owner = driver_.worker;
  WorkerId first;
  ActorId first_actor, last;
  for (int i = 0; i < 3000; ++i) {
    auto link = actor();
    link.owner = {owner, node_};
    Outbox out;
    ASSERT_TRUE(core_owner_->handle(node_, ControlMethod::kRegisterActor, wire::encode(link), {}, out).ok());
    ASSERT_TRUE(
        core_owner_->handle(node_, ControlMethod::kPlaceActor, wire::encode(place_message(link)), {}, out)
            .ok());
    wire::ActorCreatedReport report;
    report.actor = link.actor;
    report.address = {WorkerId::random(), node_};
    report.ok = true;
    ASSERT_TRUE(core_owner_->handle(node_, ControlMethod::kActorCreated, wire::encode(report), {}, out).ok());
    owner = report.address.worker;
    if (i == 0) {
      first = owner;
      first_actor = link.actor;
    }
    last = link.actor;
  }
  died(first, first_actor, 0);
  EXPECT_EQ(info(last).state, ActorState::kDead);
}

TEST_F(Actors, JobEndTakesAllButDetachedAndTheirs) {
  const auto plain = actor();
  live(plain);
  auto detached = actor("stays");
  detached.detached = true;
  const WorkerId detached_worker = live(detached);
  auto theirs = actor();
  theirs.owner = {detached_worker, node_};
  live(theirs);
  wire::FinishJob finish{++key_, job_, false};
  tell<wire::Empty>(ControlMethod::kFinishJob, finish);
  EXPECT_EQ(count(wire::NodeCommand::kJobFinished), 1u);
  EXPECT_EQ(info(plain.actor).state, ActorState::kDead);
  EXPECT_EQ(info(detached.actor).state, ActorState::kAlive);
  EXPECT_EQ(info(theirs.actor).state, ActorState::kAlive);
  EXPECT_FALSE(ask<wire::RegisterActorReply>(ControlMethod::kRegisterActor, actor()).ok());
  died(detached_worker, detached.actor, 0);
  EXPECT_EQ(info(theirs.actor).state, ActorState::kDead);
}

TEST_F(Actors, FailedArgumentsKillBeforeBirth) {
  const auto message = actor("one", 3);
  add(message);
  wire::PlaceActor failed = place_message(message);
  failed.failed = true;
  failed.cause.kind = DeathKind::kNeverCreated;
  tell<wire::Empty>(ControlMethod::kPlaceActor, failed);
  EXPECT_EQ(info(message.actor).state, ActorState::kDead);
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 0u);
}

TEST_F(Actors, WaitsForANodeThatFits) {
  const auto message = actor();
  add(message);
  wire::PlaceActor big = place_message(message);
  big.spec.placement_resources = {{"CPU", 8 * wire::kResourceUnit}};
  tell<wire::Empty>(ControlMethod::kPlaceActor, big);
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 0u);
  EXPECT_EQ(info(message.actor).state, ActorState::kPending);
  register_node(NodeId::random(), 8);
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 1u);
}

TEST_F(Actors, HardAffinityToNoNodeIsUnschedulable) {
  const auto message = actor();
  add(message);
  wire::PlaceActor elsewhere = place_message(message);
  elsewhere.spec.scheduling = R"({"node_id":")" + NodeId::random().hex() + R"(","soft":false})";
  tell<wire::Empty>(ControlMethod::kPlaceActor, elsewhere);
  EXPECT_EQ(info(message.actor).death.kind, DeathKind::kUnschedulable);
}

TEST_F(Actors, NodeLossRestartsElsewhereAndTheNodeMayNotComeBack) {
  const auto message = actor("one", 1);
  add(message);
  place(message);
  created(message.actor);
  const NodeId second = NodeId::random();
  const NodeId driver_node = node_;
  register_node(second, 4);
  auto orphan = actor();
  live(orphan);
  core_owner_->node_disconnected(driver_node, {100, 0});
  Outbox out;
  core_owner_->tick({9'000, 0}, out);
  EXPECT_TRUE(out.messages.empty()) << "it may come back";
  core_owner_->tick({10'100, 0}, out);
  EXPECT_EQ(core_owner_->check(), "");
  const auto& record = core_owner_->actors().all().at(message.actor);
  EXPECT_EQ(record.info.state, ActorState::kDead) << "its driver was on that node, too";
  EXPECT_EQ(core_owner_->jobs().find(job_)->failed, true);
  wire::RegisterNode again;
  again.node = driver_node;
  again.version = "1.0";
  Outbox ignored;
  EXPECT_EQ(core_owner_->handle(NodeId(), ControlMethod::kRegisterNode, wire::encode(again), {}, ignored)
                .error()
                .code,
            ErrorCode::kDenied);
}

TEST_F(Actors, ANodeThatComesBackIsToldAgain) {
  const auto starting = actor("", 1);
  add(starting);
  place(starting);
  const auto killed = actor();
  live(killed);
  core_owner_->node_disconnected(node_, {0, 0});
  kill(killed.actor, true);
  wire::ActorInfo still_there;
  still_there.actor = killed.actor;
  still_there.state = ActorState::kAlive;
  register_node(node_, 4, {still_there});
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 1u);
  EXPECT_EQ(count(wire::NodeCommand::kStopActor), 1u);
}

TEST_F(Actors, RecoversWhatWasLoggedAndLearnsTheRest) {
  std::map<std::pair<Table, std::string>, std::string> disk;
  auto log = [&](const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      if (row.value)
        disk[{row.table, row.key}] = *row.value;
      else
        disk.erase({row.table, row.key});
    }
  };
  core_owner_ = fresh_core();
  register_node(node_, 4);
  wire::RegisterJob job;
  job.key = ++key_;
  job.driver = driver_;
  const auto job_reply = ask<wire::RegisterJobReply>(ControlMethod::kRegisterJob, job);
  log(out_.rows);
  const auto named = actor("one", 1);
  add(named);
  log(out_.rows);
  place(named);
  log(out_.rows);
  const WorkerId worker = created(named.actor);
  log(out_.rows);
  const auto unnamed = actor();
  add(unnamed);  // this one's rows get lost
  place(unnamed);
  created(unnamed.actor);
  const wire::ActorInfo unnamed_info = info(unnamed.actor);
  wire::Kv put;
  put.key = ++key_;
  put.operation = wire::KvOperation::kPut;
  put.name = "k";
  put.value = "v";
  tell<wire::KvReply>(ControlMethod::kKv, put);
  log(out_.rows);

  core_owner_ = fresh_core();
  std::vector<Row> rows;
  for (const auto& [key, value] : disk) rows.push_back({key.first, key.second, value});
  ASSERT_TRUE(core_owner_->recover(rows, {0, 0}).ok());
  EXPECT_EQ(core_owner_->check(), "");
  EXPECT_EQ(ask<wire::RegisterJobReply>(ControlMethod::kRegisterJob, job, node_).ok(), true)
      << "the duplicate's answer was logged";
  EXPECT_EQ(core_owner_->jobs().all().size(), 1u);
  wire::ActorInfo named_info;
  named_info.actor = named.actor;
  named_info.state = ActorState::kAlive;
  named_info.address = {worker, node_};
  register_node(node_, 4, {named_info, unnamed_info});
  EXPECT_EQ(count(wire::NodeCommand::kStopActor), 0u);
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 0u);
  EXPECT_EQ(info(named.actor).state, ActorState::kAlive);
  EXPECT_EQ(info(unnamed.actor).state, ActorState::kAlive);
  EXPECT_EQ(info(unnamed.actor).owner, driver_);
  put.operation = wire::KvOperation::kGet;
  EXPECT_EQ(ask<wire::KvReply>(ControlMethod::kKv, put)->value, "v");
  died(worker, named.actor, 0);
  EXPECT_EQ(count(wire::NodeCommand::kStartActor), 1u) << "its spec was logged";
  job.key = ++key_;
  EXPECT_NE(ask<wire::RegisterJobReply>(ControlMethod::kRegisterJob, job)->job, job_reply->job);
}

}  // namespace
}  // namespace skate::control
