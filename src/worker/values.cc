#include "worker/values.h"

#include "wire/value.h"

namespace skate::worker {

namespace {

const char* kind_text(wire::DeathKind kind) {
  switch (kind) {
    case wire::DeathKind::kUnknown: return "unknown";
    case wire::DeathKind::kExited: return "exited";
    case wire::DeathKind::kSignalled: return "signalled";
    case wire::DeathKind::kOutOfMemory: return "out_of_memory";
    case wire::DeathKind::kNodeLost: return "node_lost";
    case wire::DeathKind::kOwnerDied: return "owner_died";
    case wire::DeathKind::kKilled: return "killed";
    case wire::DeathKind::kIntended: return "intended";
    case wire::DeathKind::kEnvironment: return "environment";
    case wire::DeathKind::kConstructor: return "constructor";
    case wire::DeathKind::kUnschedulable: return "unschedulable";
    case wire::DeathKind::kNeverCreated: return "never_created";
    case wire::DeathKind::kGroupRemoved: return "group_removed";
    case wire::DeathKind::kStartFailed: return "start_failed";
  }
  return "unknown";
}

}  // namespace

BlobPtr system_error(const std::string& kind, const std::map<std::string, std::string>& fields) {
  return Blob::copy(wire::encode_system_error(kind, fields));
}

std::map<std::string, std::string> death_fields(const wire::Death& death) {
  std::map<std::string, std::string> fields;
  fields["cause"] = death.message.empty() ? kind_text(death.kind) : death.message;
  fields["kind"] = kind_text(death.kind);
  if (death.kind == wire::DeathKind::kIntended) fields["intended"] = "1";
  if (death.pid != 0) fields["pid"] = std::to_string(death.pid);
  if (death.kind == wire::DeathKind::kExited) fields["exit_code"] = std::to_string(death.exit_code);
  if (death.signal != 0) fields["signal"] = std::to_string(death.signal);
  if (!death.log_tail.empty()) fields["log_tail"] = death.log_tail;
  if (!death.error_value.empty()) {
    // The constructor's exception: its pickle, in hexadecimal since fields are text.
    Result<wire::ValueView> view = wire::parse_value(
        {reinterpret_cast<const uint8_t*>(death.error_value.data()), death.error_value.size()});
    if (view.ok() && view->format() == wire::ValueFormat::kError)
      fields["creation_error_hex"] = to_hex(view->inband().data(), view->inband().size());
  }
  return fields;
}

const char* error_kind_of(const wire::Death& death, bool of_actor) {
  switch (death.kind) {
    case wire::DeathKind::kOutOfMemory: return "out_of_memory";
    case wire::DeathKind::kEnvironment: return "runtime_env";
    case wire::DeathKind::kUnschedulable: return "unschedulable";
    case wire::DeathKind::kGroupRemoved: return "placement_group_removed";
    case wire::DeathKind::kStartFailed: return of_actor ? "actor_died" : "start_failed";
    case wire::DeathKind::kNodeLost: return of_actor ? "actor_died" : "node_died";
    default: return of_actor ? "actor_died" : "worker_died";
  }
}

BlobPtr task_error(const wire::Death& death, const std::string& task_name, uint32_t retries) {
  std::map<std::string, std::string> fields = death_fields(death);
  fields["task_name"] = task_name;
  if (retries != 0) fields["retries"] = std::to_string(retries);
  return system_error(error_kind_of(death, false), fields);
}

BlobPtr lost_object_error(const ObjectId& id, const std::string& why) {
  return system_error("object_lost", {{"object_id", id.hex()}, {"message", why}});
}

BlobPtr owner_died_error(const ObjectId& id, const wire::Death& death) {
  std::map<std::string, std::string> fields = death_fields(death);
  fields["object_id"] = id.hex();
  return system_error("owner_died", fields);
}

BlobPtr cancelled_error(const TaskId& task, const std::string& task_name) {
  return system_error("task_cancelled", {{"task_id", task.hex()}, {"task_name", task_name}});
}

}  // namespace skate::worker
