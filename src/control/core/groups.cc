#include "control/core/groups.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace skate::control {

std::vector<NodeView> GroupTable::room(bool when_empty) const {
  std::vector<NodeView> views = nodes_.views();
  for (NodeView& view : views) view.available = view.total;
  if (when_empty) return views;
  for (const auto& [id, group] : groups_) {
    for (size_t i = 0; i < group.nodes.size(); ++i) {
      for (NodeView& view : views) {
        if (view.node != group.nodes[i]) continue;
        for (const auto& [name, amount] : group.request.bundles[i]) view.available[name] -= amount;
      }
    }
  }
  return views;
}

bool GroupTable::plan(GroupRecord& group) {
  const std::optional<GroupStrategy> strategy = parse_group_strategy(group.request.strategy);
  auto nodes = plan_bundles(room(false), group.request.bundles, strategy.value_or(GroupStrategy::kPack));
  if (!nodes) return false;
  group.nodes = std::move(*nodes);
  group.state = GroupState::kCreated;
  return true;
}

Result<wire::PlacementGroupReply> GroupTable::create(const wire::PlacementGroupRequest& request,
                                                     Outbox& out) {
  if (const auto known = groups_.find(request.group); known != groups_.end()) return describe(known->second);
  if (!parse_group_strategy(request.strategy))
    return Error{ErrorCode::kInvalid, "the strategy is PACK, SPREAD, STRICT_PACK or STRICT_SPREAD, not '" +
                                          request.strategy + "'"};
  if (request.bundles.empty()) return Error{ErrorCode::kInvalid, "a placement group has at least one bundle"};
  for (const wire::Resources& bundle : request.bundles) {
    const bool some =
        std::any_of(bundle.begin(), bundle.end(), [](const auto& entry) { return entry.second > 0; });
    const bool negative =
        std::any_of(bundle.begin(), bundle.end(), [](const auto& entry) { return entry.second < 0; });
    if (!some || negative)
      return Error{ErrorCode::kInvalid, "each bundle asks for some resource, and none for less than nothing"};
  }
  if (groups_.size() - removed_.size() >= kGroupsMax)
    return Error{ErrorCode::kFull, "there are too many placement groups"};
  GroupRecord& group = groups_[request.group];
  group.request = request;
  plan(group);
  out.put(Table::kGroups, request.group, group);
  return describe(group);
}

void GroupTable::set_removed(GroupRecord& group, Outbox& out) {
  if (group.state == GroupState::kRemoved) return;
  group.state = GroupState::kRemoved;
  group.nodes.clear();
  const PlacementGroupId id = group.request.group;
  out.erase(Table::kGroups, id);
  removed_.push_back(id);
}

Result<wire::PlacementGroupReply> GroupTable::remove(const PlacementGroupId& id, Outbox& out) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return Error{ErrorCode::kNotFound, "there is no placement group " + id.hex()};
  set_removed(found->second, out);
  wire::PlacementGroupReply reply = describe(found->second);
  if (removed_.size() > kRemovedKept) {
    groups_.erase(removed_.front());
    removed_.pop_front();
  }
  plan_waiting(out);
  return reply;
}

Result<wire::PlacementGroupReply> GroupTable::get(const PlacementGroupId& id) const {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return Error{ErrorCode::kNotFound, "there is no placement group " + id.hex()};
  return describe(found->second);
}

void GroupTable::job_finished(const JobId& job, Outbox& out) {
  for (auto& [id, group] : groups_) {
    if (group.request.job == job && !group.request.detached) set_removed(group, out);
  }
  while (removed_.size() > kRemovedKept) {
    groups_.erase(removed_.front());
    removed_.pop_front();
  }
  plan_waiting(out);
}

void GroupTable::node_died(const NodeId& node, Outbox& out) {
  for (auto& [id, group] : groups_) {
    if (std::find(group.nodes.begin(), group.nodes.end(), node) == group.nodes.end()) continue;
    group.state = GroupState::kPending;  // placed again as a whole
    group.nodes.clear();
    out.put(Table::kGroups, id, group);
  }
  plan_waiting(out);
}

void GroupTable::plan_waiting(Outbox& out) {
  for (auto& [id, group] : groups_) {
    if (group.state == GroupState::kPending && plan(group)) out.put(Table::kGroups, id, group);
  }
}

wire::PlacementGroupReply GroupTable::describe(const GroupRecord& group) const {
  wire::PlacementGroupReply reply;
  reply.created = group.state == GroupState::kCreated;
  switch (group.state) {
    case GroupState::kCreated: reply.state = "CREATED"; break;
    case GroupState::kRemoved: reply.state = "REMOVED"; break;
    case GroupState::kPrepared: reply.state = "PENDING"; break;
    case GroupState::kPending: {
      const auto strategy = parse_group_strategy(group.request.strategy).value_or(GroupStrategy::kPack);
      reply.state = plan_bundles(room(true), group.request.bundles, strategy) ? "PENDING" : "INFEASIBLE";
    }
  }
  nlohmann::json json;
  json["placement_group_id"] = group.request.group.hex();
  json["name"] = group.request.name;
  json["strategy"] = group.request.strategy.empty() ? "PACK" : group.request.strategy;
  json["state"] = reply.state == "INFEASIBLE" ? "PENDING" : reply.state;
  json["bundles"] = nlohmann::json::object();
  json["bundles_to_node_id"] = nlohmann::json::object();
  for (size_t i = 0; i < group.request.bundles.size(); ++i) {
    nlohmann::json bundle = nlohmann::json::object();
    for (const auto& [name, amount] : group.request.bundles[i])
      bundle[name] = static_cast<double>(amount) / static_cast<double>(wire::kResourceUnit);
    json["bundles"][std::to_string(i)] = std::move(bundle);
    if (i < group.nodes.size()) json["bundles_to_node_id"][std::to_string(i)] = group.nodes[i].hex();
  }
  reply.json = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return reply;
}

void GroupTable::recover(GroupRecord record) {
  const PlacementGroupId id = record.request.group;
  groups_[id] = std::move(record);
}

}  // namespace skate::control
