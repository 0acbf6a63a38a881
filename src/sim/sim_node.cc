#include "sim/sim_node.h"

#include <algorithm>

#include "rpc/typed.h"
#include "rt/sleep.h"

namespace skate::sim {

using namespace std::chrono_literals;
using wire::ControlMethod;
using wire::DeathKind;

namespace {

node::SchedulerOptions scheduler_options(int64_t cpus) {
  node::SchedulerOptions options;
  options.total = {{"CPU", cpus * wire::kResourceUnit}};
  return options;
}

rpc::CallOptions until_answered() {
  rpc::CallOptions options;
  options.timeout = rt::Duration::zero();
  return options;
}

constexpr rt::Duration kIdleExitGrace = 5s;

template <class AnyId>
AnyId random_id(rt::Random& random) {
  AnyId out;
  for (auto& byte : out.bytes) byte = static_cast<uint8_t>(random.below(255));
  return out;
}

}  // namespace

SimNode::SimNode(rt::SimLoop& loop, rt::Network& network, SimNodeOptions options, ObjectCounts& counts)
    : loop_(loop),
      options_(std::move(options)),
      id_(random_id<NodeId>(loop.random())),
      scheduler_(scheduler_options(options_.cpus)),
      pump_timer_(loop, [this] { pump(); }),
      client_(loop, network,
              [this] {
                rpc::ClientOptions out{
                    .address = options_.control_address, .key = options_.key, .release = options_.release};
                out.greet = [this](rpc::Client* client) { return greet(client); };
                out.on_notify = [this](uint16_t topic, std::string body) { on_command(topic, body); };
                return out;
              }()),
      objects_(loop, id_, *this, options_.objects, counts),
      tasks_(loop) {}

SimNode::~SimNode() {
  tasks_.stop();
  for (auto& [number, driver] : drivers_) driver->plan->lost = true;
}

void SimNode::start() {
  client_.start();
  tasks_.spawn(report_loop());
}

/// Control places bundles by what nodes report.
rt::Task<void> SimNode::report_loop() {
  while (true) {
    co_await client_.wait_up();
    if (wire::Resources available = scheduler_.available(); available != reported_) {
      wire::NodeReport report;
      report.node = id_;
      report.sequence = ++reports_;
      report.available = reported_ = std::move(available);
      tell(ControlMethod::kNodeReport, report);
    }
    co_await rt::sleep_for(100ms);
  }
}

rt::Task<void> SimNode::short_delay() {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(3'000'000)));
}

rt::Task<Result<void>> SimNode::greet(rpc::Client* client) {
  wire::RegisterNode message;
  message.node = id_;
  message.version = options_.release;
  message.resources = scheduler_.total();
  for (const auto& [number, actor] : actors_) {
    if (actor.worker != 0 && !objects_.runs(actor.worker)) continue;
    wire::ActorInfo info;
    info.actor = actor.order.spec.actor;
    info.incarnation = actor.order.incarnation;
    info.state = actor.created ? wire::ActorState::kAlive : wire::ActorState::kPending;
    if (actor.worker != 0) info.address = address_of(id_, actor.worker);
    info.name = actor.order.spec.name;
    info.name_space = actor.order.spec.name_space;
    info.job = actor.order.spec.job;
    info.owner = actor.order.spec.owner;
    info.detached = actor.order.spec.detached;
    message.live_actors.push_back(std::move(info));
  }
  for (const node::Scheduler::Holding& holding : scheduler_.holdings())
    message.reservations.emplace_back(holding.group, holding.attempt);
  reported_.clear();  // a service that was restarted knows nothing of it
  rpc::CallOptions options;
  options.greeting = true;
  Result<wire::RegisterNodeReply> reply =
      co_await rpc::call<wire::RegisterNodeReply>(client, ControlMethod::kRegisterNode, message, options);
  if (reply) co_return Result<void>();
  refused_ = refused_ || reply.error().code == ErrorCode::kDenied;
  co_return reply.error();
}

rt::Task<void> SimNode::tell_control(ControlMethod method, std::string body) {
  const bool twice = loop_.random().chance(0.1);
  for (int i = 0; i < (twice ? 2 : 1); ++i) {
    Result<std::string> reply = co_await client_.call(static_cast<uint16_t>(method), body, until_answered());
    if (!reply && reply.error().code == ErrorCode::kCorrupt)
      problem_ = "the control service does not understand: " + reply.error().message;
  }
}

// Drivers.

void SimNode::run_driver(DriverPlan* plan) {
  auto driver = std::make_shared<Driver>();
  driver->number = scheduler_.new_process();
  driver->plan = plan;
  drivers_[driver->number] = driver;
  tasks_.spawn(drive(driver));
}

void SimNode::end_drivers() {
  for (auto& [number, driver] : drivers_) driver->end.set();
}

rt::Task<void> SimNode::drive(std::shared_ptr<Driver> driver) {
  wire::RegisterJob request;
  request.key = loop_.random()();
  request.driver = address_of(id_, driver->number);
  request.name_space = "ns";
  Result<wire::RegisterJobReply> job = co_await rpc::call<wire::RegisterJobReply>(
      &client_, ControlMethod::kRegisterJob, request, until_answered());
  if (!job) {
    problem_ = "a job cannot register: " + job.error().message;
    co_return;
  }
  driver->job = job->job;
  driver->plan->registered = true;
  scheduler_.start_job(driver->job, "python", 2);
  SimProcess& process = objects_.start(driver->number, driver->job, true);
  process.give_work(kPlainShape, {}, driver->plan->tasks, &driver->plan->tasks_done);
  for (uint32_t i = 0; i < driver->plan->actors; ++i) tasks_.spawn(make_actor(driver, i));
  for (uint32_t i = 0; i < driver->plan->groups; ++i) tasks_.spawn(make_group(driver, kFirstGroupShape + i));
  pump();
  co_await driver->end.wait();
  driver->plan->ended = true;
  objects_.end(driver->number, DeathKind::kIntended);
}

rt::Task<void> SimNode::make_actor(std::shared_ptr<Driver> driver, uint32_t index) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(200'000'000)));
  wire::RegisterActor request;
  request.key = loop_.random()();
  request.actor = random_id<ActorId>(loop_.random());
  request.owner = address_of(id_, driver->number);
  request.job = driver->job;
  request.class_name = "Simulated";
  if (index % 3 == 0) request.name = "name" + std::to_string(loop_.random().below(5));
  request.name_space = "ns";
  request.get_if_exists = index % 2 == 0;
  request.max_restarts = static_cast<int64_t>(index % 4) - 1;
  request.detached = index % 5 == 0 && !request.name.empty();
  Result<wire::RegisterActorReply> reply = co_await rpc::call<wire::RegisterActorReply>(
      &client_, ControlMethod::kRegisterActor, request, until_answered());
  if (!reply || reply->existed) co_return;  // the name is taken
  if (SimProcess* process = objects_.find(driver->number); process != nullptr && !request.detached)
    process->made_actor(request.actor);
  co_await short_delay();
  wire::PlaceActor place;
  place.key = loop_.random()();
  place.spec.actor = request.actor;
  place.spec.job = request.job;
  place.spec.owner = request.owner;
  place.spec.name = request.name;
  place.spec.name_space = request.name_space;
  place.spec.detached = request.detached;
  place.spec.placement_resources = {{"CPU", wire::kResourceUnit}};
  tell(ControlMethod::kPlaceActor, place);
  if (options_.objects.gentle || !loop_.random().chance(0.5)) co_return;
  co_await rt::sleep_for(rt::Duration(loop_.random().below(1'000'000'000)));
  wire::KillActor kill;
  kill.key = loop_.random()();
  kill.actor = request.actor;
  kill.no_restart = loop_.random().chance(0.5);
  tell(ControlMethod::kKillActor, kill);
}

rt::Task<void> SimNode::make_group(std::shared_ptr<Driver> driver, uint64_t shape) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(1'000'000'000)));
  wire::PlacementGroupRequest request;
  request.key = loop_.random()();
  request.group = random_id<PlacementGroupId>(loop_.random());
  request.name_space = "ns";
  request.job = driver->job;
  constexpr const char* kStrategies[] = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"};
  request.strategy = kStrategies[loop_.random().below(4)];
  const uint64_t bundles = 1 + loop_.random().below(3);
  for (uint64_t i = 0; i < bundles; ++i)
    request.bundles.push_back(
        {{"CPU", static_cast<int64_t>(1 + loop_.random().below(2)) * wire::kResourceUnit}});
  Result<wire::PlacementGroupReply> made = co_await rpc::call<wire::PlacementGroupReply>(
      &client_, ControlMethod::kCreatePlacementGroup, request, until_answered());
  SimProcess* process = objects_.find(driver->number);
  if (process == nullptr) co_return;
  if (!made) {
    problem_ = "a placement group cannot be made: " + made.error().message;
    co_return;
  }
  driver->groups[shape] = request.group;
  process->give_work(shape, request.group, static_cast<uint32_t>(loop_.random().below(10)),
                     &driver->plan->group_tasks_done);
  if (!groups_are_over_) {
    if (loop_.random().chance(0.3)) co_return;  // goes with its job
    co_await rt::sleep_for(rt::Duration(loop_.random().below(3'000'000'000)));
  }
  remove_group(*driver, shape);
}

/// What is in it now fails; what it was to run elsewhere will not run.
void SimNode::remove_group(Driver& driver, uint64_t shape) {
  wire::PlacementGroupRequest removal;
  removal.key = loop_.random()();
  removal.group = std::exchange(driver.groups.at(shape), PlacementGroupId::nil());
  if (removal.group.is_nil()) return;
  tell(ControlMethod::kRemovePlacementGroup, removal);
  if (SimProcess* process = objects_.find(driver.number)) {
    process->group_gone(shape);
    process->flush();
  }
}

void SimNode::remove_groups() {
  groups_are_over_ = true;
  for (auto& [number, driver] : drivers_)
    for (auto& [shape, group] : driver->groups) remove_group(*driver, shape);
}

void SimNode::kill_actor(const ActorId& actor) {
  wire::KillActor kill;
  kill.key = loop_.random()();
  kill.actor = actor;
  kill.no_restart = true;
  tell(ControlMethod::kKillActor, kill);
}

// Processes.

void SimNode::on_message(ProcessNumber from, const Message& message) {
  switch (message.kind) {
    case Message::Kind::kDemand: {
      const SimProcess* process = objects_.find(from);
      if (process == nullptr) return;
      const bool in_group = message.token >= kFirstGroupShape;
      scheduler_.demand(from, message.token, process->job(), {{"CPU", wire::kResourceUnit}}, "",
                        in_group ? "g" : "f", 0, static_cast<uint32_t>(message.count), message.backlog,
                        now_us(), {message.group, -1, ""});
      break;
    }
    case Message::Kind::kLeaseReturn:
      scheduler_.lease_returned(from, message.token, message.exits, now_us());
      break;
    case Message::Kind::kExitDeclined:
      asked_to_exit_.erase(from);
      scheduler_.exit_declined(from, now_us());
      break;
    default: problem_ = "the daemon was sent what is not its own";
  }
  pump();
}

void SimNode::works(ProcessNumber worker, bool at_work) {
  scheduler_.works(worker, at_work ? now_us() : -now_us());
}

rt::Task<void> SimNode::start_worker(node::StartWorker start) {
  co_await rt::sleep_for(rt::Duration(1'000'000 + loop_.random().below(20'000'000)));
  starting_.erase(start.worker);
  if (ended_early_.erase(start.worker) > 0) co_return;
  if (loop_.random().chance(objects_.options().crash_probability)) {
    scheduler_.process_died(start.worker, now_us());
  } else {
    objects_.start(start.worker, start.pool.job, false);
    scheduler_.worker_ready(start.worker, now_us());
  }
  pump();
}

rt::Task<void> SimNode::evict(ProcessNumber worker) {
  co_await short_delay();
  end_worker(worker, DeathKind::kKilled);
}

rt::Task<void> SimNode::stop_worker(node::StopWorker stop) {
  co_await short_delay();
  if (stop.why != node::StopWorker::Why::kIdle) {
    end_worker(stop.worker, DeathKind::kOwnerDied);
  } else if (objects_.runs(stop.worker)) {
    asked_to_exit_.insert(stop.worker);
    objects_.tell(stop.worker, {.kind = Message::Kind::kExit});
    tasks_.spawn(kill_later(stop.worker));
  }
}

rt::Task<void> SimNode::kill_later(ProcessNumber worker) {
  co_await rt::sleep_for(kIdleExitGrace);
  if (asked_to_exit_.erase(worker) > 0) end_worker(worker, DeathKind::kKilled);
}

/// Unwarned; the daemon notices later.
void SimNode::end_worker(ProcessNumber worker, DeathKind kind) {
  if (objects_.is_known(worker)) return objects_.end(worker, kind);
  if (!starting_.contains(worker) || !ended_early_.insert(worker).second) return;
  scheduler_.process_died(worker, now_us());
  pump();
}

void SimNode::buried(ProcessNumber process, DeathKind kind) {
  asked_to_exit_.erase(process);
  scheduler_.process_died(process, now_us());
  if (auto driver = drivers_.extract(process)) {
    const JobId job = driver.mapped()->job;
    scheduler_.finish_job(job);
    tell(ControlMethod::kFinishJob, wire::FinishJob{loop_.random()(), job, false});
    return pump();
  }
  ActorId actor;
  uint64_t incarnation = 0;
  const auto found = std::find_if(actors_.begin(), actors_.end(),
                                  [&](const auto& one) { return one.second.worker == process; });
  if (found != actors_.end()) {
    actor = found->second.order.spec.actor;
    incarnation = found->second.order.incarnation;
    actors_.erase(found);
  }
  report_death(actor, incarnation, address_of(id_, process).worker, kind);
  pump();
}

void SimNode::report_death(const ActorId& actor, uint64_t incarnation, const WorkerId& worker,
                           DeathKind kind) {
  wire::WorkerDied report;
  report.worker = {worker, id_};
  report.actor = actor;
  report.incarnation = incarnation;
  report.cause.kind = kind;
  if (!actor.is_nil()) may_start_[actor] = std::max(may_start_[actor], incarnation + 1);
  tell(ControlMethod::kWorkerDied, report);
}

// Actors.

void SimNode::on_command(uint16_t topic, const std::string& body) {
  const auto command = static_cast<wire::NodeCommand>(topic);
  if (command == wire::NodeCommand::kStartActor) {
    if (auto order = wire::decode<wire::StartActor>(std::string_view(body))) start_actor(std::move(*order));
  } else if (command == wire::NodeCommand::kStopActor) {
    if (auto order = wire::decode<wire::StopActor>(std::string_view(body))) stop_actor(*order);
  } else if (command == wire::NodeCommand::kJobFinished) {
    if (auto job = wire::decode<wire::FinishJob>(std::string_view(body))) scheduler_.finish_job(job->job);
  } else if (command == wire::NodeCommand::kReserveBundles) {
    if (auto order = wire::decode<wire::ReserveBundles>(std::string_view(body)))
      scheduler_.reserve(order->group, order->attempt, std::move(order->bundles), now_us(), order->waits);
  } else if (command == wire::NodeCommand::kCommitBundles) {
    if (auto order = wire::decode<wire::GroupOrder>(std::string_view(body)))
      scheduler_.commit(order->group, order->attempt);
  } else if (command == wire::NodeCommand::kReturnBundles) {
    if (auto order = wire::decode<wire::GroupOrder>(std::string_view(body))) {
      if (order->removed)
        scheduler_.end_group(order->group, order->why);
      else
        scheduler_.unreserve(order->group, order->attempt, order->why);
    }
  }
  pump();
}

void SimNode::start_actor(wire::StartActor order) {
  const ActorId id = order.spec.actor;
  if (order.incarnation < may_start_[id]) return;  // told to stop before
  for (const auto& [number, actor] : actors_) {
    if (actor.order.spec.actor != id) continue;
    const bool dying = actor.worker != 0 && !objects_.runs(actor.worker);
    if (!dying || actor.order.incarnation >= order.incarnation) return;  // told twice
  }
  Actor& actor = actors_[++last_actor_];
  actor.order = std::move(order);
  const wire::ActorSpec& spec = actor.order.spec;
  scheduler_.place_actor(last_actor_, spec.job, spec.placement_resources, spec.resources, spec.runtime_env,
                         spec.class_name, spec.detached, now_us());
}

void SimNode::stop_actor(const wire::StopActor& order) {
  may_start_[order.actor] = std::max(may_start_[order.actor], order.incarnation + 1);
  const auto found = std::find_if(actors_.begin(), actors_.end(), [&](const auto& one) {
    return one.second.order.spec.actor == order.actor && one.second.order.incarnation == order.incarnation;
  });
  if (found == actors_.end()) return;
  if (found->second.worker != 0)
    return end_worker(found->second.worker, order.graceful ? DeathKind::kIntended : DeathKind::kKilled);
  scheduler_.cancel_actor(found->first);  // nobody is there whose death could be told
  actors_.erase(found);
}

rt::Task<void> SimNode::construct(uint64_t number, ProcessNumber worker) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(30'000'000)));
  const auto found = actors_.find(number);
  if (found == actors_.end() || !objects_.runs(worker)) co_return;
  if (loop_.random().chance(objects_.options().crash_probability)) {
    end_worker(worker, DeathKind::kSignalled);
    co_return;
  }
  found->second.created = true;
  scheduler_.actor_created(worker);
  wire::ActorCreatedReport report;
  report.actor = found->second.order.spec.actor;
  report.incarnation = found->second.order.incarnation;
  report.address = address_of(id_, worker);
  report.ok = true;
  tell(ControlMethod::kActorCreated, report);
  pump();
}

void SimNode::out_of_scope(const ActorId& actor) {
  tell(ControlMethod::kActorOutOfScope, wire::ActorRef{actor});
}

std::pair<ProcessNumber, ActorId> SimNode::some_actor(const JobId& job) {
  std::vector<std::pair<ProcessNumber, ActorId>> those;
  for (const auto& [number, actor] : actors_)
    if (actor.created && actor.order.spec.job == job && objects_.runs(actor.worker))
      those.emplace_back(actor.worker, actor.order.spec.actor);
  if (those.empty()) return {};
  return those[loop_.random().below(those.size())];
}

std::vector<SimNode::ActorView> SimNode::running_actors() const {
  std::vector<ActorView> out;
  for (const auto& [number, actor] : actors_) {
    if (actor.worker == 0 || !objects_.runs(actor.worker)) continue;
    out.push_back({actor.order.spec.actor, actor.order.incarnation, address_of(id_, actor.worker).worker});
  }
  return out;
}

// The scheduler.

void SimNode::pump() {
  if (pumping_) return;
  pumping_ = true;
  node::Decisions decisions = scheduler_.decide(now_us());
  pumping_ = false;
  if (std::string wrong = scheduler_.check(); !wrong.empty() && problem_.empty())
    problem_ = "scheduler: " + wrong;
  for (const node::Reserved& made : decisions.reserved)
    tell(ControlMethod::kBundlesReserved, wire::BundlesReserved{made.group, made.attempt, made.ok});
  for (const node::Eviction& eviction : decisions.evictions) tasks_.spawn(evict(eviction.worker));
  for (const node::StartWorker& start : decisions.starts) {
    starting_.insert(start.worker);
    tasks_.spawn(start_worker(start));
  }
  for (const node::StopWorker& stop : decisions.stops) tasks_.spawn(stop_worker(stop));
  for (const node::Recall& recall : decisions.recalls) {
    if (loop_.random().chance(0.02)) continue;  // never answered: the lease ends with the owner's work
    objects_.tell(recall.owner, {.kind = Message::Kind::kRecall, .token = recall.lease});
  }
  for (const node::Grant& one : decisions.grants) grant(one);
  for (const node::ActorPlacement& placement : decisions.placements) {
    actors_.at(placement.actor).worker = placement.worker;
    if (SimProcess* worker = objects_.find(placement.worker)) worker->become_actor();
    tasks_.spawn(construct(placement.actor, placement.worker));
  }
  for (const node::Refusal& refusal : decisions.refusals) refuse(refusal);
  if (const std::optional<int64_t> next = scheduler_.next_deadline(now_us()))
    pump_timer_.start_at(rt::TimePoint(std::chrono::microseconds(std::max(*next, now_us() + 1))));
}

/// Either may have ended, if the daemon has not noticed.
void SimNode::grant(const node::Grant& grant) {
  if (!objects_.is_known(grant.owner)) {
    problem_ = "a lease is granted to a process that is gone";
  } else if (!objects_.is_known(grant.worker)) {
    problem_ = "a lease of a worker that does not run";
  } else {
    objects_.link(grant.owner, grant.worker);
    objects_.tell(
        grant.owner,
        {.kind = Message::Kind::kGrant, .count = grant.shape_id, .token = grant.lease, .who = grant.worker});
  }
}

void SimNode::refuse(const node::Refusal& refusal) {
  if (refusal.owner != 0) {  // it asks again, but not for a group that is gone
    const bool gone = refusal.why == node::Refusal::Why::kGroupRemoved;
    if (const auto driver = drivers_.find(refusal.owner); driver != drivers_.end() && gone)
      driver->second->groups.at(refusal.shape_id) = PlacementGroupId::nil();
    objects_.tell(refusal.owner, {.kind = Message::Kind::kRefused, .token = refusal.shape_id, .gone = gone});
    return;
  }
  const auto actor = actors_.find(refusal.shape_id);
  if (actor == actors_.end()) return;
  const wire::StartActor order = std::move(actor->second.order);
  scheduler_.cancel_actor(refusal.shape_id);
  actors_.erase(actor);
  report_death(order.spec.actor, order.incarnation, WorkerId::nil(), DeathKind::kSignalled);
}

}  // namespace skate::sim
