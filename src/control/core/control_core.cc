#include "control/core/control_core.h"

namespace skate::control {

using wire::ControlMethod;

namespace {

/// The idempotency key of a message that has one.
template <class Message>
uint64_t key_of(const Message& message) {
  if constexpr (requires { message.key; }) return message.key;
  return 0;
}

bool is_repeatable_read(const wire::Kv& kv) {
  return kv.operation == wire::KvOperation::kGet || kv.operation == wire::KvOperation::kExists ||
         kv.operation == wire::KvOperation::kKeys;
}

/// Asking again may help after some errors; then the duplicate is a new attempt.
bool is_lasting(const Result<std::string>& result) {
  if (result) return true;
  const ErrorCode code = result.error().code;
  return code != ErrorCode::kDenied && code != ErrorCode::kFull && code != ErrorCode::kUnavailable;
}

template <class T>
Result<std::string> encoded(Result<T> result) {
  if (!result) return result.error();
  return wire::encode(*result);
}
Result<std::string> encoded(Result<void> result) {
  if (!result) return result.error();
  return wire::encode(wire::Empty{});
}

}  // namespace

Result<std::string> ControlCore::handle(const NodeId& from, ControlMethod method, std::string_view body,
                                        const Moment& moment, Outbox& out) {
  Result<std::string> result = dispatch(from, method, body, moment, out);
  settle(out);
  return result;
}

void ControlCore::settle(Outbox& out) {
  groups_.end_orphans([this](const WorkerId& worker) { return actors_.is_living_actor(worker); }, out);
  if (groups_.take_changed()) actors_.place_waiting(out);
}

Result<std::string> ControlCore::dispatch(const NodeId& from, ControlMethod method, std::string_view body,
                                          const Moment& moment, Outbox& out) {
  // Decodes, looks the key up, does the work once, and keeps the answer.
  auto with = [&]<class Message>(auto work) -> Result<std::string> {
    Result<Message> message = wire::decode<Message>(body);
    if (!message) return message.error();
    uint64_t key = key_of(*message);
    if constexpr (std::is_same_v<Message, wire::Kv>) {
      if (is_repeatable_read(*message)) key = 0;
    }
    const AnswerTable::Key full_key{static_cast<uint16_t>(method), key};
    if (key != 0) {
      if (std::optional<Result<std::string>> answer = answers_.find(full_key)) return *answer;
    }
    Result<std::string> result = encoded(work(*message));
    if (key != 0 && is_lasting(result)) answers_.add(full_key, result, out);
    return result;
  };
  auto only_nodes = [&]() -> Result<void> {
    if (from.is_nil() || !nodes_.usable(from))
      return Error{ErrorCode::kDenied, "only a registered node may say this"};
    return {};
  };

  switch (method) {
    case ControlMethod::kRegisterNode:
      return with.operator()<wire::RegisterNode>(
          [&](const auto& message) { return register_node(message, moment, out); });
    case ControlMethod::kNodeReport:
      return with.operator()<wire::NodeReport>([&](const auto& message) -> Result<void> {
        SKATE_TRY(only_nodes());
        if (message.node != from) return Error{ErrorCode::kDenied, "a node reports for itself"};
        nodes_.report(message);
        groups_.plan_waiting(out);
        return {};
      });
    case ControlMethod::kRegisterJob:
      return with.operator()<wire::RegisterJob>([&](const auto& message) -> Result<wire::RegisterJobReply> {
        SKATE_TRY(only_nodes());
        return jobs_.add(message, moment.unix_time_ms, out);
      });
    case ControlMethod::kFinishJob:
      return with.operator()<wire::FinishJob>([&](const auto& message) -> Result<void> {
        SKATE_TRY(only_nodes());
        finish_job(message.job, message.failed, moment, out);
        return {};
      });
    case ControlMethod::kWorkerDied:
      return with.operator()<wire::WorkerDied>([&](const auto& message) -> Result<void> {
        SKATE_TRY(only_nodes());
        actors_.worker_died(from, message, out);
        return {};
      });
    case ControlMethod::kActorCreated:
      return with.operator()<wire::ActorCreatedReport>([&](const auto& message) -> Result<void> {
        SKATE_TRY(only_nodes());
        actors_.created(from, message, out);
        return {};
      });
    case ControlMethod::kRegisterActor:
      return with.operator()<wire::RegisterActor>(
          [&](const auto& message) { return register_actor(message, out); });
    case ControlMethod::kPlaceActor:
      return with.operator()<wire::PlaceActor>([&](const auto& message) {
        const JobRecord* job = jobs_.find(message.spec.job);
        return actors_.place(message, job == nullptr ? std::string() : job->job_json, out);
      });
    case ControlMethod::kActorOutOfScope:
      return with.operator()<wire::ActorRef>([&](const auto& message) -> Result<void> {
        actors_.out_of_scope(message.actor, out);
        return {};
      });
    case ControlMethod::kKillActor:
      return with.operator()<wire::KillActor>(
          [&](const auto& message) { return actors_.kill(message, out); });
    case ControlMethod::kGetActor:
      return with.operator()<wire::ActorRef>(
          [&](const auto& message) { return actors_.get(message.actor, from); });
    case ControlMethod::kGetNamedActor:
      return with.operator()<wire::GetNamedActor>(
          [&](const auto& message) { return actors_.get_named(message.name_space, message.name, from); });
    case ControlMethod::kListNamedActors:
      return with.operator()<wire::ListNamedActors>(
          [&](const auto& message) -> Result<wire::ListNamedActorsReply> {
            return actors_.list_named(message.all_namespaces, message.name_space);
          });
    case ControlMethod::kKv:
      return with.operator()<wire::Kv>([&](const auto& message) { return kv_.apply(message, out); });
    case ControlMethod::kClusterInfo:
      return with.operator()<wire::ClusterInfo>([&](const auto& message) -> Result<wire::ClusterInfoReply> {
        SKATE_TRY_ASSIGN(std::string json, cluster_info(*this, message));
        return wire::ClusterInfoReply{std::move(json)};
      });
    case ControlMethod::kCreatePlacementGroup:
      return with.operator()<wire::PlacementGroupRequest>(
          [&](const auto& message) { return create_group(message, out); });
    case ControlMethod::kRemovePlacementGroup:
      return with.operator()<wire::PlacementGroupRequest>(
          [&](const auto& message) { return groups_.remove(message.group, out); });
    case ControlMethod::kGetPlacementGroup:
      return with.operator()<wire::PlacementGroupRequest>(
          [&](const auto& message) { return groups_.get(message, from); });
    case ControlMethod::kBundlesReserved:
      return with.operator()<wire::BundlesReserved>([&](const auto& message) -> Result<void> {
        SKATE_TRY(only_nodes());
        groups_.reserved(from, message, out);
        return {};
      });
  }
  return Error{ErrorCode::kInvalid, "unknown method " + std::to_string(static_cast<int>(method))};
}

Result<wire::RegisterNodeReply> ControlCore::register_node(const wire::RegisterNode& request,
                                                           const Moment& moment, Outbox& out) {
  if (request.node.is_nil()) return Error{ErrorCode::kInvalid, "a node needs an id"};
  if (request.version != options_.release)
    return Error{ErrorCode::kInvalid,
                 "the node runs Skate " + request.version + ", the cluster Skate " + options_.release};
  SKATE_TRY(nodes_.add(request, moment.now));
  groups_.node_registered(request, out);
  actors_.node_registered(request, out);
  node_changed(out);
  return wire::RegisterNodeReply{options_.session_name, options_.config_json};
}

Result<wire::RegisterActorReply> ControlCore::register_actor(const wire::RegisterActor& request,
                                                             Outbox& out) {
  // A job that has ended goes on in its detached actors, and in no other way.
  if (jobs_.has_ended(request.job) && !actors_.is_living_actor(request.owner.worker))
    return Error{ErrorCode::kNotFound, "the job of the new actor has ended"};
  return actors_.add(request, out);
}

Result<wire::PlacementGroupReply> ControlCore::create_group(const wire::PlacementGroupRequest& request,
                                                            Outbox& out) {
  const bool ended = jobs_.has_ended(request.job);
  if (ended && !groups_.all().contains(request.group) && !actors_.is_living_actor(request.creator))
    return Error{ErrorCode::kNotFound, "the job of the new placement group has ended"};
  return groups_.create(request, ended, out);
}

void ControlCore::finish_job(const JobId& id, bool failed, const Moment& moment, Outbox& out) {
  const JobRecord* job = jobs_.find(id);
  if (job == nullptr) return;
  const WorkerId driver = job->driver.worker;
  if (!jobs_.finish(id, failed, moment.unix_time_ms, out)) return;
  actors_.job_finished(id, driver, out);
  groups_.job_finished(
      id, [this](const WorkerId& worker) { return actors_.is_living_actor(worker); }, out);
  for (const NodeId& node : nodes_.connected())
    out.send(node, wire::NodeCommand::kJobFinished, wire::FinishJob{0, id, failed});
}

void ControlCore::node_changed(Outbox& out) {
  actors_.place_waiting(out);
  groups_.plan_waiting(out);
}

void ControlCore::node_disconnected(const NodeId& node, const Moment& moment) {
  nodes_.lose_contact(node, moment.now);
}

void ControlCore::tick(const Moment& moment, Outbox& out) {
  const std::vector<NodeId> overdue = nodes_.overdue(moment.now, options_.node_grace_ms);
  for (const NodeId& node : overdue)
    nodes_.die(node, "out of contact for " + std::to_string(options_.node_grace_ms / 1000) + " s");
  for (const NodeId& node : overdue) {
    actors_.node_died(node, out);
    groups_.node_died(node, out);
    for (const JobId& job : jobs_.running_on(node)) finish_job(job, true, moment, out);
  }
  settle(out);
}

Result<void> ControlCore::recover(const std::vector<Row>& rows, const Moment& moment) {
  for (const Row& row : rows) {
    if (Result<void> result = recover_row(row); !result)
      return Error{result.error().code,
                   "a row of table " + std::to_string(static_cast<int>(row.table)) + " with the key " +
                       to_hex(reinterpret_cast<const uint8_t*>(row.key.data()), row.key.size()) + ": " +
                       result.error().message};
  }
  for (const NodeId& node : actors_.recovered_nodes()) nodes_.expect(node, moment.now);
  for (const NodeId& node : groups_.recovered_nodes()) nodes_.expect(node, moment.now);
  for (const auto& [id, job] : jobs_.all()) {
    if (job.ended_ms == 0)
      nodes_.expect(job.driver.node, moment.now);
    else
      groups_.recover_ended(id);
  }
  return {};
}

Result<void> ControlCore::recover_row(const Row& row) {
  if (!row.value) return Error{ErrorCode::kCorrupt, "it has no value"};
  const std::string_view value = *row.value;
  switch (row.table) {
    case Table::kMeta: {
      SKATE_TRY_ASSIGN(const uint32_t last, wire::decode<uint32_t>(value));
      jobs_.recover_counter(last);
      return {};
    }
    case Table::kJobs: {
      SKATE_TRY_ASSIGN(JobRecord job, wire::decode<JobRecord>(value));
      jobs_.recover(std::move(job));
      return {};
    }
    case Table::kActors: {
      SKATE_TRY_ASSIGN(ActorRecord actor, wire::decode<ActorRecord>(value));
      actors_.recover(std::move(actor));
      return {};
    }
    case Table::kActorSpecs: {
      SKATE_TRY_ASSIGN(ActorSpecRecord spec, wire::decode<ActorSpecRecord>(value));
      actors_.recover_spec(std::move(spec));
      return {};
    }
    case Table::kKv: {
      using Key = std::pair<std::string, std::string>;
      SKATE_TRY_ASSIGN(Key key, wire::decode<Key>(std::string_view(row.key)));
      SKATE_TRY_ASSIGN(std::string text, wire::decode<std::string>(value));
      kv_.recover(std::move(key), std::move(text));
      return {};
    }
    case Table::kGroups: {
      SKATE_TRY_ASSIGN(GroupRecord group, wire::decode<GroupRecord>(value));
      groups_.recover(std::move(group));
      return {};
    }
    case Table::kAnswers: {
      SKATE_TRY_ASSIGN(AnswerTable::Key key, wire::decode<AnswerTable::Key>(std::string_view(row.key)));
      SKATE_TRY_ASSIGN(Answer answer, wire::decode<Answer>(value));
      answers_.recover(key, std::move(answer));
      return {};
    }
  }
  return Error{ErrorCode::kCorrupt, "unknown table"};
}

}  // namespace skate::control
