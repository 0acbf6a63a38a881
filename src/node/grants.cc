// What the scheduler decided, done.
#include <cstring>

#include "node/node_daemon.h"

namespace skate::node {

namespace {
constexpr rt::Duration kDeadlockCheck = std::chrono::seconds(1);
}

rt::Task<void> NodeDaemon::pump_loop() {
  while (true) {
    co_await work_to_do_.wait();
    work_to_do_.reset();
    pump();
  }
}

void NodeDaemon::pump() {
  work_to_do_.reset();
  look_at_workers();
  apply(scheduler_.decide(now_us()));
  std::atomic<uint32_t>& wanted = segment_->node().cpus_wanted;
  const uint32_t wants = scheduler_.cpu_wanted() ? 1 : 0;
  if (wanted.exchange(wants, std::memory_order_seq_cst) != wants && wants) {
    // One that blocked before it could see the flag did not ring.
    look_at_workers();
    apply(scheduler_.decide(now_us()));
  }
  flush_rings();
  if (auto deadline_us = scheduler_.next_deadline(now_us())) {
    pump_timer_.start_at(rt::TimePoint(std::chrono::microseconds(*deadline_us)));
  } else {
    pump_timer_.cancel();
  }
  const bool waiting = scheduler_.queued() > 0;
  if (!waiting) {
    deadlock_timer_.cancel();
    reported_deadlocks_.clear();
  } else if (!deadlock_timer_.armed()) {
    deadlock_timer_.start_after(kDeadlockCheck);
  }
  if (scheduler_.available() != reported_available_ || scheduler_.bundle_resources(true) != reported_bundles_)
    report_wanted_.set();
}

void NodeDaemon::look_at_workers() {
  for (ProcessNumber number : scheduler_.leased_workers()) {
    Process* process = find(number);
    if (process == nullptr || !process->link) continue;
    const rpc::ProcessSlot& slot = segment_->slot(process->slot);
    scheduler_.blocked(number, slot.blocked.load(std::memory_order_seq_cst) != 0);
    scheduler_.works(number, slot.work_us.load(std::memory_order_relaxed));
  }
}

/// The task or actor that it runs, or ran last; empty: none yet.
std::string NodeDaemon::source_of(const Process& process) const {
  if (!process.link) return "";
  const char* source = segment_->slot(process.slot).source;
  return {source, ::strnlen(source, sizeof(rpc::ProcessSlot::source))};
}

void NodeDaemon::apply(Decisions decisions) {
  for (const Reserved& made : decisions.reserved)
    tell_control(wire::ControlMethod::kBundlesReserved,
                 wire::BundlesReserved{made.group, made.attempt, made.ok});
  for (const Eviction& eviction : decisions.evictions)
    if (Process* worker = find(eviction.worker))
      kill(*worker, death_of(wire::DeathKind::kKilled, eviction.why, worker->pid));
  for (const StartWorker& order : decisions.starts) start_worker(order);
  for (const Grant& grant : decisions.grants) apply_grant(grant);
  for (const ActorPlacement& placement : decisions.placements) apply_placement(placement);
  for (const Recall& recall : decisions.recalls)
    if (Process* owner = find(recall.owner))
      tell(*owner, wire::MessageType::kLeaseRecall, wire::LeaseRecall{recall.lease});
  for (const StopWorker& stop : decisions.stops) apply_stop(stop);
  for (const Refusal& refusal : decisions.refusals) apply_refusal(refusal);
  if (decisions.workers_limit_reached)
    warn("the node has as many workers as its memory allows (" + std::to_string(workers_max_) +
         "); tasks that wait for a worker wait until one ends");
}

void NodeDaemon::apply_grant(const Grant& grant) {
  Process* owner = find(grant.owner);
  Process* worker = find(grant.worker);
  if (owner == nullptr || worker == nullptr) return;  // the death of either ends the lease
  if (!connect(*owner, *worker)) {
    warn("all links of the node are in use (" + std::to_string(rpc::kLinksMax) + "); a lease is taken back");
    scheduler_.lease_returned(grant.owner, grant.lease, false, now_us());
    return;
  }
  tell(*owner, wire::MessageType::kLeaseGrant,
       wire::LeaseGrant{grant.shape_id, grant.lease, address_of(*worker), worker->pid, grant.instances});
}

void NodeDaemon::apply_placement(const ActorPlacement& placement) {
  auto actor = actors_.find(placement.actor);
  Process* worker = find(placement.worker);
  if (actor == actors_.end() || worker == nullptr) return;
  actor->second.worker = placement.worker;
  worker->actor_number = placement.actor;
  const wire::StartActor& order = actor->second.order;
  tell(
      *worker, wire::MessageType::kCreateActor,
      wire::CreateActor{order.spec, order.incarnation, placement.lease, placement.instances, order.job_json});
}

void NodeDaemon::apply_stop(const StopWorker& stop) {
  Process* worker = find(stop.worker);
  if (worker == nullptr) return;
  wire::Death reason = death_of(wire::DeathKind::kIntended, "", worker->pid);
  switch (stop.why) {
    case StopWorker::Why::kIdle:
      reason.message = "it was idle";
      worker->declined_exit = false;
      ask_exit(*worker, reason, false, options_.idle_exit_grace_ms);
      return;
    case StopWorker::Why::kOwnerDied:
      reason.kind = wire::DeathKind::kOwnerDied;
      reason.message = "the process that it worked for has ended";
      break;
    case StopWorker::Why::kJobFinished: reason.message = "its job has ended"; break;
  }
  worker->declined_exit = false;
  ask_exit(*worker, reason, true, options_.exit_grace_ms);
}

void NodeDaemon::apply_refusal(const Refusal& refusal) {
  wire::Death cause = death_of(wire::DeathKind::kUnschedulable, refusal.message);
  if (refusal.why == Refusal::Why::kInfeasible) {
    cause.message += ". It waits until a node that has them joins.";
    refuse(refusal, cause, true);
    return;
  }
  if (refusal.why == Refusal::Why::kBundleTooSmall || refusal.why == Refusal::Why::kGroupRemoved) {
    if (refusal.why == Refusal::Why::kGroupRemoved && refusal.owner != 0)
      cause.kind = wire::DeathKind::kGroupRemoved;
    refuse(refusal, cause, false);
    return;
  }
  if (auto last = last_start_failure_.find(refusal.pool); last != last_start_failure_.end())
    cause = last->second;
  if (cause.kind == wire::DeathKind::kStartFailed) {
    cause.message = "no worker can be started: " + cause.message;
  } else {
    cause.kind = wire::DeathKind::kEnvironment;
    cause.message = refusal.message + ": " + cause.message;
  }
  refuse(refusal, cause, false);
}

void NodeDaemon::refuse(const Refusal& refusal, wire::Death cause, bool infeasible_now) {
  if (refusal.owner != 0) {
    Process* owner = find(refusal.owner);
    if (infeasible_now) warn_job_of(owner, cause.message);
    if (owner != nullptr)
      tell(*owner, wire::MessageType::kLeaseRefused,
           wire::LeaseRefused{refusal.shape_id, cause, infeasible_now});
    return;
  }
  auto actor = actors_.find(refusal.shape_id);
  if (actor == actors_.end()) return;
  if (infeasible_now) {
    Process* owner = find(actor->second.order.spec.owner.worker);
    warn_job_of(owner, cause.message);
    if (owner != nullptr) tell(*owner, wire::MessageType::kLeaseRefused, wire::LeaseRefused{0, cause, true});
    return;
  }
  report_actor(actor->second, false, cause, nullptr);
  actors_.erase(actor);
}

/// Waits that cannot end by themselves are told to those who wait, once, when they have lasted a check.
void NodeDaemon::report_deadlocks() {
  std::set<std::pair<ProcessNumber, uint64_t>> seen;
  for (const Wait& wait : scheduler_.waits()) {
    if (!wait.deadlock) continue;
    std::pair<ProcessNumber, uint64_t> key{wait.owner, wait.shape_id};
    seen.insert(key);
    if (seen_deadlocks_.count(key) == 0 || !reported_deadlocks_.insert(key).second) continue;
    Resources lacks = wait.lacks;
    lacks.erase("CPU");  // lent by who is blocked, so that it is not what this waits for
    std::string text = "'" + wait.function + "' waits for " + describe(lacks) +
                       ", which only those hold who wait themselves:";
    for (const Wait::Holder& holder : wait.holders) {
      Resources holds = holder.holds;
      holds.erase("CPU");
      const Process* worker = find(holder.worker);
      if (!holder.blocked || holds.empty() || worker == nullptr) continue;
      std::string runs = source_of(*worker);
      if (runs.empty()) runs = holder.function;
      text += "\n  '" + runs + "' (pid " + std::to_string(worker->pid) + ") holds " + describe(holds) +
              " and is blocked in get() or wait()";
    }
    text +=
        "\nUnlike CPUs these are not lent out. Ask for less, or do not wait inside the task that holds them.";
    refuse(Refusal{wait.owner, wait.shape_id, Refusal::Why::kInfeasible, text, {}},
           death_of(wire::DeathKind::kUnschedulable, text), true);
  }
  seen_deadlocks_ = std::move(seen);
  flush_rings();
  if (scheduler_.queued() > 0) deadlock_timer_.start_after(kDeadlockCheck);
}

}  // namespace skate::node
