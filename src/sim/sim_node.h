// SimNode: a node daemon without processes: the real Scheduler and the real rpc client around workers and
// drivers that are a few numbers each. Work takes virtual time; workers crash; what processes tell their
// daemon is late, and comes twice.
#pragma once

#include <map>
#include <set>
#include <string>

#include "node/scheduler/scheduler.h"
#include "rpc/client.h"
#include "rt/sim_loop.h"
#include "rt/task_group.h"
#include "wire/archive.h"
#include "wire/control_messages.h"

namespace skate::sim {

struct SimNodeOptions {
  std::string control_address;
  rpc::ClusterKey key;
  std::string release;
  int64_t cpus = 4;
  double worker_crash_probability = 0;  ///< for each task or constructor
};

/// A driver's work, and what became of it. Outlives the node that runs it.
struct DriverPlan {
  uint32_t tasks{};
  uint32_t actors{};
  uint32_t groups{};  ///< placement groups, and tasks in them
  uint32_t tasks_done{};
  uint32_t group_tasks_done{};
  bool registered{};
  bool ended{};
  bool lost{};  ///< its node crashed
};

class SimNode {
 public:
  SimNode(rt::SimLoop& loop, rt::Network& network, SimNodeOptions options);
  ~SimNode();

  void start();
  void run_driver(DriverPlan* plan);
  void end_drivers();
  /// Removes all placement groups of its drivers, also those to come: they may hold all CPUs.
  void remove_groups();
  void kill_actor(const ActorId& actor);
  /// No worker crashes from now on.
  void calm_down() { options_.worker_crash_probability = 0; }

  struct ActorView {
    ActorId actor;
    uint64_t incarnation{};
    WorkerId worker;
  };
  std::vector<ActorView> running_actors() const;
  const NodeId& id() const { return id_; }
  const node::Scheduler& scheduler() const { return scheduler_; }
  bool refused() const { return refused_; }
  /// Empty, or what is wrong.
  std::string problem() const { return problem_; }

 private:
  using ProcessNumber = node::ProcessNumber;
  struct GroupWork {
    PlacementGroupId group;  ///< nil once removed
    uint32_t left{};
  };
  struct Driver {
    ProcessNumber number{};
    WorkerId id;
    JobId job;
    DriverPlan* plan{};
    uint32_t left{};
    uint32_t running{};
    std::set<node::LeaseNumber> leases;
    std::set<node::LeaseNumber> recalled;
    std::map<uint64_t, GroupWork> in_groups;  ///< by shape
    rt::Event end;
  };
  struct Actor {
    uint64_t incarnation{};
    uint64_t number{};
    ProcessNumber worker{};  ///< 0 while it waits for one
    bool created{};
    wire::StartActor order;
  };

  rt::Task<void> drive(std::shared_ptr<Driver> driver);
  rt::Task<void> make_actor(std::shared_ptr<Driver> driver, uint32_t index);
  rt::Task<void> make_group(std::shared_ptr<Driver> driver, uint64_t shape);
  rt::Task<void> hold_lease(std::shared_ptr<Driver> driver, node::Grant grant);
  rt::Task<void> work_in_group(std::shared_ptr<Driver> driver, node::Grant grant);
  rt::Task<void> evict(ProcessNumber worker);
  rt::Task<void> report_loop();
  rt::Task<void> deliver_recall(node::Recall recall);
  rt::Task<void> start_worker(ProcessNumber worker);
  rt::Task<void> stop_worker(node::StopWorker stop);
  rt::Task<void> construct(ActorId actor, uint64_t incarnation, ProcessNumber worker);
  rt::Task<Result<void>> greet(rpc::Client* client);
  rt::Task<void> tell_control(wire::ControlMethod method, std::string body);
  rt::Task<void> short_delay();

  void demand(Driver& driver);
  void demand_in_group(Driver& driver, uint64_t shape);
  void remove_group(Driver& driver, uint64_t shape);
  void worker_died(ProcessNumber worker, wire::DeathKind kind);
  void report_death(const ActorId& actor, uint64_t incarnation, const WorkerId& worker, wire::DeathKind kind);
  void on_command(uint16_t topic, const std::string& body);
  void start_actor(wire::StartActor order);
  void stop_actor(const wire::StopActor& order);
  void pump();
  int64_t now_us() const { return loop_.now().time_since_epoch() / std::chrono::microseconds(1); }
  template <class AnyId>
  AnyId random_id();
  template <class Message>
  void tell(wire::ControlMethod method, const Message& message) {
    tasks_.spawn(tell_control(method, wire::encode(message)));
  }

  rt::SimLoop& loop_;
  SimNodeOptions options_;
  NodeId id_;
  node::Scheduler scheduler_;
  std::string problem_;
  bool refused_ = false;
  bool pumping_ = false;
  std::map<ProcessNumber, std::shared_ptr<Driver>> drivers_;  // shared with their coroutines
  std::map<ProcessNumber, WorkerId> workers_;                 // those that run
  std::set<ProcessNumber> starting_;
  std::set<ProcessNumber> ended_early_;  // stopped before they were up
  std::map<ActorId, Actor> actors_;
  std::map<ActorId, uint64_t> may_start_;  // the lowest incarnation that still may
  uint64_t last_actor_ = 0;
  uint64_t reports_ = 0;
  bool groups_are_over_ = false;
  wire::Resources reported_;
  rt::Timer pump_timer_;
  rpc::Client client_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::sim
