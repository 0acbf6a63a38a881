// GroupTable: placement groups, from the request to their removal. Pure.
//
//   Pending --plan--> (Prepared --all nodes agree-->) Created --node lost--> Pending
//   any --remove, job ended--> Removed
// A group that today's nodes could not hold even when empty is Pending, and reported as INFEASIBLE. Prepared
// is the first phase of the two in which several nodes reserve all bundles or none; a plan that needs no
// node's consent goes straight to Created. Free room is what nodes have in all, less what other groups
// reserve.
#pragma once

#include <deque>
#include <map>

#include "base/result.h"
#include "control/core/nodes.h"
#include "control/core/outbox.h"
#include "control/core/placement.h"

namespace skate::control {

enum class GroupState : uint8_t { kPending, kPrepared, kCreated, kRemoved };

struct GroupRecord {
  wire::PlacementGroupRequest request;
  GroupState state{};
  std::vector<NodeId> nodes;  ///< by bundle, when prepared or created
};

class GroupTable {
 public:
  static constexpr size_t kGroupsMax = 100'000;
  static constexpr size_t kRemovedKept = 1000;

  explicit GroupTable(NodeTable& nodes) : nodes_(nodes) {}

  Result<wire::PlacementGroupReply> create(const wire::PlacementGroupRequest& request, Outbox& out);
  Result<wire::PlacementGroupReply> remove(const PlacementGroupId& group, Outbox& out);
  Result<wire::PlacementGroupReply> get(const PlacementGroupId& group) const;
  void job_finished(const JobId& job, Outbox& out);
  void node_died(const NodeId& node, Outbox& out);
  /// Plans those that wait, oldest id first.
  void plan_waiting(Outbox& out);
  const std::map<PlacementGroupId, GroupRecord>& all() const { return groups_; }
  wire::PlacementGroupReply describe(const GroupRecord& group) const;

  void recover(GroupRecord record);

 private:
  std::vector<NodeView> room(bool when_empty) const;
  bool plan(GroupRecord& group);
  void set_removed(GroupRecord& group, Outbox& out);

  NodeTable& nodes_;
  std::map<PlacementGroupId, GroupRecord> groups_;
  std::deque<PlacementGroupId> removed_;
};

}  // namespace skate::control
