// Actors, seen from those who create and call them.
//
// Control decides about an actor's life and tells it to all who asked (ActorInfo). A caller keeps its calls
// in order: `queue` (not sent), `in_flight` (sent to the life that control told of), `orphans` (sent to a
// life that has ended: retried or failed once control says whether there is a next one).
#include <algorithm>

#include "wire/archive.h"
#include "worker/runtime.h"
#include "worker/values.h"

namespace skate::worker {

using wire::ActorState;
using wire::ControlMethod;

namespace {
constexpr size_t kUnsentBytesMax = size_t{4} << 20;
}

ActorClient* Runtime::client_of(const ActorId& actor) {
  std::unique_ptr<ActorClient>& client = actors_[actor];
  if (!client) {
    client = std::make_unique<ActorClient>();
    client->id = actor;
    client->info.actor = actor;
  }
  return client.get();
}

void Runtime::ask_actor(ActorClient* client) {
  if (client->asked) return;
  client->asked = true;
  ActorId actor = client->id;
  call_control(ControlMethod::kGetActor, wire::encode(wire::ActorRef{actor}),
               [this, actor](const wire::ControlReply& reply) {
                 if (reply.ok) {
                   if (auto info = wire::decode<wire::ActorInfo>(reply.body)) actor_event(*info);
                   return;
                 }
                 actor_refused(actor, wire::DeathKind::kUnknown,
                               "the control service does not know it: " + reply.body);
               });
}

/// Control would not have it: to its callers it is dead.
void Runtime::actor_refused(const ActorId& actor, wire::DeathKind kind, std::string why) {
  wire::ActorInfo gone = client_of(actor)->info;
  gone.state = ActorState::kDead;
  gone.death = {kind, 0, 0, 0, std::move(why), {}, {}};
  actor_event(gone);
}

Result<Runtime::CreatedActor> Runtime::create_actor(wire::ActorSpec spec, std::vector<Argument> arguments,
                                                    std::vector<Entry*> pinned, bool get_if_exists,
                                                    const std::function<bool()>& interrupted) {
  wire::RegisterActor request;
  secure_random_bytes(reinterpret_cast<uint8_t*>(&request.key), sizeof request.key);
  spec.actor = ActorId::make(job_);
  spec.job = job_;
  spec.owner = self();
  if (spec.name_space.empty()) spec.name_space = welcome_.name_space;
  request.actor = spec.actor;
  request.owner = spec.owner;
  request.job = spec.job;
  request.class_name = spec.class_name;
  request.name = spec.name;
  request.name_space = spec.name_space;
  request.detached = spec.detached;
  request.get_if_exists = get_if_exists;
  request.meta = spec.meta;
  request.max_restarts = spec.max_restarts;
  request.max_task_retries = spec.max_task_retries;
  request.out_of_order = spec.out_of_order;
  request.max_pending_calls = spec.max_pending_calls;
  CreatedActor created;
  created.actor = spec.actor;
  if (!spec.name.empty()) {
    // A name may be taken: the caller must hear of it now.
    Result<std::string> reply = control_call(ControlMethod::kRegisterActor, wire::encode(request),
                                             Clock::time_point::max(), interrupted);
    if (!reply.ok()) {
      unpin_all(pinned);
      // Should the name have been taken all the same, it is given back.
      if (reply.error().code == ErrorCode::kCancelled) kill_actor(spec.actor, true);
      return reply.error();
    }
    Result<wire::RegisterActorReply> registered = wire::decode<wire::RegisterActorReply>(*reply);
    if (!registered.ok()) {
      unpin_all(pinned);
      return registered.error();
    }
    if (registered->existed) {
      unpin_all(pinned);
      created.existed = true;
      created.actor = registered->info.actor;
      created.info = registered->info;
      adopt_actor(created.info);
      return created;
    }
  }
  std::lock_guard lock(mutex_);
  ActorClient* client = client_of(spec.actor);
  client->info.class_name = spec.class_name;
  client->info.name = spec.name;
  client->info.name_space = spec.name_space;
  client->info.meta = spec.meta;
  client->info.job = spec.job;
  client->info.max_task_retries = spec.max_task_retries;
  client->info.out_of_order = spec.out_of_order;
  client->info.max_pending_calls = spec.max_pending_calls;
  created.info = client->info;
  if (spec.name.empty()) {
    ActorId actor = spec.actor;
    call_control(ControlMethod::kRegisterActor, wire::encode(request),
                 [this, actor](const wire::ControlReply& reply) {
                   if (!reply.ok) actor_refused(actor, wire::DeathKind::kNeverCreated, reply.body);
                 });
  }
  ask_actor(client);
  if (!spec.detached) {
    Entry* handle = objects_.create(ObjectId::of(TaskId::actor_creation(spec.actor), 1));
    handle->handles.store(1, std::memory_order_relaxed);
    handle->keeps_actor = true;
    created.handle = handle;
  }
  TaskRecord* task = new_task();
  task->id = TaskId::actor_creation(spec.actor);
  auto task_spec = std::make_shared<TaskSpec>();
  task_spec->name = spec.class_name + ".__init__";
  task->spec = std::move(task_spec);
  task->arguments = std::move(arguments);
  task->pinned = std::move(pinned);
  task->creation = std::make_unique<wire::ActorSpec>(std::move(spec));
  client->creation = task;
  link_dependencies(task);
  if (task->dependencies == 0) dependency_ready(task);
  flush();
  return created;
}

void Runtime::place_actor(TaskRecord* task, const wire::Death* failure) {
  wire::PlaceActor place;
  secure_random_bytes(reinterpret_cast<uint8_t*>(&place.key), sizeof place.key);
  if (failure == nullptr) {
    std::string arguments;
    wire::RecordWriter writer(arguments);
    uint64_t count = task->arguments.size();
    writer.put(count);
    writer.align();
    encode_arguments(writer, *task);
    task->creation->arguments = std::move(arguments);
  } else {
    place.failed = true;
    place.cause = *failure;
  }
  place.spec = *task->creation;
  task->creation->class_blob.clear();  // control keeps it now
  task->creation->arguments.clear();
  ActorId actor = place.spec.actor;
  call_control(ControlMethod::kPlaceActor, wire::encode(place),
               [this, actor](const wire::ControlReply& reply) {
                 if (!reply.ok) actor_refused(actor, wire::DeathKind::kNeverCreated, reply.body);
               });
}

void Runtime::adopt_actor(const wire::ActorInfo& info) {
  std::lock_guard lock(mutex_);
  ActorClient* client = client_of(info.actor);
  ask_actor(client);
  actor_event(info);
  flush();
}

void Runtime::learn_actor(const wire::ActorInfo& info) {
  std::lock_guard lock(mutex_);
  ActorClient* client = client_of(info.actor);
  if (client->known || client->asked) return;
  client->info = info;
  client->info.state = ActorState::kPending;
}

Result<Runtime::Submitted> Runtime::submit_to_actor(const ActorId& actor, Entry* handle,
                                                    std::shared_ptr<const TaskSpec> spec,
                                                    std::vector<Argument> arguments,
                                                    std::vector<Entry*> pinned, const TaskId& parent) {
  std::lock_guard lock(mutex_);
  ActorClient* client = client_of(actor);
  int64_t limit = client->info.max_pending_calls;
  if (limit >= 0 && static_cast<int64_t>(client->pending_calls()) >= limit) {
    for (Entry* entry : pinned) objects_.unpin(entry);
    return Error{ErrorCode::kFull, "the actor has " + std::to_string(client->pending_calls()) +
                                       " pending calls of this caller and max_pending_calls is " +
                                       std::to_string(limit) + ": wait for some results first"};
  }
  TaskRecord* task = new_task();
  task->id = TaskId::actor_call(next_sequence_++, actor);
  task->arguments = std::move(arguments);
  task->pinned = std::move(pinned);
  if (handle != nullptr) {
    objects_.pin(handle);  // a call keeps its actor alive until it is answered
    task->pinned.push_back(handle);
  }
  task->parent = parent;
  task->retries_left = spec->max_retries;
  task->spec = std::move(spec);
  task->actor = client;
  task->state = TaskState::kQueued;
  Submitted out = make_returns(task);
  ask_actor(client);
  client->queue.push_back(task);
  link_dependencies(task);
  if (client->info.state == ActorState::kDead && client->known)
    fail_actor_calls(client);
  else if (task->dependencies == 0)
    dependency_ready(task);
  flush();
  return out;
}

void Runtime::pump_actor(ActorClient* client) {
  if (client->peer == nullptr || client->info.state != ActorState::kAlive) return;
  for (size_t i = 0; i < client->queue.size();) {
    TaskRecord* task = client->queue[i];
    if (task->dependencies != 0) {
      if (!client->info.out_of_order) return;
      ++i;
      continue;
    }
    if (client->peer->link && client->peer->link->backlog_bytes() > kUnsentBytesMax) return;
    if (i == 0)
      client->queue.pop_front();
    else
      client->queue.erase(client->queue.begin() + static_cast<ptrdiff_t>(i));
    client->in_flight.push_back(task);
    push(task, client->peer, wire::kNoClaim);
  }
}

void Runtime::actor_event(const wire::ActorInfo& info) {
  ActorClient* client = client_of(info.actor);
  if (client->known && client->info.state == ActorState::kDead) return;  // the last word was said
  if (client->known && info.incarnation < client->info.incarnation) return;
  // An answer of control that was overtaken by its news: in one life, waiting comes before being alive.
  if (client->known && info.incarnation == client->info.incarnation &&
      client->info.state == ActorState::kAlive &&
      (info.state == ActorState::kPending || info.state == ActorState::kRestarting))
    return;
  client->known = true;
  client->info = info;
  switch (info.state) {
    case ActorState::kPending:
    case ActorState::kRestarting: client->peer = nullptr; break;
    case ActorState::kAlive: {
      Peer* peer = peer_of(info.address);
      if (peer == nullptr) peer = &self_;  // an actor that calls itself
      client->peer = peer->state == Peer::State::kDead ? nullptr : peer;
      break;
    }
    case ActorState::kDead: client->peer = nullptr; break;
  }
  if (info.state == ActorState::kDead) {
    std::deque<TaskRecord*> sent;
    sent.swap(client->in_flight);
    client->orphans.insert(client->orphans.end(), sent.begin(), sent.end());
    fail_actor_calls(client);
    if (TaskRecord* creation = client->creation) {
      client->creation = nullptr;
      end_task(creation);
    }
    return;
  }
  // Calls that were sent to the life before: again, where that is wanted, before all others and in order.
  std::deque<TaskRecord*> orphans;
  orphans.swap(client->orphans);
  for (auto task = orphans.rbegin(); task != orphans.rend(); ++task) {
    if ((*task)->retries_left != 0 && !(*task)->cancelled) {
      if ((*task)->retries_left > 0) --(*task)->retries_left;
      ++(*task)->attempt;
      (*task)->state = TaskState::kQueued;
      client->queue.push_front(*task);
    } else {
      fail_task(*task, actor_error(*client, client->last_death, false));
    }
  }
  pump_actor(client);
}

/// The process behind it died; control will say whether it restarts.
void Runtime::actor_lost(ActorClient* client, const wire::Death& death) {
  client->peer = nullptr;
  client->last_death = death;
  for (TaskRecord* task : client->in_flight) {
    erase_untold(*task);
    task->state = TaskState::kQueued;
    client->orphans.push_back(task);
  }
  client->in_flight.clear();
  if (client->info.state == ActorState::kAlive) client->info.state = ActorState::kRestarting;
}

void Runtime::fail_actor_calls(ActorClient* client) {
  std::deque<TaskRecord*> calls;
  calls.swap(client->orphans);
  calls.insert(calls.end(), client->queue.begin(), client->queue.end());
  client->queue.clear();
  for (TaskRecord* task : calls) {
    unlink_dependencies(task);
    fail_task(task, actor_error(*client, client->info.death, true));
  }
}

BlobPtr Runtime::actor_error(const ActorClient& client, const wire::Death& death, bool gone) const {
  if (gone && death.kind == wire::DeathKind::kNeverCreated && !death.error_value.empty())
    return Blob::copy({reinterpret_cast<const uint8_t*>(death.error_value.data()), death.error_value.size()});
  std::map<std::string, std::string> fields = death_fields(death);
  fields["actor_id"] = client.id.hex();
  fields["class_name"] = client.info.class_name;
  fields["name"] = client.info.name;
  fields["namespace"] = client.info.name_space;
  if (client.info.incarnation != 0) fields["restarts"] = std::to_string(client.info.incarnation);
  if (gone && death.kind == wire::DeathKind::kOutOfMemory) return system_error("out_of_memory", fields);
  if (gone && death.kind == wire::DeathKind::kEnvironment) return system_error("runtime_env", fields);
  if (gone && death.kind == wire::DeathKind::kUnschedulable) return system_error("unschedulable", fields);
  return system_error(gone ? "actor_died" : "actor_unavailable", fields);
}

void Runtime::kill_actor(const ActorId& actor, bool no_restart) {
  wire::KillActor request{0, actor, no_restart, "killed by the program (kill)", false};
  secure_random_bytes(reinterpret_cast<uint8_t*>(&request.key), sizeof request.key);
  std::lock_guard lock(mutex_);
  // What this process calls from now on waits for control's word, and does not slip in before the end.
  ActorClient* client = client_of(actor);
  if (client->info.state == ActorState::kAlive) {
    client->peer = nullptr;
    client->info.state = ActorState::kRestarting;
  }
  call_control(ControlMethod::kKillActor, wire::encode(request), [](const wire::ControlReply&) {});
  flush();
}

Result<wire::ActorInfo> Runtime::actor_info(const ActorId& actor, Clock::time_point until) {
  SKATE_TRY_ASSIGN(std::string body,
                   control_call(ControlMethod::kGetActor, wire::encode(wire::ActorRef{actor}), until));
  return wire::decode<wire::ActorInfo>(body);
}

}  // namespace skate::worker
