// NodeTable: which nodes there are, what they last said, and since when one is out of contact.
// Pure. Not durable: nodes register again, and a recovered service expects those that its actors lived on.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "base/result.h"
#include "control/core/outbox.h"
#include "control/core/placement.h"

namespace skate::control {

struct Node {
  wire::RegisterNode info;
  wire::Resources available;
  wire::Resources bundles;  ///< of placement groups, as reported
  wire::Resources bundles_available;
  uint64_t report_sequence{};
  uint64_t queued_tasks{};
  std::map<std::string, int64_t> stats;
  bool alive = true;
  bool expected = false;               ///< known from recovered actors only; has not registered yet
  std::optional<TimeMs> lost_contact;  ///< since when its connection is down
  TimeMs registered_at{};
  std::string death_message;
};

class NodeTable {
 public:
  static constexpr size_t kDeadKept = 1000;

  /// kDenied for a node that was declared dead: its work has been given to others.
  Result<void> add(const wire::RegisterNode& info, TimeMs now);
  /// Waits for a node of which only the name is known.
  void expect(const NodeId& node, TimeMs now);
  void report(const wire::NodeReport& report);
  void lose_contact(const NodeId& node, TimeMs now);
  void die(const NodeId& node, std::string message);

  bool usable(const NodeId& node) const;
  bool dead(const NodeId& node) const;
  const std::map<NodeId, Node>& all() const { return nodes_; }
  std::vector<NodeId> connected() const;
  /// Alive ones; the caller fills in the number of actors.
  std::vector<NodeView> views() const;
  /// Those out of contact for `grace_ms`.
  std::vector<NodeId> overdue(TimeMs now, int64_t grace_ms) const;
  std::optional<TimeMs> next_overdue(int64_t grace_ms) const;

 private:
  std::map<NodeId, Node> nodes_;
  std::vector<NodeId> dead_order_;
};

}  // namespace skate::control
