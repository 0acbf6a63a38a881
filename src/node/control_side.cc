// The control service: its commands, and what it is told.
#include "node/node_daemon.h"

namespace skate::node {

namespace {
constexpr rt::Duration kReportPause = std::chrono::milliseconds(100);
}

/// After each connect: who we are, and which actors live here (the service may have been restarted).
rt::Task<Result<void>> NodeDaemon::greet_control(rpc::Client* client) {
  wire::RegisterNode request;
  request.node = id_;
  request.version = wire::kVersion;
  request.ip = options_.node_ip;
  request.socket_path = socket_path();
  request.name = options_.node_name;
  request.resources = scheduler_.total();
  request.labels = options_.labels;
  request.is_head = options_.is_head;
  for (const auto& [number, actor] : actors_) {
    const Process* worker = find(actor.worker);
    if (!actor.created || worker == nullptr) continue;
    const wire::ActorSpec& spec = actor.order.spec;
    wire::ActorInfo info;
    info.actor = spec.actor;
    info.state = wire::ActorState::kAlive;
    info.address = address_of(*worker);
    info.incarnation = actor.order.incarnation;
    info.restarts_left = spec.max_restarts;
    info.class_name = spec.class_name;
    info.name = spec.name;
    info.name_space = spec.name_space;
    info.meta = spec.meta;
    info.max_task_retries = spec.max_task_retries;
    info.out_of_order = spec.out_of_order;
    info.max_pending_calls = spec.max_pending_calls;
    info.job = spec.job;
    info.pid = worker->pid;
    request.live_actors.push_back(std::move(info));
  }
  for (const Scheduler::Holding& holding : scheduler_.holdings())
    request.reservations.emplace_back(holding.group, holding.attempt);
  std::string body = wire::encode(request);
  rpc::CallOptions options{.timeout = std::chrono::seconds(10), .greeting = true};
  Result<std::string> answer = co_await client->call(
      static_cast<uint16_t>(wire::ControlMethod::kRegisterNode), std::move(body), options);
  if (!answer) co_return answer.error();
  Result<wire::RegisterNodeReply> reply = wire::decode<wire::RegisterNodeReply>(std::string_view(*answer));
  if (!reply) co_return reply.error();
  session_name_ = reply->session_name;
  if (options_.config_json == "{}" && !reply->config_json.empty()) options_.config_json = reply->config_json;
  report_wanted_.set();
  registered_.set();
  // A service that was restarted does not know who watches what.
  for (const auto& [group, known] : watched_groups_) tasks_.spawn(ask_group(group));
  co_return Result<void>();
}

void NodeDaemon::on_command(uint16_t topic, std::string body) {
  std::string_view bytes(body);
  switch (static_cast<wire::NodeCommand>(topic)) {
    case wire::NodeCommand::kStartActor:
      if (auto order = wire::decode<wire::StartActor>(bytes)) return start_actor(std::move(*order));
      break;
    case wire::NodeCommand::kStopActor:
      if (auto order = wire::decode<wire::StopActor>(bytes)) return stop_actor(*order);
      break;
    case wire::NodeCommand::kPublish:
      if (auto message = wire::decode<wire::Publish>(bytes)) return publish(*message);
      break;
    case wire::NodeCommand::kJobFinished:
      if (auto message = wire::decode<wire::FinishJob>(bytes))
        return finish_job(message->job, message->failed, false);
      break;
    case wire::NodeCommand::kReserveBundles:
      if (auto order = wire::decode<wire::ReserveBundles>(bytes)) return reserve_bundles(std::move(*order));
      break;
    case wire::NodeCommand::kCommitBundles:
      if (auto order = wire::decode<wire::GroupOrder>(bytes)) {
        scheduler_.commit(order->group, order->attempt);
        return pump_later();
      }
      break;
    case wire::NodeCommand::kReturnBundles:
      if (auto order = wire::decode<wire::GroupOrder>(bytes)) return return_bundles(*order);
      break;
    case wire::NodeCommand::kNotice:
      if (auto notice = wire::decode<wire::Notice>(bytes))
        return warn_job_of(find(notice->process), notice->text);
      break;
    case wire::NodeCommand::kShutdown: return ask_stop("the control service says so");
  }
  warn("the control service sent a command that does not parse, topic " + std::to_string(topic));
}

void NodeDaemon::start_actor(wire::StartActor order) {
  for (const auto& [number, actor] : actors_) {
    if (actor.order.spec.actor != order.spec.actor || actor.order.incarnation != order.incarnation) continue;
    if (actor.created) report_actor(actor, true, {}, find(actor.worker));  // the order came twice
    return;
  }
  const uint64_t number = ++last_actor_;
  const wire::ActorSpec& spec = order.spec;
  Job& job = job_of(spec.job, order.job_json);
  if (job.job_json.empty()) job.job_json = order.job_json;
  Place place;
  if (const wire::SchedulingPlan plan = wire::parse_scheduling(spec.scheduling); plan.group) {
    place.group = *plan.group;
    place.bundle = plan.bundle;
    watch_group(place.group);
  }
  scheduler_.place_actor(number, spec.job, spec.placement_resources, spec.resources, spec.runtime_env,
                         spec.class_name, spec.detached, now_us(), place);
  actors_[number] = Actor{std::move(order), 0, false};
  pump_later();
}

void NodeDaemon::stop_actor(const wire::StopActor& order) {
  for (auto item = actors_.begin(); item != actors_.end(); ++item) {
    Actor& actor = item->second;
    if (actor.order.spec.actor != order.actor || actor.order.incarnation != order.incarnation) continue;
    Process* worker = find(actor.worker);
    if (worker == nullptr) {
      scheduler_.cancel_actor(item->first);
      actors_.erase(item);
    } else if (order.graceful) {
      tell(*worker, wire::MessageType::kExit, wire::Exit{order.reason, false});
      flush_rings();
    } else {
      kill(*worker, order.reason);
    }
    pump_later();
    return;
  }
}

void NodeDaemon::actor_created(Process& process, const wire::ActorCreated& message) {
  auto found = actors_.find(process.actor_number);
  if (found == actors_.end() || found->second.created) return;
  Actor& actor = found->second;
  if (actor.order.spec.actor != message.actor || actor.order.incarnation != message.incarnation) return;
  if (message.ok) {
    actor.created = true;
    scheduler_.actor_created(process.number);
    report_actor(actor, true, {}, &process);
    return;
  }
  wire::Death cause =
      death_of(wire::DeathKind::kConstructor, "the constructor raised an exception", process.pid);
  cause.error_value = message.error_value;
  if (process.log) cause.log_tail = process.log->tail();
  report_actor(actor, false, cause, &process);
  actors_.erase(found);
  process.actor_number = 0;
  if (!process.ending) ask_exit(process, cause, true, options_.exit_grace_ms);
}

void NodeDaemon::report_actor(const Actor& actor, bool ok, wire::Death cause, const Process* worker) {
  wire::ActorCreatedReport report;
  report.actor = actor.order.spec.actor;
  report.incarnation = actor.order.incarnation;
  report.ok = ok;
  report.cause = std::move(cause);
  if (worker != nullptr) {
    report.address = address_of(*worker);
    report.pid = worker->pid;
  }
  tell_control(wire::ControlMethod::kActorCreated, report);
}

void NodeDaemon::publish(const wire::Publish& message) {
  if (message.topic == wire::ControlTopic::kGroup) {
    if (auto news = wire::decode<wire::PlacementGroupReply>(std::string_view(message.body)))
      group_news(*news);
    return;
  }
  std::set<ProcessNumber> to;
  for (const WorkerId& id : message.subscribers)
    if (Process* process = find(id)) to.insert(process->number);
  if (message.topic == wire::ControlTopic::kActor) {
    Result<wire::ActorInfo> info = wire::decode<wire::ActorInfo>(std::string_view(message.body));
    if (info) {
      if (auto known = subscribers_.find(info->actor); known != subscribers_.end())
        to.insert(known->second.begin(), known->second.end());
      if (info->state == wire::ActorState::kDead) subscribers_.erase(info->actor);
    }
  }
  for (ProcessNumber number : to)
    if (Process* process = find(number))
      tell(*process, wire::MessageType::kControlEvent,
           wire::ControlEvent{static_cast<uint16_t>(message.topic), message.body});
  flush_rings();
}

rt::Task<void> NodeDaemon::send_control(wire::ControlMethod method, std::string body) {
  // These are news of deaths and births: they wait as long as the control service is away.
  rpc::CallOptions options{.timeout = rt::Duration::zero()};
  Result<std::string> answer =
      co_await control_->call(static_cast<uint16_t>(method), std::move(body), options);
  if (!answer && !stopping_) warn("the control service refused a report: " + answer.error().message);
}

rt::Task<void> NodeDaemon::report_loop() {
  while (true) {
    co_await report_wanted_.wait();
    report_wanted_.reset();
    co_await report();
    co_await rt::sleep_for(kReportPause);
  }
}

rt::Task<void> NodeDaemon::report() {
  wire::NodeReport report;
  report.node = id_;
  report.sequence = ++report_sequence_;
  report.available = scheduler_.available();
  report.queued_tasks = scheduler_.queued();
  report.stats = {{"workers", static_cast<int64_t>(scheduler_.worker_count())},
                  {"object_store_bytes", static_cast<int64_t>(store_->capacity_bytes())}};
  report.bundles = scheduler_.bundle_resources(false);
  report.bundles_available = scheduler_.bundle_resources(true);
  reported_available_ = report.available;
  reported_bundles_ = report.bundles_available;
  std::string body = wire::encode(report);
  Result<std::string> sent =
      co_await control_->call(static_cast<uint16_t>(wire::ControlMethod::kNodeReport), std::move(body));
  if (!sent) warn("a report of resources did not reach the control service: " + sent.error().message);
}

}  // namespace skate::node
