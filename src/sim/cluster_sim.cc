#include "sim/cluster_sim.h"

#include <memory>
#include <vector>

#include "control/server.h"
#include "rt/sim_network.h"
#include "sim/sim_disk.h"
#include "sim/sim_node.h"

namespace skate::sim {

using namespace std::chrono_literals;

namespace {

constexpr char kControlAddress[] = "unix:control";
constexpr char kRelease[] = "1.0";

class Cluster {
 public:
  explicit Cluster(uint64_t seed)
      : loop_(seed),
        network_(loop_, network_options()),
        key_(*rpc::ClusterKey::from_bytes("the key of the simulation")) {
    start_control();
    const uint64_t nodes = 1 + random().below(4);
    for (uint64_t i = 0; i < nodes; ++i) add_node();
  }
  ~Cluster() {
    nodes_.clear();
    control_.reset();
  }

  SimReport run() {
    const rt::TimePoint chaos_ends = loop_.now() + 5s;
    while (loop_.now() < chaos_ends && ok()) {
      loop_.run_for(rt::Duration(1'000'000 + random().below(150'000'000)));
      disturb();
    }
    calm_down();
    wait_until([this] { return converged(); }, 60s);
    check_agreement();
    for (const auto& [id, group] : control_->core().groups().all()) report_.groups += group.attempt > 0;
    for (const auto& node : nodes_) node->remove_groups();
    wait_until([this] { return work_is_done() && converged(); }, 120s);
    check_settled();
    if (random().chance(0.7)) drop_everything();  // else all ends while it holds something
    end_everything();
    report_.steps = loop_.steps();
    for (const auto& plan : plans_) {
      report_.tasks += plan->tasks_done;
      report_.group_tasks += plan->group_tasks_done;
    }
    return report_;
  }

 private:
  static rt::SimNetworkOptions network_options() {
    rt::SimNetworkOptions options;
    options.break_probability = 0.001;
    return options;
  }
  rt::Random& random() { return loop_.random(); }
  bool ok() const { return report_.problem.empty(); }
  void fail(std::string problem) {
    if (ok()) report_.problem = std::move(problem);
  }

  void start_control() {
    disk_ = std::make_unique<SimDisk>(rows_, loop_);
    control::ControlOptions options{.listen = kControlAddress, .key = key_, .release = kRelease};
    options.session_name = "simulated";
    options.node_grace_ms = 2000;
    control_ = std::make_unique<control::ControlService>(loop_, network_, *disk_, options);
    const Result<std::string> started = control_->start(kControlAddress);
    if (!started) fail("the control service cannot start: " + started.error().message);
  }
  void add_node() {
    SimNodeOptions options{.control_address = kControlAddress, .key = key_, .release = kRelease};
    options.cpus = 1 + static_cast<int64_t>(random().below(4));
    options.objects.gentle = random().chance(0.25);
    options.objects.crash_probability = options.objects.gentle ? 0 : 0.02;
    options.objects.little_room = random().chance(0.3);
    nodes_.push_back(std::make_unique<SimNode>(loop_, network_, options, report_.objects));
    nodes_.back()->objects().set_mood(mood_);
    nodes_.back()->start();
    const uint64_t drivers = 1 + random().below(3);
    for (uint64_t i = 0; i < drivers; ++i) add_driver(*nodes_.back());
  }
  void add_driver(SimNode& node) {
    plans_.push_back(std::make_unique<DriverPlan>());
    plans_.back()->tasks = static_cast<uint32_t>(20 + random().below(100));
    plans_.back()->actors = static_cast<uint32_t>(random().below(8));
    if (!node.objects().options().gentle) plans_.back()->groups = static_cast<uint32_t>(random().below(4));
    node.run_driver(plans_.back().get());
  }

  void disturb() {
    drop_refused();
    switch (random().below(12)) {
      case 0:
      case 1:
        ++report_.cuts;
        network_.cut(kControlAddress, false);
        break;
      case 2:
        ++report_.control_crashes;
        control_.reset();
        disk_.reset();
        loop_.run_for(rt::Duration(random().below(1'000'000'000)));
        start_control();
        break;
      case 3:
        if (nodes_.size() < 6 && random().chance(0.5)) add_node();
        break;
      case 4:
        if (random().chance(0.4)) {
          ++report_.node_crashes;
          nodes_.erase(nodes_.begin() + static_cast<ptrdiff_t>(random().below(nodes_.size())));
          add_node();
        }
        break;
      case 5:
        if (random().chance(0.3)) end_drivers(*nodes_[random().below(nodes_.size())]);
        break;
      default: break;  // a while in which nothing breaks
    }
    look_for_problems();
  }
  void end_drivers(SimNode& node) {
    if (node.objects().options().gentle) return;
    node.end_drivers();
    if (random().chance(0.7)) add_driver(node);
  }
  /// A daemon that is told that it was declared dead ends.
  void drop_refused() {
    std::erase_if(nodes_, [](const auto& node) { return node->refused(); });
    if (nodes_.empty()) add_node();
  }
  void look_for_problems() {
    for (const auto& node : nodes_) {
      if (!node->problem().empty()) fail(node->problem());
    }
    if (control_) {
      if (const std::string wrong = control_->core().check(); !wrong.empty()) fail("control: " + wrong);
    }
    // Never two lives at one time on nodes that are part of the cluster.
    std::map<ActorId, int> lives;
    for (const auto& node : nodes_) {
      if (node->refused() || (control_ && control_->core().nodes().dead(node->id()))) continue;
      for (const SimNode::ActorView& actor : node->running_actors()) {
        if (++lives[actor.actor] > 1) fail("actor " + actor.actor.hex() + " lives twice");
      }
    }
  }

  void calm_down() {
    network_.set_break_probability(0);
    for (const auto& node : nodes_) node->calm_down();
  }
  template <class Condition>
  bool wait_until(Condition condition, rt::Duration limit) {
    const rt::TimePoint deadline = loop_.now() + limit;
    while (loop_.now() < deadline && ok()) {
      loop_.run_for(500ms);
      drop_refused();
      look_for_problems();
      if (condition()) return true;
    }
    return false;
  }
  bool work_is_done() const {
    for (const auto& plan : plans_) {
      if (!plan->lost && !plan->ended && (!plan->registered || plan->tasks_done < plan->tasks)) return false;
    }
    return true;
  }
  std::string disagreement() const {
    std::map<ActorId, SimNode::ActorView> running;
    for (const auto& node : nodes_) {
      for (const SimNode::ActorView& actor : node->running_actors()) running[actor.actor] = actor;
    }
    for (const auto& [id, record] : control_->core().actors().all()) {
      const auto found = running.find(id);
      if (record.info.state == wire::ActorState::kDead) {
        if (found != running.end()) return "actor " + id.hex() + " is dead and runs";
        continue;
      }
      if (record.info.state != wire::ActorState::kAlive) continue;  // it may wait for room
      if (found == running.end()) return "actor " + id.hex() + " is alive and does not run";
      if (found->second.incarnation != record.info.incarnation)
        return "actor " + id.hex() + " runs in another life";
      running.erase(found);
    }
    return {};
  }
  /// Bundles lie where control has placed them, and nowhere else.
  std::string group_disagreement() const {
    std::map<std::pair<NodeId, PlacementGroupId>, uint64_t> placed;
    for (const auto& [id, group] : control_->core().groups().all()) {
      // One that is being reserved may wait on its node for room; then the node must know of it.
      if (group.state != control::GroupState::kCreated && group.state != control::GroupState::kReserving)
        continue;
      for (const NodeId& node : group.nodes) placed[{node, id}] = group.attempt;
    }
    for (const auto& node : nodes_) {
      for (const node::Scheduler::Holding& held : node->scheduler().holdings()) {
        const auto found = placed.find({node->id(), held.group});
        if (found == placed.end())
          return "a node holds bundles of group " + held.group.hex() + ", and should not";
        if (found->second != held.attempt)
          return "a node holds group " + held.group.hex() + " of another attempt";
        placed.erase(found);
      }
    }
    return placed.empty()
               ? std::string()
               : "group " + placed.begin()->first.second.hex() + " is placed, and its node does not know";
  }
  bool converged() const { return disagreement().empty() && group_disagreement().empty(); }

  void check_agreement() {
    if (const std::string wrong = disagreement(); !wrong.empty()) fail(wrong);
    if (const std::string wrong = group_disagreement(); !wrong.empty()) fail(wrong);
  }

  void check_settled() {
    for (const auto& plan : plans_) {
      if (plan->lost || plan->ended) continue;
      if (!plan->registered) fail("a driver never registered");
      if (plan->tasks_done < plan->tasks)
        fail("a driver has " + std::to_string(plan->tasks_done) + " of " + std::to_string(plan->tasks) +
             " tasks done");
      if (plan->tasks_done > plan->tasks) fail("a task was done twice");
    }
    check_agreement();
    report_.actors = static_cast<uint32_t>(control_->core().actors().all().size());
  }

  void set_mood(SimProcess::Mood mood) {
    mood_ = mood;
    for (const auto& node : nodes_) node->objects().set_mood(mood);
  }
  /// Empty, or the first word of a node.
  template <class Ask>
  std::string first_word(Ask ask) const {
    for (const auto& node : nodes_)
      if (std::string word = ask(*node); !word.empty()) return word;
    return "";
  }
  std::string leftovers() const {
    return first_word([](SimNode& node) { return node.objects().leftovers(); });
  }
  /// An actor that is not detached goes with the last handle to it.
  std::string actor_left() const {
    for (const auto& [id, record] : control_->core().actors().all())
      if (record.info.state != wire::ActorState::kDead && !record.info.detached)
        return "actor " + id.hex() + " outlives its handles";
    return "";
  }

  void drop_everything() {
    set_mood(SimProcess::Mood::kFinishes);
    auto waiting = [this] { return first_word([](SimNode& node) { return node.objects().waiting(); }); };
    wait_until([&] { return waiting().empty(); }, 60s);
    if (const std::string who = waiting(); !who.empty()) fail(who);
    set_mood(SimProcess::Mood::kDrops);
    wait_until([&] { return leftovers().empty() && actor_left().empty(); }, 60s);
    if (const std::string what = leftovers() + actor_left(); !what.empty()) fail(what);
  }

  void end_everything() {
    for (const auto& node : nodes_) node->end_drivers();
    auto all_over = [this] {
      for (const auto& [id, record] : control_->core().actors().all()) {
        if (record.info.state != wire::ActorState::kDead) {
          if (record.info.detached) nodes_.front()->kill_actor(id);
          return false;
        }
      }
      for (const auto& [id, group] : control_->core().groups().all()) {
        if (group.state != control::GroupState::kRemoved) return false;
      }
      for (const auto& node : nodes_) {
        if (!node->scheduler().is_idle() || !node->running_actors().empty()) return false;
      }
      return leftovers().empty() && converged();
    };
    if (wait_until(all_over, 120s) || !ok()) return;
    for (const auto& [id, record] : control_->core().actors().all()) {
      if (record.info.state != wire::ActorState::kDead)
        fail("actor " + id.hex() + " outlives its job in state " +
             std::to_string(static_cast<int>(record.info.state)));
    }
    for (const auto& [id, group] : control_->core().groups().all()) {
      if (group.state != control::GroupState::kRemoved) fail("group " + id.hex() + " outlives its job");
    }
    for (const auto& node : nodes_) {
      if (!node->running_actors().empty()) fail("an actor runs when all is over");
      if (!node->scheduler().is_idle()) fail("a scheduler is not idle when all is over");
    }
    fail("the end does not come: " + disagreement() + group_disagreement() + leftovers());
  }

  rt::SimLoop loop_;
  rt::SimNetwork network_;
  rpc::ClusterKey key_;
  DiskRows rows_;
  std::unique_ptr<SimDisk> disk_;
  std::unique_ptr<control::ControlService> control_;
  std::vector<std::unique_ptr<DriverPlan>> plans_;
  SimReport report_;
  SimProcess::Mood mood_ = SimProcess::Mood::kWorks;
  std::vector<std::unique_ptr<SimNode>> nodes_;
};

}  // namespace

SimReport run_cluster(uint64_t seed) {
  Cluster cluster(seed);
  return cluster.run();
}

}  // namespace skate::sim
