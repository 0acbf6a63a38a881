#include "control/core/actors.h"

#include <algorithm>

namespace skate::control {

using wire::ActorState;
using wire::Death;
using wire::DeathKind;

namespace {

Death death(DeathKind kind, std::string message) {
  Death out;
  out.kind = kind;
  out.message = std::move(message);
  return out;
}

std::string display_name(const wire::ActorInfo& info) {
  std::string out = "actor " + info.class_name;
  if (!info.name.empty()) out += " '" + info.name + "'";
  return out + " (" + info.actor.hex() + ")";
}

/// Deaths after which no restart is asked for: the actor ended because it was meant to, or cannot begin.
bool is_final(DeathKind kind) {
  return kind == DeathKind::kIntended || kind == DeathKind::kOwnerDied || kind == DeathKind::kConstructor ||
         kind == DeathKind::kEnvironment || kind == DeathKind::kUnschedulable ||
         kind == DeathKind::kNeverCreated || kind == DeathKind::kStartFailed;
}

}  // namespace

ActorRecord* ActorTable::find(const ActorId& id) {
  const auto found = actors_.find(id);
  return found == actors_.end() ? nullptr : &found->second;
}

void ActorTable::changed(const ActorRecord& actor, Outbox& out) {
  out.put(Table::kActors, actor.info.actor, actor);
  const auto found = subscribers_.find(actor.info.actor);
  if (found == subscribers_.end()) return;
  wire::Publish publish;
  publish.topic = wire::ControlTopic::kActor;
  publish.body = wire::encode(actor.info);
  for (const NodeId& node : found->second) out.send(node, wire::NodeCommand::kPublish, publish);
}

Result<wire::RegisterActorReply> ActorTable::add(const wire::RegisterActor& request, Outbox& out) {
  if (request.actor.is_nil()) return Error{ErrorCode::kInvalid, "an actor needs an id"};
  if (request.max_restarts < -1) return Error{ErrorCode::kInvalid, "max_restarts is -1, 0 or more"};
  wire::RegisterActorReply reply;
  if (const ActorRecord* known = find(request.actor)) {
    reply.info = known->info;
    return reply;
  }
  if (!request.detached && dead_workers_.contains(request.owner.worker))
    return Error{ErrorCode::kNotFound, "the owner of the new actor is gone"};
  const std::pair<std::string, std::string> full_name{request.name_space, request.name};
  if (!request.name.empty()) {
    if (const auto taken = names_.find(full_name); taken != names_.end()) {
      if (!request.get_if_exists)
        return Error{ErrorCode::kExists, "the name '" + request.name + "' (namespace '" + request.name_space +
                                             "') is taken by " + display_name(find(taken->second)->info) +
                                             ": choose another name, or kill that actor first"};
      reply.existed = true;
      reply.info = find(taken->second)->info;
      subscribers_[taken->second].insert(request.owner.node);
      return reply;
    }
  }
  if (actors_.size() - dead_.size() >= kLiveMax) return Error{ErrorCode::kFull, "there are too many actors"};
  ActorRecord actor;
  actor.info.actor = request.actor;
  actor.info.state = ActorState::kPending;
  actor.info.restarts_left = request.max_restarts;
  actor.info.class_name = request.class_name;
  actor.info.name = request.name;
  actor.info.name_space = request.name_space;
  actor.info.meta = request.meta;
  actor.info.max_task_retries = request.max_task_retries;
  actor.info.out_of_order = request.out_of_order;
  actor.info.max_pending_calls = request.max_pending_calls;
  actor.info.job = request.job;
  actor.info.detached = request.detached;
  if (!request.detached) actor.info.owner = request.owner;
  actor.max_restarts = request.max_restarts;
  if (!request.name.empty()) names_[full_name] = request.actor;
  if (!request.detached && !request.owner.worker.is_nil()) owned_[request.owner.worker].insert(request.actor);
  if (!request.owner.node.is_nil()) subscribers_[request.actor].insert(request.owner.node);
  ActorRecord& stored = actors_[request.actor] = std::move(actor);
  out.put(Table::kActors, request.actor, stored);
  reply.info = stored.info;
  return reply;
}

Result<void> ActorTable::place(const wire::PlaceActor& request, const std::string& job_json, Outbox& out) {
  ActorRecord* actor = find(request.spec.actor);
  if (actor == nullptr)
    return Error{ErrorCode::kNotFound, "actor " + request.spec.actor.hex() + " was never registered"};
  if (actor->placed || actor->info.state == ActorState::kDead) return {};  // repeated, or killed meanwhile
  if (request.failed) {
    die(*actor, request.cause, false, out);
    settle(out);
    return {};
  }
  actor->placed = true;
  ActorSpecRecord& spec = specs_[request.spec.actor] = {request.spec, job_json};
  out.put(Table::kActorSpecs, request.spec.actor, spec);
  out.put(Table::kActors, request.spec.actor, *actor);
  start(*actor, out);
  settle(out);
  return {};
}

uint64_t ActorTable::living_on(const NodeId& node) const {
  const auto found = by_node_.find(node);
  return found == by_node_.end() ? 0 : found->second.size();
}

bool ActorTable::has_living(const JobId& job) const {
  return std::any_of(actors_.begin(), actors_.end(), [&](const auto& entry) {
    return entry.second.info.job == job && entry.second.info.state != ActorState::kDead;
  });
}

std::optional<NodeId> ActorTable::find_node(const ActorSpecRecord& spec, std::string& never,
                                            std::string& waits) const {
  const wire::Resources& need =
      spec.spec.placement_resources.empty() ? spec.spec.resources : spec.spec.placement_resources;
  const wire::SchedulingPlan plan = wire::parse_scheduling(spec.spec.scheduling);
  if (plan.group) {
    GroupPlace place = groups_.place_for(*plan.group, plan.bundle, need);
    if (place.kind == GroupPlace::Kind::kHere && nodes_.usable(place.node)) return place.node;
    if (place.kind == GroupPlace::Kind::kNever) never = "the actor cannot be created: " + place.why;
    return std::nullopt;
  }
  std::vector<NodeView> views = nodes_.views();
  for (NodeView& view : views) view.actors = living_on(view.node);
  const std::optional<NodeId> node = choose_node(views, need, plan);
  if (node) return node;
  if (plan.node && !plan.soft) {
    const auto known = nodes_.all().find(*plan.node);
    if (known == nodes_.all().end() || !known->second.alive) {
      never = "the node " + plan.node->hex() + " that the actor must live on does not exist";
    } else if (!known->second.expected && (!fits(need, known->second.info.resources) ||
                                           !wire::choice_for(plan, known->second.info.labels))) {
      never = "the node " + plan.node->hex() + " that the actor must live on cannot hold it";
    }
    return std::nullopt;
  }
  const bool labels = std::none_of(views.begin(), views.end(), [&](const NodeView& view) {
    return wire::choice_for(plan, view.labels).has_value();
  });
  if (!views.empty() && labels) {
    waits = "no node has the labels that it asks for: " + wire::describe_labels(plan);
  } else if (!views.empty()) {
    waits = "no node has all the resources that it asks for";
  }
  return std::nullopt;
}

/// To the owner, once.
void ActorTable::notice_wait(ActorRecord& actor, const std::string& why, Outbox& out) {
  const NodeId& node = actor.info.owner.node;
  if (why.empty() || node.is_nil() || !noticed_.insert(actor.info.actor).second) return;
  out.send(node, wire::NodeCommand::kNotice,
           wire::Notice{actor.info.owner.worker,
                        display_name(actor.info) + " waits: " + why + ". It waits until such a node joins."});
}

void ActorTable::start(ActorRecord& actor, Outbox& out) {
  const ActorSpecRecord& spec = specs_.at(actor.info.actor);
  std::string never, waits;
  const std::optional<NodeId> node = find_node(spec, never, waits);
  if (!node) {
    if (!never.empty()) {
      die(actor, death(DeathKind::kUnschedulable, never), false, out);
    } else if (actor.stop == StopWish::kDrain) {
      die(actor, death(DeathKind::kIntended, "every handle was gone before a node could hold the actor"),
          false, out);
    } else {
      waiting_.insert(actor.info.actor);
      notice_wait(actor, waits, out);
    }
    return;
  }
  noticed_.erase(actor.info.actor);
  waiting_.erase(actor.info.actor);
  actor.node = *node;
  by_node_[*node].insert(actor.info.actor);
  out.put(Table::kActors, actor.info.actor, actor);
  out.send(*node, wire::NodeCommand::kStartActor,
           wire::StartActor{spec.spec, actor.info.incarnation, spec.job_json});
}

void ActorTable::place_waiting(Outbox& out) {
  const std::set<ActorId> waiting = waiting_;
  for (const ActorId& id : waiting) {
    if (ActorRecord* actor = find(id)) start(*actor, out);
  }
  settle(out);
}

void ActorTable::leave_node(ActorRecord& actor) {
  waiting_.erase(actor.info.actor);
  noticed_.erase(actor.info.actor);
  if (!actor.node.is_nil()) {
    const auto found = by_node_.find(actor.node);
    if (found != by_node_.end()) {
      found->second.erase(actor.info.actor);
      if (found->second.empty()) by_node_.erase(found);
    }
  }
  actor.node = NodeId::nil();
  by_worker_.erase(actor.info.address.worker);
  actor.info.address = {};
  actor.info.pid = 0;
}

void ActorTable::created(const NodeId& from, const wire::ActorCreatedReport& report, Outbox& out) {
  ActorRecord* actor = find(report.actor);
  if (actor == nullptr || actor->info.state == ActorState::kDead || actor->info.state == ActorState::kAlive ||
      report.incarnation != actor->info.incarnation || actor->node != from) {
    // Late or repeated. A life that should not be is ended: it was told to stop before, perhaps to no avail.
    const bool unwanted = report.ok && (actor == nullptr || actor->info.state == ActorState::kDead ||
                                        report.incarnation != actor->info.incarnation || actor->node != from);
    if (unwanted)
      out.send(from, wire::NodeCommand::kStopActor,
               wire::StopActor{report.actor, report.incarnation, false,
                               death(DeathKind::kKilled, "the actor is dead or lives elsewhere")});
    return;
  }
  if (!report.ok) {
    end_life(*actor, report.cause, out);
    settle(out);
    return;
  }
  actor->info.state = ActorState::kAlive;
  actor->info.address = report.address;
  actor->info.pid = report.pid;
  by_worker_[report.address.worker] = report.actor;
  if (actor->stop == StopWish::kDrain)
    send_stop(*actor, true, death(DeathKind::kIntended, "every handle to it is gone"), out);
  if (actor->stop == StopWish::kRestart)
    send_stop(*actor, false, death(DeathKind::kKilled, "it was killed"), out);
  changed(*actor, out);
}

void ActorTable::worker_died(const NodeId& from, const wire::WorkerDied& report, Outbox& out) {
  if (!report.actor.is_nil()) {
    ActorRecord* actor = find(report.actor);
    const bool current = actor != nullptr && actor->info.state != ActorState::kDead && actor->node == from &&
                         actor->info.incarnation == report.incarnation;
    if (current) end_life(*actor, report.cause, out);
  }
  if (!report.worker.worker.is_nil()) owner_died(report.worker.worker, report.cause.message);
  settle(out);
}

void ActorTable::end_life(ActorRecord& actor, Death cause, Outbox& out) {
  const WorkerId worker = actor.info.address.worker;
  const bool wanted = actor.stop == StopWish::kRestart;
  const bool ends = is_final(cause.kind) && !wanted;
  const bool may_restart =
      actor.info.restarts_left != 0 && actor.placed && !actor.relearnt && actor.stop != StopWish::kDrain;
  if (ends || !may_restart) {
    die(actor, std::move(cause), false, out);
    return;
  }
  leave_node(actor);
  if (actor.info.restarts_left > 0) --actor.info.restarts_left;
  ++actor.info.incarnation;
  actor.info.state = ActorState::kRestarting;
  actor.info.death = std::move(cause);
  actor.stop = StopWish::kNone;
  const ActorId id = actor.info.actor;
  const std::string why = actor.info.death.message;
  changed(actor, out);
  start(actor, out);
  if (!worker.is_nil()) owner_died(worker, display_name(actors_.at(id).info) + " has restarted: " + why);
}

void ActorTable::die(ActorRecord& actor, Death cause, bool tell_node, Outbox& out) {
  if (actor.info.state == ActorState::kDead) return;
  const ActorId id = actor.info.actor;
  const WorkerId worker = actor.info.address.worker;
  if (tell_node) send_stop(actor, false, cause, out);
  leave_node(actor);
  actor.info.state = ActorState::kDead;
  actor.info.restarts_left = 0;
  actor.info.death = std::move(cause);
  actor.stop = StopWish::kNone;
  if (!actor.info.name.empty()) names_.erase({actor.info.name_space, actor.info.name});
  if (const auto found = owned_.find(actor.info.owner.worker); found != owned_.end()) {
    found->second.erase(id);
    if (found->second.empty()) owned_.erase(found);
  }
  if (specs_.erase(id) > 0) out.erase(Table::kActorSpecs, id);
  actor.info.meta.clear();
  changed(actor, out);
  dead_.push_back(id);
  if (!worker.is_nil()) owner_died(worker, display_name(actor.info) + " has died");
}

void ActorTable::settle(Outbox& out) {
  while (!owner_deaths_.empty()) {
    const auto [owner, why] = std::move(owner_deaths_.front());
    owner_deaths_.pop_front();
    remember_dead_worker(owner);
    const auto found = owned_.find(owner);
    if (found == owned_.end()) continue;
    const std::set<ActorId> orphans = std::move(found->second);
    owned_.erase(found);
    for (const ActorId& id : orphans) {
      std::string message = "its owner is gone";
      if (!why.empty()) message += ": " + why;
      if (ActorRecord* actor = find(id))
        die(*actor, death(DeathKind::kOwnerDied, std::move(message)), true, out);
    }
  }
  while (dead_.size() > kDeadKept) {
    const auto oldest = actors_.find(dead_.front());
    out.erase(Table::kActors, oldest->first);
    subscribers_.erase(oldest->first);
    actors_.erase(oldest);
    dead_.pop_front();
  }
}

void ActorTable::remember_dead_worker(const WorkerId& worker) {
  if (!dead_workers_.insert(worker).second) return;
  dead_workers_order_.push_back(worker);
  if (dead_workers_order_.size() > kDeadWorkersKept) {
    dead_workers_.erase(dead_workers_order_.front());
    dead_workers_order_.pop_front();
  }
}

void ActorTable::send_stop(const ActorRecord& actor, bool graceful, const Death& reason, Outbox& out) {
  if (actor.node.is_nil() || !nodes_.usable(actor.node)) return;
  out.send(actor.node, wire::NodeCommand::kStopActor,
           wire::StopActor{actor.info.actor, actor.info.incarnation, graceful, reason});
}

Result<void> ActorTable::kill(const wire::KillActor& request, Outbox& out) {
  ActorRecord* actor = find(request.actor);
  if (actor == nullptr) return Error{ErrorCode::kNotFound, "there is no actor " + request.actor.hex()};
  if (actor->info.state == ActorState::kDead) return {};
  if (request.graceful) {
    out_of_scope(request.actor, out);
    return {};
  }
  Death cause = death(DeathKind::kKilled, request.reason.empty() ? "it was killed" : request.reason);
  if (request.no_restart || actor->info.restarts_left == 0) {
    die(*actor, std::move(cause), true, out);
    settle(out);
    return {};
  }
  // The life ends when its node says so; until then no new one may begin. An actor that lives nowhere yet
  // loses nothing by a kill that lets it start again.
  if (actor->node.is_nil() || actor->stop == StopWish::kDrain) return {};
  actor->stop = StopWish::kRestart;
  // One that is being created is stopped when it is alive: a start that is withdrawn leaves nobody to report.
  if (actor->info.state == ActorState::kAlive) send_stop(*actor, false, cause, out);
  out.put(Table::kActors, actor->info.actor, *actor);
  return {};
}

void ActorTable::out_of_scope(const ActorId& id, Outbox& out) {
  ActorRecord* actor = find(id);
  if (actor == nullptr || actor->info.state == ActorState::kDead || actor->stop == StopWish::kDrain) return;
  actor->stop = StopWish::kDrain;
  if (waiting_.contains(id)) {
    die(*actor, death(DeathKind::kIntended, "every handle was gone before a node could hold the actor"),
        false, out);
    settle(out);
    return;
  }
  // One that is being created takes its queued calls first: it is told when it is alive.
  if (actor->info.state == ActorState::kAlive)
    send_stop(*actor, true, death(DeathKind::kIntended, "every handle to it is gone"), out);
  out.put(Table::kActors, id, *actor);
}

bool ActorTable::owned_by_detached(const ActorRecord& actor) const {
  const ActorRecord* current = &actor;
  for (size_t depth = 0; depth < 1000; ++depth) {
    if (current->info.detached) return true;
    const auto owner = by_worker_.find(current->info.owner.worker);
    if (owner == by_worker_.end()) return false;
    current = &actors_.at(owner->second);
  }
  return false;
}

void ActorTable::job_finished(const JobId& job, const WorkerId& driver, Outbox& out) {
  std::vector<ActorId> ending;
  for (const auto& [id, actor] : actors_) {
    if (actor.info.job == job && actor.info.state != ActorState::kDead && !owned_by_detached(actor))
      ending.push_back(id);
  }
  std::sort(ending.begin(), ending.end());
  for (const ActorId& id : ending) {
    if (ActorRecord* actor = find(id))
      die(*actor, death(DeathKind::kOwnerDied, "its job has ended"), true, out);
  }
  if (!driver.is_nil()) owner_died(driver, "its job has ended");
  settle(out);
}

void ActorTable::node_died(const NodeId& node, Outbox& out) {
  std::vector<ActorId> lost;
  if (const auto found = by_node_.find(node); found != by_node_.end())
    lost.assign(found->second.begin(), found->second.end());
  for (const ActorId& id : lost) {
    ActorRecord* actor = find(id);
    if (actor != nullptr && actor->node == node)
      end_life(*actor, death(DeathKind::kNodeLost, "its node " + node.hex() + " was lost"), out);
  }
  // Owners on that node are gone, too, whatever they were.
  std::set<WorkerId> owners;
  for (const auto& [owner, actors] : owned_) {
    for (const ActorId& id : actors) {
      if (actors_.at(id).info.owner.node == node) owners.insert(owner);
    }
  }
  for (const WorkerId& owner : owners) owner_died(owner, "its node " + node.hex() + " was lost");
  for (auto& [id, nodes] : subscribers_) nodes.erase(node);
  settle(out);
}

void ActorTable::node_registered(const wire::RegisterNode& info, Outbox& out) {
  for (const wire::ActorInfo& live : info.live_actors) {
    ActorRecord* actor = find(live.actor);
    if (actor == nullptr && live.state != ActorState::kDead) {
      // The service has restarted without its log.
      ActorRecord relearnt;
      relearnt.info = live;
      relearnt.info.restarts_left = 0;
      relearnt.node = info.node;
      relearnt.placed = true;
      relearnt.relearnt = true;
      const bool taken = !live.name.empty() && names_.contains({live.name_space, live.name});
      if (!taken) {
        recover(std::move(relearnt));
        continue;
      }
    }
    const bool current = actor != nullptr && actor->info.state != ActorState::kDead &&
                         actor->node == info.node && actor->info.incarnation == live.incarnation;
    if (!current) {
      out.send(info.node, wire::NodeCommand::kStopActor,
               wire::StopActor{live.actor, live.incarnation, false,
                               death(DeathKind::kKilled, "the actor is dead or lives elsewhere")});
    } else if (live.state == ActorState::kAlive && actor->info.state != ActorState::kAlive) {
      wire::ActorCreatedReport report;
      report.actor = live.actor;
      report.incarnation = live.incarnation;
      report.address = live.address;
      report.pid = live.pid;
      report.ok = true;
      created(info.node, report, out);
    }
  }
  // What the node was told while it was out of contact may be lost: tell it again. Starts and stops of one
  // incarnation may come twice, and so may states of actors.
  for (const auto& [id, nodes] : subscribers_) {
    if (!nodes.contains(info.node)) continue;
    out.send(info.node, wire::NodeCommand::kPublish,
             wire::Publish{wire::ControlTopic::kActor, {}, wire::encode(actors_.at(id).info)});
  }
  const auto found = by_node_.find(info.node);
  if (found == by_node_.end()) return;
  for (const ActorId& id : found->second) {
    const ActorRecord& actor = actors_.at(id);
    if (actor.info.state != ActorState::kAlive && !actor.relearnt) {
      const ActorSpecRecord& spec = specs_.at(id);
      out.send(info.node, wire::NodeCommand::kStartActor,
               wire::StartActor{spec.spec, actor.info.incarnation, spec.job_json});
    }
    if (actor.info.state != ActorState::kAlive) continue;
    if (actor.stop == StopWish::kRestart)
      send_stop(actor, false, death(DeathKind::kKilled, "it was killed"), out);
    if (actor.stop == StopWish::kDrain)
      send_stop(actor, true, death(DeathKind::kIntended, "every handle to it is gone"), out);
  }
}

Result<wire::ActorInfo> ActorTable::get(const ActorId& id, const NodeId& asking) {
  const ActorRecord* actor = find(id);
  if (actor == nullptr) return Error{ErrorCode::kNotFound, "there is no actor " + id.hex()};
  if (actor->info.state != ActorState::kDead && !asking.is_nil()) subscribers_[id].insert(asking);
  return actor->info;
}

Result<wire::ActorInfo> ActorTable::get_named(const std::string& name_space, const std::string& name,
                                              const NodeId& asking) {
  const auto found = names_.find({name_space, name});
  if (found == names_.end())
    return Error{ErrorCode::kNotFound,
                 "there is no actor named '" + name + "' in namespace '" + name_space + "'"};
  return get(found->second, asking);
}

wire::ListNamedActorsReply ActorTable::list_named(bool all, const std::string& name_space) const {
  wire::ListNamedActorsReply reply;
  for (const auto& [full_name, id] : names_) {
    if (all || full_name.first == name_space) reply.names.push_back(full_name);
  }
  return reply;
}

void ActorTable::recover(ActorRecord record) {
  const ActorId id = record.info.actor;
  if (record.info.state == ActorState::kDead) {
    dead_.push_back(id);
  } else {
    if (!record.info.name.empty()) names_[{record.info.name_space, record.info.name}] = id;
    if (!record.info.detached && !record.info.owner.worker.is_nil())
      owned_[record.info.owner.worker].insert(id);
    if (record.info.state == ActorState::kAlive) by_worker_[record.info.address.worker] = id;
    if (!record.node.is_nil()) {
      by_node_[record.node].insert(id);
    } else if (record.placed) {
      waiting_.insert(id);
    }
    // Who else had asked is not known any more: daemons ask again for what their processes follow.
    if (!record.info.owner.node.is_nil()) subscribers_[id].insert(record.info.owner.node);
    if (!record.node.is_nil()) subscribers_[id].insert(record.node);
  }
  actors_[id] = std::move(record);
}

void ActorTable::recover_spec(ActorSpecRecord record) {
  const ActorId id = record.spec.actor;
  specs_[id] = std::move(record);
}

std::set<NodeId> ActorTable::recovered_nodes() const {
  std::set<NodeId> out;
  for (const auto& [node, actors] : by_node_) out.insert(node);
  for (const auto& [id, actor] : actors_) {
    if (actor.info.state != ActorState::kDead && !actor.info.owner.node.is_nil())
      out.insert(actor.info.owner.node);
  }
  return out;
}

std::string ActorTable::check() const {
  size_t named = 0, dead = 0, starting_or_alive = 0;
  for (const auto& [id, actor] : actors_) {
    const std::string who = display_name(actor.info);
    const int64_t used = static_cast<int64_t>(actor.info.incarnation);
    if (!actor.relearnt && actor.max_restarts >= 0 && used > actor.max_restarts)
      return who + " restarted too often";
    const auto name = names_.find({actor.info.name_space, actor.info.name});
    const bool holds_name = name != names_.end() && name->second == id;
    if (actor.info.state == ActorState::kDead) {
      ++dead;
      if (holds_name) return who + " is dead and keeps its name";
      if (!actor.node.is_nil()) return who + " is dead and lives on a node";
      if (waiting_.contains(id)) return who + " is dead and waits for a node";
      if (specs_.contains(id)) return who + " is dead and keeps its spec";
      continue;
    }
    if (!actor.info.name.empty()) {
      ++named;
      if (!holds_name) return who + " has lost its name";
    }
    if (actor.info.state == ActorState::kAlive && actor.node.is_nil()) return who + " is alive nowhere";
    if (actor.info.state == ActorState::kAlive &&
        by_worker_.find(actor.info.address.worker) == by_worker_.end())
      return who + " is alive and its worker unknown";
    if (!actor.node.is_nil()) {
      ++starting_or_alive;
      const auto on = by_node_.find(actor.node);
      if (on == by_node_.end() || !on->second.contains(id)) return who + " is missing on its node";
      if (nodes_.dead(actor.node)) return who + " lives on a dead node";
    }
    if (actor.placed && actor.node.is_nil() && !waiting_.contains(id))
      return who + " is placed, nowhere, and waits for nothing";
    if (actor.placed && !actor.relearnt && !specs_.contains(id)) return who + " has lost its spec";
  }
  if (named != names_.size()) return "a name belongs to no living actor";
  if (dead != dead_.size()) return "the list of the dead is wrong";
  size_t on_nodes = 0;
  for (const auto& [node, actors] : by_node_) on_nodes += actors.size();
  if (on_nodes != starting_or_alive) return "a node holds an actor that is not there";
  for (const auto& [owner, actors] : owned_) {
    for (const ActorId& id : actors) {
      const auto found = actors_.find(id);
      if (found == actors_.end() || found->second.info.state == ActorState::kDead)
        return "an owner keeps a dead actor";
    }
  }
  return {};
}

}  // namespace skate::control
