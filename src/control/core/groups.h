// GroupTable: placement groups, from the request to their removal. Pure.
//
//   Pending --plan--> Reserving --every node has reserved--> Created --a node is lost--> Pending
//                        |                                      |
//                        +-- a node refuses or is lost --> Pending
//   any --remove, its job (and a detached actor that made it) ended--> Removed
//
// Two phases: each node of a plan reserves its bundles, all or none (kReserveBundles); when all have, they
// are told to commit, and from then on serve the group. A node may wait for room only when the whole plan is
// its own; otherwise it answers at once, and the rest is taken back if it has none, so that no group holds a
// part while it waits for another. Each plan is an attempt with a number of its own; what comes of an earlier
// one is ignored. A group that today's nodes could not hold even when empty is Pending, and reported as
// INFEASIBLE.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>

#include "base/result.h"
#include "control/core/nodes.h"
#include "control/core/outbox.h"
#include "control/core/placement.h"

namespace skate::control {

enum class GroupState : uint8_t { kPending, kReserving, kCreated, kRemoved };

struct GroupRecord {
  wire::PlacementGroupRequest request;
  GroupState state{};
  std::vector<NodeId> nodes;  ///< by bundle, of the last plan
  uint64_t attempt{};
  uint64_t version{};  ///< counts the changes
};

/// Where something that runs in a group goes.
struct GroupPlace {
  enum class Kind : uint8_t { kHere, kLater, kNever } kind{};
  NodeId node;      ///< of kHere
  std::string why;  ///< of kNever
};

class GroupTable {
 public:
  static constexpr size_t kGroupsMax = 100'000;
  static constexpr size_t kRemovedKept = 1000;
  static constexpr size_t kBundlesMax = 10'000;  ///< of one group
  using IsLivingActor = std::function<bool(const WorkerId&)>;

  explicit GroupTable(NodeTable& nodes) : nodes_(nodes) {}

  /// kExists when a group of the namespace has the name. `job_ended`: only the actor that makes it keeps it.
  Result<wire::PlacementGroupReply> create(const wire::PlacementGroupRequest& request, bool job_ended,
                                           Outbox& out);
  Result<wire::PlacementGroupReply> remove(const PlacementGroupId& group, Outbox& out);
  /// `asking`, unless nil, is told of changes from now on.
  Result<wire::PlacementGroupReply> get(const wire::PlacementGroupRequest& request, const NodeId& asking);
  void reserved(const NodeId& from, const wire::BundlesReserved& report, Outbox& out);
  void job_finished(const JobId& job, const IsLivingActor& is_living, Outbox& out);
  /// Removes what only lives on because an actor made it, if that one is gone by now.
  void end_orphans(const IsLivingActor& is_living, Outbox& out);
  void node_died(const NodeId& node, Outbox& out);
  /// The node has come (back): it is told again what it is to hold, and to return what it is not.
  void node_registered(const wire::RegisterNode& info, Outbox& out);
  /// Plans those that wait, oldest first. To be called when nodes have come or reported.
  void plan_waiting(Outbox& out);
  const std::map<PlacementGroupId, GroupRecord>& all() const { return groups_; }
  wire::PlacementGroupReply describe(const GroupRecord& group) const;
  GroupPlace place_for(const PlacementGroupId& group, int32_t bundle, const wire::Resources& need) const;
  /// Whether a group was created, removed or lost its nodes since the last call.
  bool take_changed() { return std::exchange(changed_, false); }

  void recover(GroupRecord record);
  /// After all groups: what is left of this job lives as long as the actors that made it.
  void recover_ended(const JobId& job);
  std::set<NodeId> recovered_nodes() const;
  /// Empty, or which invariant does not hold; for tests.
  std::string check() const;

 private:
  std::vector<NodeView> views(bool when_empty) const;
  std::optional<std::vector<NodeId>> find_nodes(const GroupRecord& group) const;
  bool feasible(const GroupRecord& group) const;
  bool plan(GroupRecord& group, Outbox& out);
  void order_reservation(const GroupRecord& group, const NodeId& node, Outbox& out) const;
  void to_nodes(const GroupRecord& group, wire::NodeCommand command, bool removed, const std::string& why,
                Outbox& out) const;
  void set_pending(GroupRecord& group, const std::string& why, Outbox& out);
  void set_removed(GroupRecord& group, const std::string& why, Outbox& out);
  void forget_oldest();
  void changed(GroupRecord& group, Outbox& out);

  NodeTable& nodes_;
  std::map<PlacementGroupId, GroupRecord> groups_;
  std::map<std::pair<std::string, std::string>, PlacementGroupId> names_;  // of those not removed
  std::deque<PlacementGroupId> pending_;                                   // oldest first
  std::map<PlacementGroupId, std::set<NodeId>> unready_;  // of those reserving: who has not answered
  std::map<PlacementGroupId, std::set<NodeId>> watchers_;
  std::set<PlacementGroupId> orphans_;  // their job has ended, the detached actor that made them has not
  std::deque<PlacementGroupId> removed_;
  bool changed_ = false;
};

}  // namespace skate::control
