// SimNode: a node daemon without an operating system: the real Scheduler, the real AdoptedObjects (in
// SimObjects) and the real rpc client around processes that are SimProcesses. Work takes virtual time;
// workers crash; what processes and control tell each other is late, and may come twice.
#pragma once

#include <map>
#include <set>
#include <string>

#include "rpc/client.h"
#include "sim/sim_objects.h"
#include "wire/archive.h"
#include "wire/control_messages.h"

namespace skate::sim {

struct SimNodeOptions {
  std::string control_address;
  rpc::ClusterKey key;
  std::string release;
  int64_t cpus = 4;
  SimObjectsOptions objects = {};
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

class SimNode final : private SimDaemon {
 public:
  SimNode(rt::SimLoop& loop, rt::Network& network, SimNodeOptions options, ObjectCounts& counts);
  ~SimNode() override;

  void start();
  void run_driver(DriverPlan* plan);
  void end_drivers();
  /// Removes all placement groups of its drivers, also those to come: they may hold all CPUs.
  void remove_groups();
  void kill_actor(const ActorId& actor);
  /// No worker crashes from now on.
  void calm_down() { objects_.options().crash_probability = 0; }

  struct ActorView {
    ActorId actor;
    uint64_t incarnation{};
    WorkerId worker;
  };
  std::vector<ActorView> running_actors() const;
  const NodeId& id() const { return id_; }
  const node::Scheduler& scheduler() const { return scheduler_; }
  SimObjects& objects() { return objects_; }
  bool refused() const { return refused_; }
  /// Empty, or what is wrong.
  std::string problem() const { return problem_.empty() ? objects_.problem() : problem_; }

 private:
  struct Driver {
    ProcessNumber number{};
    JobId job;
    DriverPlan* plan{};
    std::map<uint64_t, PlacementGroupId> groups;  ///< by shape; nil once removed
    rt::Event end;
  };
  struct Actor {
    ProcessNumber worker{};  ///< 0 while it waits for one
    bool created{};
    wire::StartActor order;
  };

  rt::Task<void> drive(std::shared_ptr<Driver> driver);
  rt::Task<void> make_actor(std::shared_ptr<Driver> driver, uint32_t index);
  rt::Task<void> make_group(std::shared_ptr<Driver> driver, uint64_t shape);
  rt::Task<void> report_loop();
  rt::Task<void> start_worker(node::StartWorker start);
  rt::Task<void> stop_worker(node::StopWorker stop);
  rt::Task<void> kill_later(ProcessNumber worker);
  rt::Task<void> evict(ProcessNumber worker);
  rt::Task<void> construct(uint64_t actor, ProcessNumber worker);
  rt::Task<Result<void>> greet(rpc::Client* client);
  rt::Task<void> tell_control(wire::ControlMethod method, std::string body);
  rt::Task<void> short_delay();

  void on_message(ProcessNumber from, const Message& message) override;
  void buried(ProcessNumber process, wire::DeathKind kind) override;
  void works(ProcessNumber worker, bool at_work) override;
  void out_of_scope(const ActorId& actor) override;
  std::pair<ProcessNumber, ActorId> some_actor(const JobId& job) override;

  void remove_group(Driver& driver, uint64_t shape);
  void end_worker(ProcessNumber worker, wire::DeathKind kind);
  void report_death(const ActorId& actor, uint64_t incarnation, const WorkerId& worker, wire::DeathKind kind);
  void on_command(uint16_t topic, const std::string& body);
  void start_actor(wire::StartActor order);
  void stop_actor(const wire::StopActor& order);
  void pump();
  void grant(const node::Grant& grant);
  void refuse(const node::Refusal& refusal);
  int64_t now_us() const { return loop_.now().time_since_epoch() / std::chrono::microseconds(1); }
  template <class Request>
  void tell(wire::ControlMethod method, const Request& request) {
    tasks_.spawn(tell_control(method, wire::encode(request)));
  }

  rt::SimLoop& loop_;
  SimNodeOptions options_;
  const NodeId id_;
  node::Scheduler scheduler_;
  std::string problem_;
  bool refused_ = false;
  bool pumping_ = false;
  std::map<ProcessNumber, std::shared_ptr<Driver>> drivers_;  // shared with their coroutines
  std::set<ProcessNumber> starting_;
  std::set<ProcessNumber> ended_early_;  // stopped before they were up
  std::set<ProcessNumber> asked_to_exit_;
  std::map<uint64_t, Actor> actors_;
  std::map<ActorId, uint64_t> may_start_;  // the lowest incarnation that still may
  uint64_t last_actor_ = 0;
  uint64_t reports_ = 0;
  bool groups_are_over_ = false;
  wire::Resources reported_;
  rt::Timer pump_timer_;
  rpc::Client client_;
  SimObjects objects_;
  rt::TaskGroup tasks_;
};

}  // namespace skate::sim
