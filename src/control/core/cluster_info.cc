#include <nlohmann/json.hpp>

#include "control/core/control_core.h"

namespace skate::control {
namespace {

using nlohmann::json;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json to_json(const wire::Resources& resources) {
  json out = json::object();
  for (const auto& [name, amount] : resources)
    out[name] = static_cast<double>(amount) / static_cast<double>(wire::kResourceUnit);
  return out;
}

const char* state_name(const ActorRecord& actor) {
  switch (actor.info.state) {
    case wire::ActorState::kPending: return actor.placed ? "PENDING_CREATION" : "DEPENDENCIES_UNREADY";
    case wire::ActorState::kAlive: return "ALIVE";
    case wire::ActorState::kRestarting: return "RESTARTING";
    case wire::ActorState::kDead: return "DEAD";
  }
  return "UNKNOWN";
}

json nodes(const ControlCore& core) {
  json out = json::array();
  for (const auto& [id, node] : core.nodes().all()) {
    if (node.expected) continue;
    json entry;
    entry["NodeID"] = id.hex();
    entry["Alive"] = node.alive;
    entry["alive"] = node.alive;
    entry["NodeManagerAddress"] = node.info.ip;
    entry["NodeManagerHostname"] = node.info.name;
    entry["NodeManagerPort"] = 0;
    entry["ObjectManagerPort"] = 0;
    entry["ObjectStoreSocketName"] = node.info.socket_path;
    entry["RayletSocketName"] = node.info.socket_path;
    entry["MetricsExportPort"] = 0;
    entry["NodeName"] = node.info.name.empty() ? node.info.ip : node.info.name;
    entry["DeathReason"] = node.alive ? 0 : 1;
    entry["DeathReasonMessage"] = node.death_message;
    entry["Resources"] = node.alive ? to_json(node.info.resources) : json::object();
    entry["Labels"] = node.info.labels;
    entry["IsHead"] = node.info.is_head;
    entry["Available"] = to_json(node.available);
    entry["QueuedTasks"] = node.queued_tasks;
    entry["Stats"] = node.stats;
    out.push_back(std::move(entry));
  }
  return out;
}

json actors(const ControlCore& core) {
  json out = json::array();
  for (const auto& [id, actor] : core.actors().all()) {
    json entry;
    entry["actor_id"] = id.hex();
    entry["class_name"] = actor.info.class_name;
    entry["state"] = state_name(actor);
    entry["name"] = actor.info.name;
    entry["namespace"] = actor.info.name_space;
    entry["job_id"] = actor.info.job.hex();
    entry["node_id"] = actor.node.is_nil() ? "" : actor.node.hex();
    entry["worker_id"] = actor.info.address.worker.is_nil() ? "" : actor.info.address.worker.hex();
    entry["pid"] = actor.info.pid;
    entry["is_detached"] = actor.info.detached;
    entry["num_restarts"] = actor.info.incarnation;
    entry["max_restarts"] = actor.max_restarts;
    entry["death_cause"] = actor.info.death.message;
    out.push_back(std::move(entry));
  }
  return out;
}

json jobs(const ControlCore& core) {
  json out = json::array();
  for (const auto& [id, job] : core.jobs().all()) {
    json entry;
    entry["JobID"] = id.hex();
    entry["Namespace"] = job.name_space;
    entry["DriverPid"] = job.pid;
    entry["DriverNodeID"] = job.driver.node.is_nil() ? "" : job.driver.node.hex();
    entry["IsDead"] = job.ended_ms != 0;
    entry["Failed"] = job.failed;
    entry["StartTime"] = job.began_ms;
    entry["EndTime"] = job.ended_ms;
    json config = json::parse(job.job_json, nullptr, false);
    entry["Config"] = config.is_discarded() ? json::object() : std::move(config);
    out.push_back(std::move(entry));
  }
  return out;
}

/// Rows, of all groups or of the one whose id is in the arguments.
json groups(const ControlCore& core, const std::string& arguments) {
  const json wanted = json::parse(arguments, nullptr, false);
  const bool one = wanted.is_object() && wanted.contains("id") && wanted["id"].is_string();
  json out = json::array();
  for (const auto& [id, group] : core.groups().all())
    if (!one || id.hex() == wanted["id"].get<std::string>())
      out.push_back(json::parse(core.groups().describe(group).json, nullptr, false));
  return out;
}

json sum(const ControlCore& core, bool available) {
  wire::Resources total;
  for (const auto& [id, node] : core.nodes().all()) {
    if (!node.alive || node.expected) continue;
    for (const auto& [name, amount] : available ? node.available : node.info.resources) total[name] += amount;
    for (const auto& [name, amount] : available ? node.bundles_available : node.bundles)
      total[name] += amount;
  }
  // What is used up is left out, as in Ray.
  std::erase_if(total, [&](const auto& entry) { return available && entry.second <= 0; });
  return to_json(total);
}

}  // namespace

Result<std::string> cluster_info(const ControlCore& core, const wire::ClusterInfo& request) {
  if (request.what == "nodes") return dump(nodes(core));
  if (request.what == "actors") return dump(actors(core));
  if (request.what == "jobs") return dump(jobs(core));
  if (request.what == "placement_groups") return dump(groups(core, request.arguments));
  if (request.what == "cluster_resources") return dump(sum(core, false));
  if (request.what == "available_resources") return dump(sum(core, true));
  return Error{ErrorCode::kNotFound, "the control service knows nothing called '" + request.what + "'"};
}

}  // namespace skate::control
