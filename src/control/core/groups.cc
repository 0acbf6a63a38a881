#include "control/core/groups.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace skate::control {

namespace {

std::vector<BundleWish> wishes_of(const wire::PlacementGroupRequest& request) {
  std::vector<BundleWish> out;
  for (size_t i = 0; i < request.bundles.size(); ++i) {
    out.push_back({request.bundles[i], {}});
    if (i < request.bundle_labels.size()) out.back().labels = wire::parse_selector(request.bundle_labels[i]);
  }
  return out;
}

GroupStrategy strategy_of(const wire::PlacementGroupRequest& request) {
  return parse_group_strategy(request.strategy).value_or(GroupStrategy::kPack);
}

std::set<NodeId> nodes_of(const GroupRecord& group) { return {group.nodes.begin(), group.nodes.end()}; }

bool holds_room(const GroupRecord& group) {
  return group.state == GroupState::kReserving || group.state == GroupState::kCreated;
}

}  // namespace

std::vector<NodeView> GroupTable::views(bool when_empty) const {
  std::vector<NodeView> views = nodes_.views();
  if (when_empty) {
    for (NodeView& view : views) view.available = view.total;
    return views;
  }
  // What is being reserved shows in no report yet.
  for (const auto& [id, unready] : unready_) {
    const GroupRecord& group = groups_.at(id);
    for (size_t i = 0; i < group.nodes.size(); ++i) {
      for (NodeView& view : views) {
        if (view.node != group.nodes[i]) continue;
        for (const auto& [name, amount] : group.request.bundles[i]) view.available[name] -= amount;
      }
    }
  }
  return views;
}

bool GroupTable::feasible(const GroupRecord& group) const {
  return plan_bundles(views(true), wishes_of(group.request), strategy_of(group.request)).has_value();
}

/// Where there is room now; or else one node that could hold it all, and waits for room.
std::optional<std::vector<NodeId>> GroupTable::find_nodes(const GroupRecord& group) const {
  const std::vector<BundleWish> wishes = wishes_of(group.request);
  const GroupStrategy strategy = strategy_of(group.request);
  const NodeId& target = group.request.soft_target;
  if (auto nodes = plan_bundles(views(false), wishes, strategy, target)) return nodes;
  std::vector<NodeView> empty = views(true);
  std::stable_partition(empty.begin(), empty.end(),
                        [&](const NodeView& view) { return view.node == target; });
  for (const NodeView& view : empty) {
    if (auto nodes = plan_bundles(std::span(&view, 1), wishes, strategy)) return nodes;
  }
  return std::nullopt;
}

bool GroupTable::plan(GroupRecord& group, Outbox& out) {
  std::optional<std::vector<NodeId>> nodes = find_nodes(group);
  if (!nodes) return false;
  group.nodes = std::move(*nodes);
  group.state = GroupState::kReserving;
  ++group.attempt;
  unready_[group.request.group] = nodes_of(group);
  for (const NodeId& node : nodes_of(group)) order_reservation(group, node, out);
  return true;
}

void GroupTable::order_reservation(const GroupRecord& group, const NodeId& node, Outbox& out) const {
  wire::ReserveBundles order{group.request.group, group.attempt, {}, nodes_of(group).size() == 1};
  for (size_t i = 0; i < group.nodes.size(); ++i)
    if (group.nodes[i] == node) order.bundles[static_cast<int32_t>(i)] = group.request.bundles[i];
  out.send(node, wire::NodeCommand::kReserveBundles, order);
}

void GroupTable::to_nodes(const GroupRecord& group, wire::NodeCommand command, bool removed,
                          const std::string& why, Outbox& out) const {
  for (const NodeId& node : nodes_of(group))
    if (nodes_.usable(node))
      out.send(node, command, wire::GroupOrder{group.request.group, group.attempt, removed, why});
}

void GroupTable::changed(GroupRecord& group, Outbox& out) {
  ++group.version;
  if (group.state != GroupState::kReserving) changed_ = true;
  const PlacementGroupId& id = group.request.group;
  if (group.state == GroupState::kRemoved) {
    out.erase(Table::kGroups, id);
  } else {
    out.put(Table::kGroups, id, group);
  }
  const auto watchers = watchers_.find(id);
  if (watchers == watchers_.end()) return;
  wire::Publish publish;
  publish.topic = wire::ControlTopic::kGroup;
  publish.body = wire::encode(describe(group));
  for (const NodeId& node : watchers->second) out.send(node, wire::NodeCommand::kPublish, publish);
  if (group.state == GroupState::kRemoved) watchers_.erase(watchers);
}

Result<wire::PlacementGroupReply> GroupTable::create(const wire::PlacementGroupRequest& request,
                                                     bool job_ended, Outbox& out) {
  if (const auto known = groups_.find(request.group); known != groups_.end()) return describe(known->second);
  if (request.group.is_nil()) return Error{ErrorCode::kInvalid, "a placement group needs an id"};
  if (!parse_group_strategy(request.strategy))
    return Error{ErrorCode::kInvalid, "the strategy is PACK, SPREAD, STRICT_PACK or STRICT_SPREAD, not '" +
                                          request.strategy + "'"};
  if (request.bundles.empty()) return Error{ErrorCode::kInvalid, "a placement group has at least one bundle"};
  if (request.bundles.size() > kBundlesMax)
    return Error{ErrorCode::kInvalid,
                 "a placement group has at most " + std::to_string(kBundlesMax) + " bundles"};
  if (!request.bundle_labels.empty() && request.bundle_labels.size() != request.bundles.size())
    return Error{ErrorCode::kInvalid, "there is a label selector for each bundle, or for none"};
  for (const wire::Resources& bundle : request.bundles) {
    const bool some =
        std::any_of(bundle.begin(), bundle.end(), [](const auto& entry) { return entry.second > 0; });
    const bool negative =
        std::any_of(bundle.begin(), bundle.end(), [](const auto& entry) { return entry.second < 0; });
    if (!some || negative)
      return Error{ErrorCode::kInvalid, "each bundle asks for some resource, and none for less than nothing"};
  }
  const std::pair<std::string, std::string> full_name{request.name_space, request.name};
  if (!request.name.empty() && names_.contains(full_name))
    return Error{ErrorCode::kExists, "the name '" + request.name + "' is taken by placement group " +
                                         names_.at(full_name).hex() +
                                         ": choose another name, or remove that group first"};
  if (groups_.size() - removed_.size() >= kGroupsMax)
    return Error{ErrorCode::kFull, "there are too many placement groups"};
  if (!request.name.empty()) names_[full_name] = request.group;
  GroupRecord& group = groups_[request.group];
  group.request = request;
  if (job_ended && !request.detached) orphans_.insert(request.group);
  if (!plan(group, out)) pending_.push_back(request.group);
  changed(group, out);
  return describe(group);
}

void GroupTable::set_pending(GroupRecord& group, const std::string& why, Outbox& out) {
  to_nodes(group, wire::NodeCommand::kReturnBundles, false, why, out);
  group.state = GroupState::kPending;
  group.nodes.clear();
  unready_.erase(group.request.group);
  pending_.push_back(group.request.group);
  changed(group, out);
}

void GroupTable::set_removed(GroupRecord& group, const std::string& why, Outbox& out) {
  if (group.state == GroupState::kRemoved) return;
  const PlacementGroupId id = group.request.group;
  if (holds_room(group)) to_nodes(group, wire::NodeCommand::kReturnBundles, true, why, out);
  group.state = GroupState::kRemoved;
  std::erase(pending_, id);
  unready_.erase(id);
  orphans_.erase(id);
  if (!group.request.name.empty()) names_.erase({group.request.name_space, group.request.name});
  changed(group, out);
  removed_.push_back(id);
}

void GroupTable::forget_oldest() {
  while (removed_.size() > kRemovedKept) {
    groups_.erase(removed_.front());
    removed_.pop_front();
  }
}

Result<wire::PlacementGroupReply> GroupTable::remove(const PlacementGroupId& id, Outbox& out) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return Error{ErrorCode::kNotFound, "there is no placement group " + id.hex()};
  set_removed(found->second, "its placement group " + id.hex() + " was removed", out);
  wire::PlacementGroupReply reply = describe(found->second);
  forget_oldest();
  return reply;
}

Result<wire::PlacementGroupReply> GroupTable::get(const wire::PlacementGroupRequest& request,
                                                  const NodeId& asking) {
  PlacementGroupId id = request.group;
  if (id.is_nil()) {
    const auto named = names_.find({request.name_space, request.name});
    if (named == names_.end())
      return Error{ErrorCode::kNotFound, "there is no placement group named '" + request.name + "'"};
    id = named->second;
  }
  const auto found = groups_.find(id);
  if (found == groups_.end()) return Error{ErrorCode::kNotFound, "there is no placement group " + id.hex()};
  if (!asking.is_nil() && found->second.state != GroupState::kRemoved) watchers_[id].insert(asking);
  return describe(found->second);
}

void GroupTable::reserved(const NodeId& from, const wire::BundlesReserved& report, Outbox& out) {
  const auto found = groups_.find(report.group);
  if (found == groups_.end() || found->second.attempt != report.attempt ||
      found->second.state != GroupState::kReserving)
    return;  // late or repeated
  GroupRecord& group = found->second;
  std::set<NodeId>& unready = unready_[report.group];
  if (!unready.contains(from)) return;
  if (!report.ok) {
    set_pending(group, "its placement group is placed anew", out);
    return;  // planned again when a node reports
  }
  unready.erase(from);
  if (!unready.empty()) return;
  unready_.erase(report.group);
  group.state = GroupState::kCreated;
  to_nodes(group, wire::NodeCommand::kCommitBundles, false, "", out);
  changed(group, out);
}

void GroupTable::job_finished(const JobId& job, const IsLivingActor& is_living, Outbox& out) {
  for (auto& [id, group] : groups_) {
    if (group.request.job != job || group.request.detached || group.state == GroupState::kRemoved) continue;
    if (is_living(group.request.creator)) {
      orphans_.insert(id);
    } else {
      set_removed(group, "the job of its placement group " + id.hex() + " has ended", out);
    }
  }
  forget_oldest();
}

void GroupTable::recover_ended(const JobId& job) {
  for (const auto& [id, group] : groups_)
    if (group.request.job == job && !group.request.detached && group.state != GroupState::kRemoved)
      orphans_.insert(id);
}

void GroupTable::end_orphans(const IsLivingActor& is_living, Outbox& out) {
  const std::set<PlacementGroupId> orphans = orphans_;
  for (const PlacementGroupId& id : orphans) {
    GroupRecord& group = groups_.at(id);
    if (!is_living(group.request.creator))
      set_removed(group, "the actor that made its placement group " + id.hex() + " has ended", out);
  }
  forget_oldest();
}

void GroupTable::node_died(const NodeId& node, Outbox& out) {
  for (auto& [id, group] : groups_) {
    if (holds_room(group) && nodes_of(group).contains(node))
      set_pending(group, "its placement group is placed anew as a whole, since a node of it was lost", out);
  }
  for (auto& [id, watching] : watchers_) watching.erase(node);
  plan_waiting(out);
}

void GroupTable::node_registered(const wire::RegisterNode& info, Outbox& out) {
  for (const auto& [id, attempt] : info.reservations) {
    const auto found = groups_.find(id);
    const bool gone = found == groups_.end() || found->second.state == GroupState::kRemoved;
    const bool wanted = !gone && found->second.attempt == attempt && holds_room(found->second) &&
                        nodes_of(found->second).contains(info.node);
    if (!wanted)
      out.send(info.node, wire::NodeCommand::kReturnBundles,
               wire::GroupOrder{id, attempt, gone, "its placement group is gone or placed elsewhere"});
  }
  for (const auto& [id, group] : groups_) {
    if (!holds_room(group) || !nodes_of(group).contains(info.node)) continue;
    order_reservation(group, info.node, out);
    if (group.state == GroupState::kCreated)
      out.send(info.node, wire::NodeCommand::kCommitBundles, wire::GroupOrder{id, group.attempt, false, ""});
  }
}

void GroupTable::plan_waiting(Outbox& out) {
  for (size_t left = pending_.size(); left > 0; --left) {
    const PlacementGroupId id = pending_.front();
    pending_.pop_front();
    GroupRecord& group = groups_.at(id);
    if (plan(group, out)) {
      changed(group, out);
    } else {
      pending_.push_back(id);
    }
  }
}

GroupPlace GroupTable::place_for(const PlacementGroupId& id, int32_t bundle,
                                 const wire::Resources& need) const {
  const auto found = groups_.find(id);
  if (found == groups_.end() || found->second.state == GroupState::kRemoved)
    return {GroupPlace::Kind::kNever, {}, "its placement group " + id.hex() + " was removed"};
  const GroupRecord& group = found->second;
  std::optional<size_t> chosen;
  for (size_t i = 0; i < group.request.bundles.size() && !chosen; ++i) {
    const bool meant = bundle < 0 || static_cast<size_t>(bundle) == i;
    if (meant && fits(need, group.request.bundles[i])) chosen = i;
  }
  if (!chosen) {
    std::string which = bundle < 0 ? "no bundle" : "bundle " + std::to_string(bundle);
    return {
        GroupPlace::Kind::kNever,
        {},
        which + " of its placement group " + id.hex() + (bundle < 0 ? " can hold it" : " can not hold it")};
  }
  if (group.state != GroupState::kCreated) return {GroupPlace::Kind::kLater, {}, ""};
  return {GroupPlace::Kind::kHere, group.nodes[*chosen], ""};
}

wire::PlacementGroupReply GroupTable::describe(const GroupRecord& group) const {
  wire::PlacementGroupReply reply;
  reply.group = group.request.group;
  reply.version = group.version;
  reply.created = group.state == GroupState::kCreated;
  const char* scheduling = "";
  switch (group.state) {
    case GroupState::kCreated:
      reply.state = "CREATED";
      scheduling = "FINISHED";
      break;
    case GroupState::kRemoved:
      reply.state = "REMOVED";
      scheduling = "REMOVED";
      break;
    case GroupState::kReserving:
      reply.state = "PENDING";
      scheduling = "NO_RESOURCES";
      break;
    case GroupState::kPending:
      reply.state = feasible(group) ? "PENDING" : "INFEASIBLE";
      scheduling = reply.state == "PENDING" ? "NO_RESOURCES" : "INFEASIBLE";
      break;
  }
  nlohmann::json json;
  json["placement_group_id"] = group.request.group.hex();
  json["name"] = group.request.name;
  json["strategy"] = group.request.strategy.empty() ? "PACK" : group.request.strategy;
  json["state"] = reply.state == "INFEASIBLE" ? "PENDING" : reply.state;
  json["stats"] = {{"scheduling_state", scheduling}, {"scheduling_attempt", group.attempt}};
  json["bundles"] = nlohmann::json::object();
  json["bundles_to_node_id"] = nlohmann::json::object();
  const bool placed = group.state == GroupState::kCreated || group.state == GroupState::kRemoved;
  for (size_t i = 0; i < group.request.bundles.size(); ++i) {
    nlohmann::json bundle = nlohmann::json::object();
    for (const auto& [name, amount] : group.request.bundles[i])
      bundle[name] = static_cast<double>(amount) / static_cast<double>(wire::kResourceUnit);
    json["bundles"][std::to_string(i)] = std::move(bundle);
    json["bundles_to_node_id"][std::to_string(i)] =
        placed && i < group.nodes.size() ? group.nodes[i].hex() : std::string();
  }
  reply.json = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return reply;
}

void GroupTable::recover(GroupRecord record) {
  const PlacementGroupId id = record.request.group;
  if (record.state == GroupState::kPending) pending_.push_back(id);
  if (record.state == GroupState::kReserving) unready_[id] = nodes_of(record);
  if (!record.request.name.empty()) names_[{record.request.name_space, record.request.name}] = id;
  groups_[id] = std::move(record);
}

std::set<NodeId> GroupTable::recovered_nodes() const {
  std::set<NodeId> out;
  for (const auto& [id, group] : groups_)
    if (holds_room(group)) out.insert(group.nodes.begin(), group.nodes.end());
  return out;
}

std::string GroupTable::check() const {
  std::set<PlacementGroupId> pending(pending_.begin(), pending_.end());
  if (pending.size() != pending_.size()) return "a placement group waits twice";
  size_t named = 0, removed = 0;
  for (const auto& [id, group] : groups_) {
    const std::string who = "placement group " + id.hex();
    if ((group.state == GroupState::kPending) != pending.contains(id)) return who + " waits wrongly";
    if ((group.state == GroupState::kReserving) != unready_.contains(id)) return who + " reserves wrongly";
    if (holds_room(group)) {
      if (group.nodes.size() != group.request.bundles.size()) return who + " has bundles without a node";
      for (const NodeId& node : group.nodes)
        if (nodes_.dead(node)) return who + " is on a dead node";
    }
    removed += group.state == GroupState::kRemoved;
    named += group.state != GroupState::kRemoved && !group.request.name.empty();
  }
  if (removed != removed_.size()) return "the list of removed placement groups is wrong";
  if (named != names_.size()) return "a name belongs to no placement group";
  return {};
}

}  // namespace skate::control
