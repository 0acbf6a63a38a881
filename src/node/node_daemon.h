// The node daemon: registers processes, starts and ends workers, grants leases, links processes to each
// other, relays to the control service, and tells everyone concerned when and why a process died.
//
// The decisions are the Scheduler's; this is the shell around it, on one loop's thread. All state changes run
// to completion between two co_awaits; pump() then asks the scheduler what to do. It does not: carry calls
// or objects, which travel on links and in the store without it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "node/adoption/adopted_objects.h"
#include "node/exit_statuses.h"
#include "node/fork_server.h"
#include "node/link_table.h"
#include "node/log_forwarder.h"
#include "node/machine.h"
#include "node/object_store.h"
#include "node/options.h"
#include "node/process.h"
#include "node/unix_socket.h"
#include "rpc/client.h"
#include "rt/sleep.h"
#include "rt/stream.h"
#include "wire/archive.h"
#include "wire/control_messages.h"
#include "wire/scheduling.h"

namespace skate::node {

class NodeDaemon : private AdoptionEffects {
 public:
  NodeDaemon(rt::Loop& loop, NodeOptions options, ObjectStoreFactory make_store);
  ~NodeDaemon() override;

  /// Makes everything and begins to serve. On an error nothing is left behind.
  Result<void> start();
  /// Returns when stop was asked for (signal, control, watched process) and all is gone.
  rt::Task<void> run();
  void ask_stop(std::string why);

  const NodeId& id() const { return id_; }
  std::string socket_path() const { return options_.session_dir + "/node.sock"; }

 private:
  struct Job {
    JobId id;
    ProcessNumber driver{};  ///< 0: none here, or gone
    std::string job_json;
    std::string name_space;
    std::string language = "python";
    std::unique_ptr<LogForwarder> logs;
    bool finished{};
  };
  struct Actor {
    wire::StartActor order;
    ProcessNumber worker{};  ///< 0: queued
    bool created{};
  };

  // registration.cc: how processes come
  rt::Task<void> accept_loop();
  rt::Task<void> serve_connection(UniqueFd socket);
  rt::Task<void> refuse_connection(UniqueFd socket, std::string why);
  Result<ProcessNumber> meet_worker(const wire::Hello& hello, const PeerCredentials& peer);
  rt::Task<Result<ProcessNumber>> meet_driver(wire::Hello hello, PeerCredentials peer);
  Result<void> equip(Process& process, pid_t pid);
  wire::Welcome welcome_for(const Process& process);
  void attach_pid(Process& process, pid_t pid, rt::ProcessWatch watch);
  bool attach_worker(Process& process, pid_t pid);
  Job& job_of(const JobId& id, const std::string& job_json);

  // workers.cc: how workers start and processes end
  void start_worker(const StartWorker& order);
  Result<void> start_output(Process& process);
  void spawn_worker(ProcessNumber number, const std::string& why);
  WorkerSetup setup_of(const Process& process) const;
  void worker_start_failed(ProcessNumber number, const std::string& why);
  rt::Task<void> start_deadline(ProcessNumber number);
  void limit_setup(Process& process);
  void setup_hangs(Process& process, int64_t limit_s, const std::string& hook);
  rt::Task<void> watch_process(ProcessNumber number);
  rt::Task<void> end_process(ProcessNumber number);
  wire::Death cause_of(Process& process, std::optional<ExitStatus> status);
  void worker_ready(Process& process, const wire::WorkerReady& message);
  void flush_logs(Process& driver);
  void bury(Process& process, const wire::Death& death);
  void finish_job(const JobId& id, bool failed, bool at_control);
  void ask_exit(Process& process, wire::Death reason, bool force, int64_t grace_ms);
  void kill(Process& process, wire::Death cause);
  rt::Task<void> kill_later(std::vector<ProcessNumber> numbers, int64_t grace_ms);
  void kill_all(const std::vector<ProcessNumber>& numbers);
  rt::Task<void> sweep_orphans();

  // requests.cc: what processes ask for
  rt::Task<void> doorbell_loop();
  void read_link(uint32_t link);
  void handle(Process& process, uint16_t type, std::span<const uint8_t> body);
  template <class Message>
  bool parse(Process& process, std::span<const uint8_t> body, Message& message);
  template <class Message>
  void tell(Process& process, wire::MessageType type, const Message& message);
  void flush_rings();
  void open_link(Process& process, const wire::Address& peer);
  bool connect(Process& opener, Process& peer);
  void kill_worker(Process& asker, const wire::KillWorker& request);
  rt::Task<void> relay(ProcessNumber number, wire::ControlCall call);
  rt::Task<void> make_space(ProcessNumber number, wire::StoreSpace request);
  rt::Task<void> restore(ProcessNumber number, wire::RestoreObjects request);

  // adopting.cc: objects whose owner has ended
  void claim_objects(Process& process, const wire::ClaimObjects& request);
  void hand_over(Process& process, wire::HandOver request);
  void adopt_what_it_owned(const Process& process);
  void after_adoption();
  void tell_holds();
  void hold(ProcessNumber owner, const ObjectId& id) override { holds_.push_back({owner, true, id}); }
  void unhold(ProcessNumber owner, const ObjectId& id) override { holds_.push_back({owner, false, id}); }
  void erase_stored(const ObjectId& id) override { store_->erase({id}); }
  std::optional<wire::KeptObject> look(const ObjectId& id) override { return store_->look(id); }

  // grants.cc: the scheduler's decisions
  void pump();
  void pump_later() { work_to_do_.set(); }
  rt::Task<void> pump_loop();
  void look_at_workers();
  std::string source_of(const Process& process) const;
  void apply(Decisions decisions);
  void apply_grant(const Grant& grant);
  void apply_placement(const ActorPlacement& placement);
  void apply_stop(const StopWorker& stop);
  void apply_refusal(const Refusal& refusal);
  void report_deadlocks();
  void refuse(const Refusal& refusal, wire::Death cause, bool infeasible_now);

  // groups.cc: placement groups, as far as they are this node's
  void reserve_bundles(wire::ReserveBundles order);
  void return_bundles(const wire::GroupOrder& order);
  /// What a demand may take, or (false) the process was told why it never will.
  bool place_of(Process& process, const wire::LeaseDemand& demand, Place& place);
  /// From now on this daemon hears what becomes of the group.
  void watch_group(const PlacementGroupId& group);
  rt::Task<void> ask_group(PlacementGroupId group);
  void group_news(const wire::PlacementGroupReply& news);
  rt::Task<void> wait_for_group(ProcessNumber number, wire::PlacementGroupRequest request);
  rt::Task<void> next_group_news();
  void report_infeasible_group(const Process& process, const std::string& reply);

  // control.cc: the control service and its actors
  rt::Task<Result<void>> greet_control(rpc::Client* client);
  void on_command(uint16_t topic, std::string body);
  void start_actor(wire::StartActor order);
  void stop_actor(const wire::StopActor& order);
  void actor_created(Process& process, const wire::ActorCreated& message);
  void report_actor(const Actor& actor, bool ok, wire::Death cause, const Process* worker);
  void publish(const wire::Publish& message);
  template <class Message>
  void tell_control(wire::ControlMethod method, Message message);
  rt::Task<void> send_control(wire::ControlMethod method, std::string body);
  rt::Task<void> report_loop();
  rt::Task<void> report();

  // node_daemon.cc: the rest
  rt::Task<void> signal_loop();
  rt::Task<void> watch_starter();
  rt::Task<void> announce();
  rt::Task<void> shut_down();
  Process* find(ProcessNumber number);
  Process* find(const WorkerId& id);
  wire::Address address_of(const Process& process) const { return {process.id, id_}; }
  int64_t now_us() const;
  void warn(const std::string& text) const { options_.log(text); }
  /// Into the daemon's log, and to the driver of the job that `process` works for.
  void warn_job_of(const Process* process, const std::string& text);
  Scheduler make_scheduler();
  std::string memory_table(const Process& dead, uint64_t peak_bytes) const;

  rt::Loop& loop_;
  NodeOptions options_;
  NodeId id_ = NodeId::random();
  std::string session_name_;
  std::unique_ptr<rpc::Segment> segment_;
  std::unique_ptr<LinkTable> links_;
  ObjectStoreFactory make_store_;
  std::unique_ptr<ObjectStore> store_;
  double usable_workers_ = 1;  ///< that are started ahead for a driver
  uint32_t workers_max_ = 0;
  uint64_t descriptors_max_ = 0;
  Scheduler scheduler_;
  ExitStatuses statuses_;
  OomKills oom_kills_;
  UniqueFd listener_;
  UniqueFd event_fd_;
  uint32_t slot_ = 0;
  std::map<ProcessNumber, std::unique_ptr<Process>> processes_;
  std::unordered_map<WorkerId, ProcessNumber> by_id_;
  std::unordered_map<WorkerId, wire::Death> dead_;  ///< the last kDeadKept, for who asks too late
  std::deque<WorkerId> dead_order_;
  std::vector<ProcessNumber> by_link_;  ///< of daemon links, by index; 0: not one
  AdoptedObjects adopted_{*this};
  struct Hold {
    ProcessNumber owner;
    bool more;
    ObjectId id;
  };
  std::vector<Hold> holds_;  ///< to be told, in order
  std::map<JobId, Job> jobs_;
  std::map<uint64_t, Actor> actors_;  ///< by the number that the scheduler knows
  uint64_t last_actor_ = 0;
  std::map<PoolKey, wire::Death> last_start_failure_;
  std::map<ActorId, std::set<ProcessNumber>> subscribers_;
  struct WatchedGroup {
    std::string state;  ///< as last heard; empty: not yet
    uint64_t version{};
  };
  std::map<PlacementGroupId, WatchedGroup> watched_groups_;
  rt::WaitList group_news_;
  std::set<uint32_t> to_ring_;  ///< daemon links written since the last flush_rings()
  std::set<ProcessNumber> dead_tokens_;
  std::set<std::string> warned_spawns_;
  std::set<pid_t> dead_sessions_;  ///< of workers whose descendants are to be swept away
  std::set<std::pair<ProcessNumber, uint64_t>> seen_deadlocks_, reported_deadlocks_;
  bool sweeping_ = false;
  rt::WaitList child_ended_;
  bool stopping_ = false;
  std::string stop_why_;
  rt::Event stop_asked_;
  rt::Event work_to_do_;  ///< pump_later()
  rt::Event report_wanted_;
  rt::Event registered_;  ///< at the control service
  Resources reported_available_;
  Resources reported_bundles_;
  uint64_t report_sequence_ = 0;
  std::unique_ptr<rt::Network> network_;
  std::unique_ptr<rpc::Client> control_;
  rt::Timer pump_timer_;
  rt::Timer deadlock_timer_;  ///< armed while somebody waits
  std::unique_ptr<ForkServer> fork_server_;
  std::unique_ptr<rt::SignalSet> signals_;
  rt::TaskGroup tasks_;
};

inline constexpr size_t kDeadKept = 10'000;

template <class Message>
void NodeDaemon::tell(Process& process, wire::MessageType type, const Message& message) {
  if (!process.link || process.ending) return;
  process.link->send(static_cast<uint16_t>(type), wire::encode(message));
  to_ring_.insert(process.daemon_link);
}

template <class Message>
bool NodeDaemon::parse(Process& process, std::span<const uint8_t> body, Message& message) {
  Result<Message> parsed = wire::decode<Message>(body);
  if (!parsed) {
    warn("process " + std::to_string(process.pid) +
         " sent a record that does not parse: " + parsed.error().message);
    return false;
  }
  message = std::move(*parsed);
  return true;
}

template <class Message>
void NodeDaemon::tell_control(wire::ControlMethod method, Message message) {
  tasks_.spawn(send_control(method, wire::encode(message)));
}

}  // namespace skate::node
