#include "sim/sim_node.h"

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

constexpr uint32_t kLeasesWanted = 4;
constexpr uint64_t kFirstGroupShape = 100;

}  // namespace

SimNode::SimNode(rt::SimLoop& loop, rt::Network& network, SimNodeOptions options)
    : loop_(loop),
      options_(std::move(options)),
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
      tasks_(loop) {
  id_ = random_id<NodeId>();
}

SimNode::~SimNode() {
  tasks_.stop();
  for (auto& [number, driver] : drivers_) driver->plan->lost = true;
}

template <class AnyId>
AnyId SimNode::random_id() {
  AnyId out;
  for (auto& byte : out.bytes) byte = static_cast<uint8_t>(loop_.random().below(255));
  return out;
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
  for (const auto& [id, actor] : actors_) {
    wire::ActorInfo info;
    info.actor = id;
    info.incarnation = actor.incarnation;
    info.state = actor.created ? wire::ActorState::kAlive : wire::ActorState::kPending;
    const auto worker = workers_.find(actor.worker);
    if (worker != workers_.end()) info.address = {worker->second, id_};
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
  driver->id = random_id<WorkerId>();
  driver->plan = plan;
  driver->left = plan->tasks;
  drivers_[driver->number] = driver;
  tasks_.spawn(drive(driver));
}

void SimNode::end_drivers() {
  for (auto& [number, driver] : drivers_) driver->end.set();
}

rt::Task<void> SimNode::drive(std::shared_ptr<Driver> driver) {
  wire::RegisterJob request;
  request.key = loop_.random()();
  request.driver = {driver->id, id_};
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
  for (uint32_t i = 0; i < driver->plan->actors; ++i) tasks_.spawn(make_actor(driver, i));
  for (uint32_t i = 0; i < driver->plan->groups; ++i) tasks_.spawn(make_group(driver, kFirstGroupShape + i));
  demand(*driver);
  pump();
  co_await driver->end.wait();
  driver->plan->ended = true;
  drivers_.erase(driver->number);
  scheduler_.process_died(driver->number, now_us());
  scheduler_.finish_job(driver->job);
  wire::FinishJob finish{loop_.random()(), driver->job, false};
  tell(ControlMethod::kFinishJob, finish);
  pump();
}

rt::Task<void> SimNode::make_actor(std::shared_ptr<Driver> driver, uint32_t index) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(200'000'000)));
  wire::RegisterActor request;
  request.key = loop_.random()();
  request.actor = ActorId(random_id<ActorId>());
  request.owner = {driver->id, id_};
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
  if (!loop_.random().chance(0.5)) co_return;
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
  request.group = random_id<PlacementGroupId>();
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
  if (!drivers_.contains(driver->number)) co_return;
  if (!made) {
    problem_ = "a placement group cannot be made: " + made.error().message;
    co_return;
  }
  driver->in_groups[shape] = {request.group, static_cast<uint32_t>(loop_.random().below(10))};
  demand_in_group(*driver, shape);
  pump();
  if (!groups_are_over_) {
    if (loop_.random().chance(0.3)) co_return;  // goes with its job
    co_await rt::sleep_for(rt::Duration(loop_.random().below(3'000'000'000)));
  }
  remove_group(*driver, shape);
}

void SimNode::remove_group(Driver& driver, uint64_t shape) {
  wire::PlacementGroupRequest removal;
  removal.key = loop_.random()();
  removal.group = std::exchange(driver.in_groups.at(shape).group, PlacementGroupId::nil());
  if (!removal.group.is_nil()) tell(ControlMethod::kRemovePlacementGroup, removal);
}

void SimNode::remove_groups() {
  groups_are_over_ = true;
  for (auto& [number, driver] : drivers_)
    for (auto& [shape, work] : driver->in_groups) remove_group(*driver, shape);
}

void SimNode::kill_actor(const ActorId& actor) {
  wire::KillActor kill;
  kill.key = loop_.random()();
  kill.actor = actor;
  kill.no_restart = true;
  tell(ControlMethod::kKillActor, kill);
}

void SimNode::demand(Driver& driver) {
  const uint32_t wanted = std::min(kLeasesWanted, driver.left + driver.running);
  const int times = loop_.random().chance(0.1) ? 2 : 1;
  for (int i = 0; i < times; ++i)
    scheduler_.demand(driver.number, 1, driver.job, {{"CPU", wire::kResourceUnit}}, "", "f", 0, wanted,
                      driver.left, now_us());
}

void SimNode::demand_in_group(Driver& driver, uint64_t shape) {
  const auto work = driver.in_groups.find(shape);
  if (work == driver.in_groups.end() || work->second.group.is_nil()) return;
  scheduler_.demand(driver.number, shape, driver.job, {{"CPU", wire::kResourceUnit}}, "", "g", 0,
                    std::min(2u, work->second.left), work->second.left, now_us(),
                    {work->second.group, -1, ""});
}

/// One task. It may be evicted, its driver may end; what of its group is not on this node waits until then.
rt::Task<void> SimNode::work_in_group(std::shared_ptr<Driver> driver, node::Grant grant) {
  co_await short_delay();
  scheduler_.works(grant.worker, now_us());
  co_await rt::sleep_for(rt::Duration(loop_.random().below(100'000'000)));
  scheduler_.works(grant.worker, -now_us());
  const auto work = driver->in_groups.find(grant.shape_id);
  if (workers_.contains(grant.worker) && work != driver->in_groups.end() && work->second.left > 0) {
    --work->second.left;
    ++driver->plan->group_tasks_done;
  }
  scheduler_.lease_returned(driver->number, grant.lease, false, now_us());
  if (drivers_.contains(driver->number)) demand_in_group(*driver, grant.shape_id);
  pump();
}

rt::Task<void> SimNode::hold_lease(std::shared_ptr<Driver> driver, node::Grant grant) {
  co_await short_delay();
  driver->leases.insert(grant.lease);
  while (driver->left > 0 && !driver->recalled.contains(grant.lease) && workers_.contains(grant.worker) &&
         !driver->end.is_set()) {
    --driver->left;
    ++driver->running;
    scheduler_.works(grant.worker, now_us());
    const uint64_t longest_ns = loop_.random().chance(0.02) ? 2'000'000'000 : 8'000'000;
    co_await rt::sleep_for(rt::Duration(loop_.random().below(longest_ns)));
    scheduler_.works(grant.worker, -now_us());
    if (loop_.random().chance(options_.worker_crash_probability))
      worker_died(grant.worker, DeathKind::kSignalled);
    --driver->running;
    if (workers_.contains(grant.worker)) {
      ++driver->plan->tasks_done;
    } else {
      ++driver->left;  // its owner runs it again
    }
    if (drivers_.contains(driver->number)) demand(*driver);
  }
  driver->leases.erase(grant.lease);
  driver->recalled.erase(grant.lease);
  const int times = loop_.random().chance(0.1) ? 2 : 1;
  for (int i = 0; i < times; ++i) scheduler_.lease_returned(driver->number, grant.lease, false, now_us());
  if (drivers_.contains(driver->number)) demand(*driver);
  pump();
}

rt::Task<void> SimNode::deliver_recall(node::Recall recall) {
  co_await short_delay();
  if (loop_.random().chance(0.02)) co_return;  // never answered: the lease ends with the owner's work
  const auto driver = drivers_.find(recall.owner);
  if (driver != drivers_.end()) driver->second->recalled.insert(recall.lease);
}

// Workers.

rt::Task<void> SimNode::start_worker(ProcessNumber worker) {
  co_await rt::sleep_for(rt::Duration(1'000'000 + loop_.random().below(20'000'000)));
  starting_.erase(worker);
  if (ended_early_.erase(worker) > 0) co_return;
  if (loop_.random().chance(options_.worker_crash_probability)) {
    scheduler_.process_died(worker, now_us());
  } else {
    workers_[worker] = random_id<WorkerId>();
    scheduler_.worker_ready(worker, now_us());
  }
  pump();
}

rt::Task<void> SimNode::evict(ProcessNumber worker) {
  co_await short_delay();
  if (workers_.contains(worker)) worker_died(worker, DeathKind::kKilled);
}

rt::Task<void> SimNode::stop_worker(node::StopWorker stop) {
  co_await short_delay();
  if (stop.why == node::StopWorker::Why::kIdle && loop_.random().chance(0.1)) {
    scheduler_.exit_declined(stop.worker, now_us());
  } else {
    worker_died(stop.worker,
                stop.why == node::StopWorker::Why::kIdle ? DeathKind::kIntended : DeathKind::kOwnerDied);
  }
  pump();
}

void SimNode::worker_died(ProcessNumber worker, DeathKind kind) {
  const auto found = workers_.find(worker);
  WorkerId id = WorkerId::nil();
  if (found != workers_.end()) {
    id = found->second;
    workers_.erase(found);
  } else if (starting_.contains(worker)) {
    ended_early_.insert(worker);
  }
  scheduler_.process_died(worker, now_us());
  ActorId actor_id;
  uint64_t incarnation = 0;
  for (const auto& [actor, local] : actors_) {
    if (local.worker != worker) continue;
    actor_id = actor;
    incarnation = local.incarnation;
  }
  if (!actor_id.is_nil()) actors_.erase(actor_id);
  report_death(actor_id, incarnation, id, kind);
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
  if (actors_.contains(id) || order.incarnation < may_start_[id])
    return;  // told twice, or told to stop before
  Actor& actor = actors_[id];
  actor.incarnation = order.incarnation;
  actor.number = ++last_actor_;
  actor.order = std::move(order);
  const wire::ActorSpec& spec = actor.order.spec;
  scheduler_.place_actor(actor.number, spec.job, spec.placement_resources, spec.resources, spec.runtime_env,
                         spec.class_name, spec.detached, now_us());
}

void SimNode::stop_actor(const wire::StopActor& order) {
  const auto found = actors_.find(order.actor);
  const bool here = found != actors_.end() && found->second.incarnation == order.incarnation;
  may_start_[order.actor] = std::max(may_start_[order.actor], order.incarnation + 1);
  if (!here) return;
  const DeathKind kind = order.graceful ? DeathKind::kIntended : DeathKind::kKilled;
  if (found->second.worker != 0) {
    worker_died(found->second.worker, kind);
    return;
  }
  scheduler_.cancel_actor(found->second.number);  // nobody is there whose death could be told
  actors_.erase(found);
}

rt::Task<void> SimNode::construct(ActorId id, uint64_t incarnation, ProcessNumber worker) {
  co_await rt::sleep_for(rt::Duration(loop_.random().below(30'000'000)));
  const auto found = actors_.find(id);
  if (found == actors_.end() || found->second.incarnation != incarnation || !workers_.contains(worker))
    co_return;
  if (loop_.random().chance(options_.worker_crash_probability)) {
    worker_died(worker, DeathKind::kSignalled);
    co_return;
  }
  found->second.created = true;
  scheduler_.actor_created(worker);
  wire::ActorCreatedReport report;
  report.actor = id;
  report.incarnation = incarnation;
  report.address = {workers_.at(worker), id_};
  report.ok = true;
  tell(ControlMethod::kActorCreated, report);
  pump();
}

std::vector<SimNode::ActorView> SimNode::running_actors() const {
  std::vector<ActorView> out;
  for (const auto& [id, actor] : actors_) {
    const auto worker = workers_.find(actor.worker);
    if (worker != workers_.end()) out.push_back({id, actor.incarnation, worker->second});
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
    tasks_.spawn(start_worker(start.worker));
  }
  for (const node::StopWorker& stop : decisions.stops) tasks_.spawn(stop_worker(stop));
  for (const node::Recall& recall : decisions.recalls) tasks_.spawn(deliver_recall(recall));
  for (const node::Grant& grant : decisions.grants) {
    const auto driver = drivers_.find(grant.owner);
    if (driver == drivers_.end()) {
      if (problem_.empty()) problem_ = "a lease is granted to a process that is gone";
      continue;
    }
    if (!workers_.contains(grant.worker) && problem_.empty())
      problem_ = "a lease of a worker that does not run";
    tasks_.spawn(grant.shape_id >= kFirstGroupShape ? work_in_group(driver->second, grant)
                                                    : hold_lease(driver->second, grant));
  }
  for (const node::ActorPlacement& placement : decisions.placements) {
    for (auto& [id, actor] : actors_) {
      if (actor.number != placement.actor) continue;
      actor.worker = placement.worker;
      tasks_.spawn(construct(id, actor.incarnation, placement.worker));
    }
  }
  for (const node::Refusal& refusal : decisions.refusals) {
    if (refusal.owner != 0) {  // the driver asks again with its next demand, but not for a group that is gone
      const auto driver = drivers_.find(refusal.owner);
      if (driver != drivers_.end() && refusal.why == node::Refusal::Why::kGroupRemoved)
        driver->second->in_groups.at(refusal.shape_id).group = PlacementGroupId::nil();
      continue;
    }
    for (auto& [id, actor] : actors_) {
      if (actor.number != refusal.shape_id) continue;
      const ActorId refused = id;
      const uint64_t incarnation = actor.incarnation;
      scheduler_.cancel_actor(actor.number);
      actors_.erase(refused);
      report_death(refused, incarnation, WorkerId::nil(), DeathKind::kSignalled);
      break;
    }
  }
  if (const std::optional<int64_t> next = scheduler_.next_deadline(now_us()))
    pump_timer_.start_at(rt::TimePoint(std::chrono::microseconds(std::max(*next, now_us() + 1))));
}

}  // namespace skate::sim
