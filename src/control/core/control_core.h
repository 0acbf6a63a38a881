// ControlCore: everything that the control service decides. Pure: requests and events in, answers and an
// Outbox out. The same class runs under the server and in the simulator.
//
// The caller logs the outbox's rows, and only then gives the answer and sends the messages, in order.
// Repeated requests get the first answer again; late reports are ignored. What a peer sends is input: it is
// refused with an Error, never asserted on. Keeps no state per task.
#pragma once

#include <string>
#include <string_view>

#include "control/core/actors.h"
#include "control/core/answers.h"
#include "control/core/groups.h"
#include "control/core/jobs.h"
#include "control/core/kv.h"
#include "control/core/nodes.h"

namespace skate::control {

struct CoreOptions {
  std::string session_name;
  std::string config_json;  ///< settings of the cluster, handed to each node
  std::string release;
  int64_t node_grace_ms = 10'000;  ///< a node out of contact for so long is dead
};

struct Moment {
  TimeMs now{};
  int64_t unix_time_ms{};
};

class ControlCore {
 public:
  explicit ControlCore(CoreOptions options)
      : options_(std::move(options)), groups_(nodes_), actors_(nodes_, groups_) {}
  ControlCore(const ControlCore&) = delete;
  ControlCore& operator=(const ControlCore&) = delete;

  /// Answers a request. `from` is the node that the connection registered as, nil before that.
  Result<std::string> handle(const NodeId& from, wire::ControlMethod method, std::string_view body,
                             const Moment& moment, Outbox& out);
  void node_disconnected(const NodeId& node, const Moment& moment);
  /// Declares overdue nodes dead. To be called at next_deadline().
  void tick(const Moment& moment, Outbox& out);
  std::optional<TimeMs> next_deadline() const { return nodes_.next_overdue(options_.node_grace_ms); }

  /// Takes up what was logged. Before anything else; kCorrupt names the row.
  Result<void> recover(const std::vector<Row>& rows, const Moment& moment);

  const NodeTable& nodes() const { return nodes_; }
  const ActorTable& actors() const { return actors_; }
  const JobTable& jobs() const { return jobs_; }
  const GroupTable& groups() const { return groups_; }
  const CoreOptions& options() const { return options_; }
  std::string check() const {
    const std::string wrong = actors_.check();
    return wrong.empty() ? groups_.check() : wrong;
  }

 private:
  Result<wire::RegisterNodeReply> register_node(const wire::RegisterNode& request, const Moment& moment,
                                                Outbox& out);
  Result<wire::RegisterActorReply> register_actor(const wire::RegisterActor& request, Outbox& out);
  Result<wire::PlacementGroupReply> create_group(const wire::PlacementGroupRequest& request, Outbox& out);
  void finish_job(const JobId& job, bool failed, const Moment& moment, Outbox& out);
  void node_changed(Outbox& out);
  /// Actors and groups follow each other: what waited for a group, groups that a dead actor leaves behind.
  void settle(Outbox& out);
  Result<std::string> dispatch(const NodeId& from, wire::ControlMethod method, std::string_view body,
                               const Moment& moment, Outbox& out);
  Result<void> recover_row(const Row& row);

  CoreOptions options_;
  NodeTable nodes_;
  GroupTable groups_;
  ActorTable actors_;
  JobTable jobs_;
  KvTable kv_;
  AnswerTable answers_;
};

/// The JSON behind ClusterInfo: "nodes" (in the shape of Ray's nodes()), "actors", "jobs",
/// "placement_groups", "cluster_resources", "available_resources". kNotFound for anything else.
Result<std::string> cluster_info(const ControlCore& core, const wire::ClusterInfo& request);

}  // namespace skate::control
