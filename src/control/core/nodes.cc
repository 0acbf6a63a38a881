#include "control/core/nodes.h"

namespace skate::control {

Result<void> NodeTable::add(const wire::RegisterNode& info, TimeMs now) {
  const auto found = nodes_.find(info.node);
  if (found != nodes_.end() && !found->second.alive)
    return Error{ErrorCode::kDenied, "node " + info.node.hex() + " was declared dead (" +
                                         found->second.death_message +
                                         "): its actors live elsewhere, start it anew"};
  Node& node = nodes_[info.node];
  const bool fresh = found == nodes_.end() || node.expected;
  node.info = info;
  node.info.live_actors.clear();  // kept by the actor table
  node.info.reservations.clear();
  if (fresh) {
    node.available = info.resources;
    node.registered_at = now;
  }
  // A daemon that comes back counts its reports on; one that forgot starts lower and must be heard again.
  node.report_sequence = 0;
  node.expected = false;
  node.lost_contact.reset();
  return {};
}

void NodeTable::expect(const NodeId& id, TimeMs now) {
  if (nodes_.contains(id) || id.is_nil()) return;
  Node& node = nodes_[id];
  node.info.node = id;
  node.expected = true;
  node.lost_contact = now;
}

void NodeTable::report(const wire::NodeReport& report) {
  const auto found = nodes_.find(report.node);
  if (found == nodes_.end() || !found->second.alive) return;
  Node& node = found->second;
  if (report.sequence <= node.report_sequence && report.sequence != 0) return;  // overtaken on the way
  node.report_sequence = report.sequence;
  node.available = report.available;
  node.queued_tasks = report.queued_tasks;
  node.stats = report.stats;
  node.bundles = report.bundles;
  node.bundles_available = report.bundles_available;
}

void NodeTable::lose_contact(const NodeId& id, TimeMs now) {
  const auto found = nodes_.find(id);
  if (found != nodes_.end() && found->second.alive && !found->second.lost_contact)
    found->second.lost_contact = now;
}

void NodeTable::die(const NodeId& id, std::string message) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end() || !found->second.alive) return;
  found->second.alive = false;
  found->second.lost_contact.reset();
  found->second.available.clear();
  found->second.bundles.clear();
  found->second.bundles_available.clear();
  found->second.death_message = std::move(message);
  dead_order_.push_back(id);
  if (dead_order_.size() > kDeadKept) {
    nodes_.erase(dead_order_.front());
    dead_order_.erase(dead_order_.begin());
  }
}

bool NodeTable::usable(const NodeId& id) const {
  const auto found = nodes_.find(id);
  return found != nodes_.end() && found->second.alive && !found->second.expected;
}

bool NodeTable::dead(const NodeId& id) const {
  const auto found = nodes_.find(id);
  return found != nodes_.end() && !found->second.alive;
}

std::vector<NodeId> NodeTable::connected() const {
  std::vector<NodeId> out;
  for (const auto& [id, node] : nodes_) {
    if (node.alive && !node.expected && !node.lost_contact) out.push_back(id);
  }
  return out;
}

std::vector<NodeView> NodeTable::views() const {
  std::vector<NodeView> out;
  for (const auto& [id, node] : nodes_) {
    if (node.alive && !node.expected && !node.lost_contact)
      out.push_back({id, node.info.resources, node.available, 0, node.info.labels});
  }
  return out;
}

std::vector<NodeId> NodeTable::overdue(TimeMs now, int64_t grace_ms) const {
  std::vector<NodeId> out;
  for (const auto& [id, node] : nodes_) {
    if (node.alive && node.lost_contact && *node.lost_contact + grace_ms <= now) out.push_back(id);
  }
  return out;
}

std::optional<TimeMs> NodeTable::next_overdue(int64_t grace_ms) const {
  std::optional<TimeMs> next;
  for (const auto& [id, node] : nodes_) {
    if (node.alive && node.lost_contact && (!next || *node.lost_contact + grace_ms < *next))
      next = *node.lost_contact + grace_ms;
  }
  return next;
}

}  // namespace skate::control
