// The core against a world of nodes and drivers that crash, repeat themselves and are heard late. A failure
// prints its seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "control/core/control_core.h"
#include "rt/random.h"

namespace skate::control {
namespace {

using wire::ActorState;
using wire::ControlMethod;
using wire::DeathKind;
using wire::NodeCommand;

/// A daemon that keeps the protocol: starts and stops of an incarnation may come twice, a stop beats its
/// start.
struct FakeNode {
  struct Life {
    uint64_t incarnation{};
    WorkerId worker;
    bool alive{};    // its worker runs (constructor done)
    bool running{};  // its worker runs at all
  };
  NodeId id;
  bool up = true;
  bool connected = true;
  std::map<ActorId, Life> lives;
  std::map<ActorId, uint64_t> ended;  // the lowest incarnation that may still start
};

class World {
 public:
  explicit World(uint64_t seed) : random_(seed), core_(CoreOptions{"s", "{}", "1.0", 1000}) {
    for (int i = 0; i < 3; ++i) add_node();
    for (int i = 0; i < 2; ++i) add_driver();
  }

  void step() {
    now_ += static_cast<TimeMs>(random_.below(50));
    switch (random_.below(16)) {
      case 0:
      case 1:
      case 2: register_actor(); break;
      case 3:
      case 4:
      case 5: deliver_request(); break;
      case 6:
      case 7:
      case 8:
      case 9: deliver_message(); break;
      case 10:
      case 11: advance_a_life(); break;
      case 12: kill_something(); break;
      case 13:
        if (random_.chance(0.2)) crash_worker();
        break;
      case 14:
        if (random_.chance(0.1)) toggle_connection();
        break;
      case 15:
        if (random_.chance(0.03))
          crash_node();
        else if (random_.chance(0.03))
          end_driver();
        break;
    }
    check();
  }

  /// No new faults: everything that is under way arrives, everything that waits happens.
  void settle() {
    for (const auto& node : nodes_) {
      if (node->up && !node->connected) reconnect(*node);
    }
    if (std::none_of(nodes_.begin(), nodes_.end(), [](const auto& node) { return node->up; })) add_node();
    for (int round = 0; round < 100000; ++round) {
      now_ += 10;
      tick();
      if (!requests_.empty()) {
        deliver_request();
      } else if (!messages_.empty()) {
        deliver_message();
      } else if (!unplaced_.empty()) {
        for (const auto& [id, place] : unplaced_)
          requests_.push_back({ControlMethod::kPlaceActor, place, home_node()});
        unplaced_.clear();
      } else if (!advance_any(false)) {
        if (!core_.next_deadline()) return;
        now_ = *core_.next_deadline();
      }
      check();
      if (failed()) return;
    }
    ADD_FAILURE() << "it never settles";
  }
  bool failed() const { return testing::Test::HasFailure(); }

  void check_settled() {
    for (const auto& [id, actor] : core_.actors().all()) {
      EXPECT_TRUE(actor.info.state == ActorState::kAlive || actor.info.state == ActorState::kDead)
          << id.hex() << " is in state " << static_cast<int>(actor.info.state);
      size_t running = 0;
      for (const auto& node : nodes_) {
        const auto life = node->lives.find(id);
        if (life != node->lives.end() && life->second.running) ++running;
      }
      EXPECT_EQ(running, actor.info.state == ActorState::kAlive ? 1u : 0u) << id.hex();
      if (actor.info.state == ActorState::kAlive && !actor.info.detached) {
        EXPECT_FALSE(dead_workers_.contains(actor.info.owner.worker)) << id.hex() << " outlives its owner";
      }
    }
  }

 private:
  struct Request {
    ControlMethod method;
    std::string body;
    NodeId from;
  };

  void check() {
    const std::string wrong = core_.check();
    EXPECT_EQ(wrong, "");
    std::map<ActorId, int> running;
    for (const auto& node : nodes_) {
      for (const auto& [id, life] : node->lives) running[id] += life.running;
    }
    for (const auto& [id, count] : running) EXPECT_LE(count, 1) << id.hex() << " lives twice";
  }
  void handle(const Request& request) {
    Outbox out;
    const Result<std::string> result =
        core_.handle(request.from, request.method, request.body, {now_, now_}, out);
    if (request.method == ControlMethod::kRegisterActor && result) {
      const auto reply = wire::decode<wire::RegisterActorReply>(std::string_view(*result));
      const auto asked = wire::decode<wire::RegisterActor>(std::string_view(request.body));
      if (!reply->existed && !core_.actors().all().at(asked->actor).placed) plan_place(*asked);
    }
    post(out);
  }
  void post(Outbox& out) {
    for (NodeMessage& message : out.messages) {
      FakeNode* node = find(message.node);
      if (node != nullptr && node->up && node->connected) messages_.push_back(std::move(message));
    }
  }
  void tick() {
    Outbox out;
    core_.tick({now_, now_}, out);
    post(out);
  }
  FakeNode* find(const NodeId& id) {
    for (const auto& node : nodes_) {
      if (node->id == id) return node.get();
    }
    return nullptr;
  }
  NodeId home_node() {
    for (const auto& node : nodes_) {
      if (node->up) return node->id;
    }
    return NodeId::nil();
  }
  void send(ControlMethod method, std::string body, const NodeId& from) {
    const size_t copies = random_.chance(0.2) ? 2 + random_.below(2) : 1;
    for (size_t i = 0; i < copies; ++i) requests_.push_back({method, body, from});
  }

  void add_node() {
    nodes_.push_back(std::make_unique<FakeNode>());
    nodes_.back()->id = id<NodeId>();
    reconnect(*nodes_.back());
  }
  template <class AnyId>
  AnyId id() {
    AnyId out;
    for (auto& byte : out.bytes) byte = static_cast<uint8_t>(random_.below(255));
    return out;
  }
  void add_driver() {
    wire::RegisterJob job;
    job.key = random_();
    job.driver = {id<WorkerId>(), home_node()};
    job.name_space = "ns";
    Outbox out;
    Result<std::string> reply =
        core_.handle(job.driver.node, ControlMethod::kRegisterJob, wire::encode(job), {now_, now_}, out);
    ASSERT_TRUE(reply.ok());
    drivers_.emplace_back(wire::decode<wire::RegisterJobReply>(std::string_view(*reply))->job, job.driver);
  }
  void reconnect(FakeNode& node) {
    node.connected = true;
    wire::RegisterNode message;
    message.node = node.id;
    message.version = "1.0";
    message.resources = {{"CPU", 4 * wire::kResourceUnit}};
    for (const auto& [actor, life] : node.lives) {
      if (!life.running) continue;
      wire::ActorInfo info;
      info.actor = actor;
      info.incarnation = life.incarnation;
      info.state = life.alive ? ActorState::kAlive : ActorState::kPending;
      info.address = {life.worker, node.id};
      message.live_actors.push_back(info);
    }
    Outbox out;
    Result<std::string> reply =
        core_.handle(NodeId::nil(), ControlMethod::kRegisterNode, wire::encode(message), {now_, now_}, out);
    if (!reply) {  // declared dead meanwhile: a daemon that hears this ends
      die(node);
      return;
    }
    post(out);
  }
  void die(FakeNode& node) {
    node.up = node.connected = false;
    for (auto& [actor, life] : node.lives) {
      if (life.running) dead_workers_.insert(life.worker);
      life.running = false;
    }
    std::erase_if(messages_, [&](const NodeMessage& message) { return message.node == node.id; });
    for (const auto& [job, driver] : drivers_) {
      if (driver.node == node.id) dead_workers_.insert(driver.worker);
    }
  }

  void register_actor() {
    if (registered_ > 60 || drivers_.empty()) return;
    ++registered_;
    wire::RegisterActor message;
    message.key = random_();
    const auto& [job, driver] = drivers_[random_.below(drivers_.size())];
    message.job = job;
    message.owner = driver;
    // Often an actor makes the actor.
    std::vector<wire::Address> owners;
    for (const auto& node : nodes_) {
      for (const auto& [actor, life] : node->lives) {
        if (life.alive && life.running) owners.push_back({life.worker, node->id});
      }
    }
    if (!owners.empty() && random_.chance(0.5)) message.owner = owners[random_.below(owners.size())];
    message.actor = ActorId(id<ActorId>());
    if (random_.chance(0.5)) message.name = "name" + std::to_string(random_.below(4));
    message.name_space = "ns";
    message.detached = random_.chance(0.2);
    message.get_if_exists = random_.chance(0.3);
    message.max_restarts = static_cast<int64_t>(random_.below(4)) - 1;
    if (message.max_restarts == -1 && random_.chance(0.5)) message.max_restarts = 0;
    send(ControlMethod::kRegisterActor, wire::encode(message), message.owner.node);
  }
  void plan_place(const wire::RegisterActor& registered) {
    wire::PlaceActor place;
    place.key = random_();
    place.spec.actor = registered.actor;
    place.spec.job = registered.job;
    place.spec.placement_resources = {{"CPU", wire::kResourceUnit}};
    place.failed = random_.chance(0.05);
    place.cause.kind = DeathKind::kNeverCreated;
    std::string body = wire::encode(place);
    if (random_.chance(0.8)) send(ControlMethod::kPlaceActor, body, registered.owner.node);
    unplaced_[registered.actor] = std::move(body);  // once more at the end: it may not have been sent yet
  }
  void deliver_request() {
    if (requests_.empty()) return;
    const size_t at = random_.below(std::min<size_t>(requests_.size(), 6));
    const Request request = std::move(requests_[at]);
    requests_.erase(requests_.begin() + static_cast<ptrdiff_t>(at));
    FakeNode* node = find(request.from);
    if (node != nullptr && node->up && !node->connected) {
      requests_.push_back(request);  // it waits until its daemon is connected again
      reconnect(*node);
      return;
    }
    if (node == nullptr || !node->up) return;
    handle(request);
  }
  void deliver_message() {
    if (messages_.empty()) return;
    const NodeMessage message = std::move(messages_.front());
    messages_.erase(messages_.begin());
    FakeNode* node = find(message.node);
    if (node == nullptr || !node->up) return;
    if (message.command == NodeCommand::kStartActor) {
      const auto start = *wire::decode<wire::StartActor>(std::string_view(message.body));
      FakeNode::Life& life = node->lives[start.spec.actor];
      const bool seen = !life.worker.is_nil() && life.incarnation >= start.incarnation;
      if (seen || start.incarnation < node->ended[start.spec.actor]) return;
      EXPECT_FALSE(life.running);
      life = {start.incarnation, id<WorkerId>(), false, true};
    } else if (message.command == NodeCommand::kStopActor) {
      const auto stop = *wire::decode<wire::StopActor>(std::string_view(message.body));
      uint64_t& lowest = node->ended[stop.actor];
      lowest = std::max(lowest, stop.incarnation + 1);
      const auto life = node->lives.find(stop.actor);
      const bool here =
          life != node->lives.end() && life->second.incarnation == stop.incarnation && life->second.running;
      if (!here) return;
      end_life(*node, stop.actor, stop.graceful ? DeathKind::kIntended : DeathKind::kKilled);
    }
  }
  void report_death(FakeNode& node, const ActorId& actor, uint64_t incarnation, const WorkerId& worker,
                    DeathKind kind) {
    wire::WorkerDied report;
    report.worker = {worker, node.id};
    report.actor = actor;
    report.incarnation = incarnation;
    report.cause.kind = kind;
    send(ControlMethod::kWorkerDied, wire::encode(report), node.id);
  }
  void end_life(FakeNode& node, const ActorId& actor, DeathKind kind) {
    FakeNode::Life& life = node.lives.at(actor);
    life.running = life.alive = false;
    dead_workers_.insert(life.worker);
    report_death(node, actor, life.incarnation, life.worker, kind);
  }
  bool advance_any(bool faults) {
    for (const auto& node : nodes_) {
      for (auto& [actor, life] : node->lives) {
        if (!life.running || life.alive || !node->up) continue;
        wire::ActorCreatedReport report;
        report.actor = actor;
        report.incarnation = life.incarnation;
        report.address = {life.worker, node->id};
        report.ok = !faults || !random_.chance(0.1);
        report.cause.kind = DeathKind::kConstructor;
        life.alive = report.ok;
        life.running = report.ok;
        if (!report.ok) dead_workers_.insert(life.worker);
        send(ControlMethod::kActorCreated, wire::encode(report), node->id);
        return true;
      }
    }
    return false;
  }
  void advance_a_life() { advance_any(true); }
  void crash_worker() {
    for (const auto& node : nodes_) {
      for (auto& [actor, life] : node->lives) {
        if (!life.running || !random_.chance(0.3)) continue;
        end_life(*node, actor, random_.chance(0.2) ? DeathKind::kIntended : DeathKind::kSignalled);
        return;
      }
    }
  }
  void kill_something() {
    const auto& all = core_.actors().all();
    if (all.empty()) return;
    std::vector<ActorId> ids;
    for (const auto& [id, actor] : all) ids.push_back(id);
    std::sort(ids.begin(), ids.end());
    const ActorId victim = ids[random_.below(ids.size())];
    if (random_.chance(0.3)) {
      send(ControlMethod::kActorOutOfScope, wire::encode(wire::ActorRef{victim}), home_node());
      return;
    }
    wire::KillActor kill;
    kill.key = random_();
    kill.actor = victim;
    kill.no_restart = random_.chance(0.4);
    send(ControlMethod::kKillActor, wire::encode(kill), home_node());
  }
  void toggle_connection() {
    FakeNode& node = *nodes_[random_.below(nodes_.size())];
    if (!node.up) return;
    if (!node.connected) {
      reconnect(node);
      return;
    }
    node.connected = false;
    std::erase_if(messages_, [&](const NodeMessage& message) { return message.node == node.id; });
    core_.node_disconnected(node.id, {now_, now_});
  }
  void crash_node() {
    FakeNode& node = *nodes_[random_.below(nodes_.size())];
    if (!node.up) return;
    die(node);
    core_.node_disconnected(node.id, {now_, now_});
    if (random_.chance(0.7)) add_node();
  }
  void end_driver() {
    if (drivers_.empty()) return;
    const auto [job, driver] = drivers_.back();
    drivers_.pop_back();
    dead_workers_.insert(driver.worker);
    wire::FinishJob finish{random_(), job, false};
    send(ControlMethod::kFinishJob, wire::encode(finish), driver.node);
  }

  rt::Random random_;
  ControlCore core_;
  TimeMs now_ = 0;
  int registered_ = 0;
  std::vector<std::unique_ptr<FakeNode>> nodes_;
  std::vector<std::pair<JobId, wire::Address>> drivers_;
  std::vector<Request> requests_;
  std::vector<NodeMessage> messages_;
  std::map<ActorId, std::string> unplaced_;
  std::set<WorkerId> dead_workers_;
};

TEST(CoreProperty, HoldsItsInvariantsAndSettles) {
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    for (int i = 0; i < 400 && !world.failed(); ++i) world.step();
    if (!world.failed()) world.settle();
    world.check_settled();
    if (world.failed()) {
      std::fprintf(stderr, "failed with seed %llu\n", static_cast<unsigned long long>(seed));
      return;
    }
  }
}

// A request that is repeated after a loss may come when its driver has ended: what it makes would stay for
// good.
TEST(Core, AGroupOfAJobThatHasEndedIsRefused) {
  ControlCore core(CoreOptions{"s", "{}", "1.0", 1000});
  Outbox out;
  NodeId node;
  node.bytes.fill(1);
  auto call = [&]<class Message>(wire::ControlMethod method, const Message& message) {
    return core.handle(node, method, wire::encode(message), Moment{}, out);
  };
  wire::RegisterNode info;
  info.node = node;
  info.version = "1.0";
  info.resources = {{"CPU", 4 * wire::kResourceUnit}};
  ASSERT_TRUE(call(wire::ControlMethod::kRegisterNode, info).ok());
  wire::RegisterJob job;
  job.key = 1;
  job.driver = {WorkerId::random(), node};
  Result<std::string> registered = call(wire::ControlMethod::kRegisterJob, job);
  ASSERT_TRUE(registered.ok());
  const JobId id = wire::decode<wire::RegisterJobReply>(std::string_view(*registered))->job;
  wire::PlacementGroupRequest group;
  group.key = 2;
  group.group = PlacementGroupId::random();
  group.strategy = "PACK";
  group.bundles = {{{"CPU", wire::kResourceUnit}}};
  group.job = id;
  ASSERT_TRUE(call(wire::ControlMethod::kCreatePlacementGroup, group).ok());
  ASSERT_TRUE(call(wire::ControlMethod::kFinishJob, wire::FinishJob{3, id, false}).ok());
  EXPECT_EQ(core.groups().all().at(group.group).state, GroupState::kRemoved);
  EXPECT_TRUE(call(wire::ControlMethod::kCreatePlacementGroup, group).ok()) << "the answer of before, again";
  group.key = 4;
  group.group = PlacementGroupId::random();
  EXPECT_EQ(call(wire::ControlMethod::kCreatePlacementGroup, group).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(core.groups().all().contains(group.group));
}

TEST(CoreProperty, GarbageIsRefused) {
  rt::Random random(7);
  ControlCore core(CoreOptions{"s", "{}", "1.0", 1000});
  for (int i = 0; i < 20000; ++i) {
    std::string body(random.below(200), '\0');
    for (char& c : body) c = static_cast<char>(random.chance(0.7) ? 0 : random());
    Outbox out;
    const auto method = static_cast<ControlMethod>(random.below(24));
    (void)core.handle(NodeId::nil(), method, body, {i, i}, out);
    ASSERT_EQ(core.check(), "");
  }
}

}  // namespace
}  // namespace skate::control
