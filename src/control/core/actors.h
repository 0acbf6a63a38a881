// ActorTable: the life of every actor, from its registration to its death. Pure.
//
//   register -> Pending --place--> (starting on a node) --created--> Alive --died--> Restarting --created-->
//   Alive
//                  |                     |                             |                 |
//                  +---- any of: killed, owner died, job ended, constructor failed, restarts used up ---->
//                  Dead
//
// Each life has an incarnation number, from 0; what a node reports about another one than the current is
// late, and ignored. Guarantees: a name belongs to at most one actor that is not dead; at most one
// incarnation is the current one, and a new one begins only when the last is known to be gone; restarts never
// exceed max_restarts. Dead actors are remembered (kDeadKept of them), so that whoever asks late learns why.
#pragma once

#include <deque>
#include <map>
#include <set>
#include <unordered_map>

#include "base/result.h"
#include "control/core/groups.h"
#include "control/core/nodes.h"
#include "control/core/outbox.h"

namespace skate::control {

enum class StopWish : uint8_t {
  kNone,
  kRestart,  ///< killed, but it may restart
  kDrain,    ///< ends for good when its queued calls are done
};

/// What is logged of an actor at each change. Its spec is logged apart, once.
struct ActorRecord {
  wire::ActorInfo info;
  int64_t max_restarts{};
  NodeId node;      ///< where it lives or starts; nil: nowhere
  bool placed{};    ///< its arguments are ready, the spec is known
  bool relearnt{};  ///< known from its node only, as the service restarted without a log: cannot restart
  StopWish stop{};
};
struct ActorSpecRecord {
  wire::ActorSpec spec;
  std::string job_json;
};

class ActorTable {
 public:
  static constexpr size_t kDeadKept = 100'000;
  static constexpr size_t kLiveMax = 1'000'000;
  static constexpr size_t kDeadWorkersKept = 100'000;

  ActorTable(NodeTable& nodes, const GroupTable& groups) : nodes_(nodes), groups_(groups) {}

  /// kExists when the name is taken; a known actor is answered again.
  Result<wire::RegisterActorReply> add(const wire::RegisterActor& request, Outbox& out);
  Result<void> place(const wire::PlaceActor& request, const std::string& job_json, Outbox& out);
  void created(const NodeId& from, const wire::ActorCreatedReport& report, Outbox& out);
  /// Of any process: what it owned dies with it, and if it was an actor, that one restarts or dies.
  void worker_died(const NodeId& from, const wire::WorkerDied& report, Outbox& out);
  Result<void> kill(const wire::KillActor& request, Outbox& out);
  void out_of_scope(const ActorId& actor, Outbox& out);
  /// The job's actors die, but for detached ones and what these own.
  void job_finished(const JobId& job, const WorkerId& driver, Outbox& out);
  /// After NodeTable::die().
  void node_died(const NodeId& node, Outbox& out);
  /// The node has come (back): it tells who lives there, and is told again what it is to do.
  void node_registered(const wire::RegisterNode& info, Outbox& out);
  /// Places what found no node before. To be called when nodes have come or groups have changed.
  void place_waiting(Outbox& out);

  Result<wire::ActorInfo> get(const ActorId& actor, const NodeId& asking);
  Result<wire::ActorInfo> get_named(const std::string& name_space, const std::string& name,
                                    const NodeId& asking);
  wire::ListNamedActorsReply list_named(bool all, const std::string& name_space) const;
  const std::unordered_map<ActorId, ActorRecord>& all() const { return actors_; }
  uint64_t living_on(const NodeId& node) const;
  bool has_living(const JobId& job) const;
  bool is_living_actor(const WorkerId& worker) const { return by_worker_.contains(worker); }

  void recover(ActorRecord record);
  void recover_spec(ActorSpecRecord record);
  /// After the last recover(): the nodes that are to come back.
  std::set<NodeId> recovered_nodes() const;

  /// Empty, or which invariant does not hold; for tests.
  std::string check() const;

 private:
  ActorRecord* find(const ActorId& actor);
  void start(ActorRecord& actor, Outbox& out);
  /// The node for it now; nothing: it waits, or died of what `never` says.
  std::optional<NodeId> find_node(const ActorSpecRecord& spec, std::string& never, std::string& waits) const;
  void notice_wait(ActorRecord& actor, const std::string& why, Outbox& out);
  void end_life(ActorRecord& actor, wire::Death cause, Outbox& out);
  void die(ActorRecord& actor, wire::Death cause, bool tell_node, Outbox& out);
  /// Deaths that deaths cause go through a queue: chains of owners may be long.
  void owner_died(const WorkerId& owner, std::string why) {
    owner_deaths_.emplace_back(owner, std::move(why));
  }
  void settle(Outbox& out);
  void remember_dead_worker(const WorkerId& worker);
  void leave_node(ActorRecord& actor);
  void changed(const ActorRecord& actor, Outbox& out);
  void send_stop(const ActorRecord& actor, bool graceful, const wire::Death& reason, Outbox& out);
  bool owned_by_detached(const ActorRecord& actor) const;

  NodeTable& nodes_;
  const GroupTable& groups_;
  std::unordered_map<ActorId, ActorRecord> actors_;
  std::unordered_map<ActorId, ActorSpecRecord> specs_;
  std::map<std::pair<std::string, std::string>, ActorId> names_;  // of those not dead
  std::unordered_map<ActorId, std::set<NodeId>> subscribers_;  // kept over death: a node may have missed it
  std::unordered_map<WorkerId, std::set<ActorId>> owned_;      // not dead, not detached
  std::unordered_map<WorkerId, ActorId> by_worker_;            // alive
  std::map<NodeId, std::set<ActorId>> by_node_;                // starting or alive
  std::set<ActorId> noticed_;                                  // waiting, and the owner was told why
  std::set<ActorId> waiting_;                                  // placed, but no node holds them
  std::deque<ActorId> dead_;                                   // oldest first
  std::deque<std::pair<WorkerId, std::string>> owner_deaths_;
  std::set<WorkerId> dead_workers_;  // so that what they asked for late is refused
  std::deque<WorkerId> dead_workers_order_;
};

}  // namespace skate::control
