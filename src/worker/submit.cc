// Tasks from submission to completion, seen from their owner.
//
//   kWaiting --arguments ready--> kQueued --lease--> kPushed --TaskDone--> kDone
//                                    ^                  |
//                                    +-- taken back, retried
#include <algorithm>

#define XXH_INLINE_ALL  // header only: the module links no libxxhash
#include <xxhash.h>

#include "wire/archive.h"
#include "worker/runtime.h"
#include "worker/values.h"

namespace skate::worker {

using wire::RecordType;

namespace {
constexpr uint32_t kDemandMax = 4096;
constexpr size_t kInFlightMax = 128;
constexpr double kShortTaskNs = 1e6;
constexpr int64_t kShortageNs = 200'000;

int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

std::string shape_key(const wire::LeaseShape& shape) {
  std::string key;
  for (const auto& [name, amount] : shape.resources) key += name + "=" + std::to_string(amount) + ",";
  return key + "\n" + shape.runtime_env + "\n" + shape.scheduling + "\n" + shape.function + "\n" +
         std::to_string(shape.priority);
}
}  // namespace

std::shared_ptr<const Function> Runtime::define_function(std::string blob, std::string name) {
  XXH128_hash_t hash = XXH3_128bits(blob.data(), blob.size());
  FunctionId id;
  std::memset(id.data(), 0, FunctionId::kSize);
  std::memcpy(id.data(), &hash, sizeof hash);
  uint64_t size = blob.size();
  std::memcpy(id.data() + sizeof hash, &size, sizeof size);
  std::lock_guard lock(mutex_);
  std::shared_ptr<const Function>& known = functions_[id];
  if (!known) {
    auto function = std::make_shared<Function>();
    function->id = id;
    function->number = static_cast<uint32_t>(functions_.size());
    function->blob = std::move(blob);
    function->name = std::move(name);
    known = std::move(function);
  }
  return known;
}

TaskRecord* Runtime::new_task() {
  if (free_tasks_.empty()) {
    tasks_.emplace_back();
    tasks_.back().index = static_cast<uint32_t>(tasks_.size() - 1);
    tasks_.back().generation = 1;
    return &tasks_.back();
  }
  TaskRecord* task = &tasks_[free_tasks_.back()];
  free_tasks_.pop_back();
  return task;
}

TaskRecord* Runtime::task_of(uint64_t token) {
  uint32_t index = static_cast<uint32_t>(token);
  if (index >= tasks_.size() || tasks_[index].generation != token >> 32) return nullptr;
  return &tasks_[index];
}

void Runtime::free_task(TaskRecord* task) {
  uint32_t index = task->index, generation = task->generation + 1;
  *task = TaskRecord();
  task->index = index;
  task->generation = generation;
  free_tasks_.push_back(index);
}

Shape* Runtime::shape_of(const TaskSpec& spec) {
  if (spec.shape_queue != nullptr) return spec.shape_queue;
  std::unique_ptr<Shape>& shape = shapes_[shape_key(spec.shape)];
  if (!shape) {
    shape = std::make_unique<Shape>();
    shape->id = shapes_.size();
    shape->description = spec.shape;
    shape->description.job = job_;
    shapes_by_id_[shape->id] = shape.get();
  }
  return spec.shape_queue = shape.get();
}

/// The objects that it will return, each with a handle for the caller, and its stream if it has one.
Runtime::Submitted Runtime::make_returns(TaskRecord* task) {
  Submitted out;
  const TaskSpec& s = *task->spec;
  uint32_t returns = s.mode == wire::ReturnMode::kStatic ? s.num_returns : 1;
  for (uint32_t i = 0; i < returns; ++i) {
    Entry* entry = objects_.create(wire::result_id(task->id, i));
    entry->task = task;
    entry->handles.store(1, std::memory_order_relaxed);
    task->returns.push_back(entry);
  }
  if (s.mode != wire::ReturnMode::kStatic) {
    task->stream = std::make_shared<Stream>();
    task->stream->completed = task->returns[0];
    task->stream->task = task;
    objects_.pin(task->returns[0]);
    if (s.mode == wire::ReturnMode::kStreaming) out.stream = task->stream;
  }
  out.returns = task->returns;
  return out;
}

Runtime::Submitted Runtime::submit(std::shared_ptr<const TaskSpec> spec, std::vector<Argument> arguments,
                                   std::vector<Entry*> pinned, const TaskId& parent) {
  std::lock_guard lock(mutex_);
  TaskRecord* task = new_task();
  task->id = TaskId::normal(next_sequence_++, welcome_.worker, job_);
  task->arguments = std::move(arguments);
  task->pinned = std::move(pinned);
  task->parent = parent;
  task->retries_left = spec->max_retries;
  task->spec = std::move(spec);
  Submitted out = make_returns(task);
  link_dependencies(task);
  if (task->dependencies == 0) dependency_ready(task);
  flush();
  return out;
}

/// Every argument ref counts until it is ready.
void Runtime::link_dependencies(TaskRecord* task) {
  for (Argument& argument : task->arguments) {
    if (argument.ref == nullptr || argument.ref->ready()) continue;
    request_value(argument.ref);
    if (argument.ref->ready()) continue;
    ++task->dependencies;
    dependents_[argument.ref->id].push_back(task);
  }
}

/// It waits for no argument any more.
void Runtime::unlink_dependencies(TaskRecord* task) {
  for (Argument& argument : task->arguments) {
    if (argument.ref == nullptr) continue;
    auto found = dependents_.find(argument.ref->id);
    if (found != dependents_.end()) std::erase(found->second, task);
  }
}

void Runtime::dependency_ready(TaskRecord* task) {
  for (Argument& argument : task->arguments) {
    if (argument.ref != nullptr && argument.ref->is_error) {
      if (task->creation) {
        wire::Death cause{wire::DeathKind::kNeverCreated,          0,  0, 0,
                          "an argument of its constructor failed", {}, {}};
        if (argument.ref->value) {
          std::span<const uint8_t> value = argument.ref->value->bytes();
          cause.error_value.assign(reinterpret_cast<const char*>(value.data()), value.size());
        }
        place_actor(task, &cause);
        return;
      }
      // Each result holds by itself what the error holds.
      if (argument.ref->contained)
        for (Entry* entry : task->returns)
          if (entry != nullptr && !entry->ready()) objects_.contain(entry, *argument.ref->contained);
      ActorClient* actor = task->actor;
      fail_task(task, argument.ref->value
                          ? argument.ref->value
                          : lost_object_error(argument.ref->id, "it is an error that was stored"));
      if (actor != nullptr) pump_actor(actor);  // calls may have waited behind it
      return;
    }
  }
  if (task->creation) {
    place_actor(task, nullptr);
  } else if (task->actor != nullptr) {
    pump_actor(task->actor);
  } else {
    enqueue(task);
  }
}

void Runtime::enqueue(TaskRecord* task) {
  task->state = TaskState::kQueued;
  if (task->cancelled) {
    fail_task(task, cancelled_error(task->id, task->spec->name));
    return;
  }
  Shape* shape = shape_of(*task->spec);
  // A task that was taken back or is retried goes first: it is older than what waits.
  if (task->attempt != 0 || task->claim != wire::kNoClaim)
    shape->queue.push_front(task);
  else
    shape->queue.push_back(task);
  hungry_.insert(shape);
  pump(shape);
}

void Runtime::pump(Shape* shape) {
  if (shape->queue.empty()) return;
  for (Lease* lease : shape->leases) {
    if (shape->queue.empty()) break;
    if (!lease->in_flight.empty() || lease->recalled || lease->worker_exits) continue;
    TaskRecord* task = shape->queue.front();
    shape->queue.pop_front();
    push_to_lease(task, lease);
  }
  if (!shape->queue.empty()) {
    update_demand(shape, false);
    // No further lease is to be had, and the tasks are short: let some wait at the workers.
    if (shape->run_ns >= 0 && shape->run_ns < kShortTaskNs && !shape->leases.empty() &&
        now_ns() - shape->demand_changed_ns > kShortageNs) {
      size_t depth =
          std::clamp<size_t>(static_cast<size_t>(kShortTaskNs / (shape->run_ns + 1000)), 1, kInFlightMax);
      bool progress = true;
      for (size_t level = 1; level < depth && progress && !shape->queue.empty(); level += 8) {
        progress = false;
        for (Lease* lease : shape->leases) {
          if (lease->recalled || lease->worker_exits || lease->in_flight.empty()) continue;
          if (lease->worker->link && lease->worker->link->backlog_bytes() != 0) continue;
          while (!shape->queue.empty() && lease->in_flight.size() < std::min(depth, level + 8)) {
            TaskRecord* task = shape->queue.front();
            shape->queue.pop_front();
            push_to_lease(task, lease);
            progress = true;
          }
        }
      }
    }
  }
  if (shape->queue.empty()) {
    hungry_.erase(shape);
    if (shape->demand > shape->leases.size()) update_demand(shape, true);
  }
}

void Runtime::update_demand(Shape* shape, bool exact) {
  uint32_t wanted =
      static_cast<uint32_t>(std::min<size_t>(shape->leases.size() + shape->queue.size(), kDemandMax));
  for (Lease* lease : shape->leases)
    if (lease->in_flight.empty() && wanted > 0 && !shape->queue.empty()) --wanted;
  if (wanted == shape->demand) return;
  int64_t now = now_ns();
  // Growth is told in powers of two, or a millisecond after the last change: a burst is a few messages.
  if (!exact && wanted > shape->demand && wanted < 2 * shape->demand &&
      now - shape->demand_changed_ns < 1'000'000)
    return;
  shape->demand = wanted;
  shape->demand_changed_ns = now;
  wire::LeaseDemand demand{shape->id, shape->description, wanted, shape->queue.size()};
  std::string body = wire::encode(demand);
  send(&daemon_, static_cast<uint16_t>(wire::MessageType::kLeaseDemand), rpc::Urgency::kUrgent,
       {std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size())});
}

void Runtime::lease_granted(const wire::LeaseGrant& grant) {
  auto found = shapes_by_id_.find(grant.shape_id);
  Peer* worker = peer_of(grant.worker);
  if (leases_.contains(grant.lease_id)) return;  // a duplicate
  if (found == shapes_by_id_.end() || worker == nullptr || worker->state == Peer::State::kDead) {
    std::string body = wire::encode(wire::LeaseReturn{grant.lease_id, false, worker != nullptr});
    send(&daemon_, static_cast<uint16_t>(wire::MessageType::kLeaseReturn), rpc::Urgency::kUrgent,
         {std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size())});
    return;
  }
  auto lease = std::make_unique<Lease>();
  lease->id = grant.lease_id;
  lease->shape = found->second;
  lease->worker = worker;
  lease->idle_since_ns = now_ns();
  found->second->leases.push_back(lease.get());
  found->second->demand_changed_ns = lease->idle_since_ns;
  leases_[grant.lease_id] = std::move(lease);
  std::string info = wire::encode(wire::LeaseInfo{found->second->description.resources, grant.instances,
                                                  found->second->description.runtime_env,
                                                  found->second->description.scheduling});
  send(worker, static_cast<uint16_t>(RecordType::kLeaseInfo), rpc::Urgency::kLazy,
       {std::span(reinterpret_cast<const uint8_t*>(info.data()), info.size())});
  pump(found->second);
}

void Runtime::drop_lease(Lease* lease) {
  if (lease->in_flight.size() > 1) --pipelined_;
  Shape* shape = lease->shape;
  std::erase(shape->leases, lease);
  if (shape->demand > 0) --shape->demand;
  leases_.erase(lease->id);
  pump(shape);
}

void Runtime::return_lease(Lease* lease, bool worker_exits) {
  std::string body = wire::encode(wire::LeaseReturn{lease->id, worker_exits, false});
  send(&daemon_, static_cast<uint16_t>(wire::MessageType::kLeaseReturn), rpc::Urgency::kUrgent,
       {std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size())});
  Shape* shape = lease->shape;
  std::erase(shape->leases, lease);
  leases_.erase(lease->id);
  update_demand(shape, true);
  pump(shape);
}

void Runtime::push_to_lease(TaskRecord* task, Lease* lease) {
  Peer* worker = lease->worker;
  uint32_t claim = worker->push_sequence++ & 0x3FFFFFFF;
  task->lease = lease;
  if (lease->in_flight.empty()) lease->progress_ns = now_ns();
  lease->in_flight.push_back(task);
  if (lease->in_flight.size() == 2 && ++pipelined_ == 1)
    mailbox_->poke_service();  // it must watch for overstays
  push(task, worker, claim);
}

void Runtime::encode_arguments(wire::RecordWriter& writer, const TaskRecord& task) const {
  for (const Argument& argument : task.arguments) {
    const Blob* value = argument.value.get();
    bool stored = false;
    if (argument.ref != nullptr) {
      value = argument.ref->value.get();
      stored = argument.ref->state.load(std::memory_order_relaxed) == ObjectState::kStored;
    }
    wire::ArgumentHeader header{};
    header.body_bytes = stored ? sizeof(wire::ObjectRecord) : value->size();
    header.keyword_bytes = static_cast<uint16_t>(argument.keyword.size());
    header.kind = stored ? wire::ArgumentKind::kStored : wire::ArgumentKind::kValue;
    writer.put(header);
    writer.bytes(argument.keyword.data(), header.keyword_bytes);
    writer.align();
    if (stored)
      writer.put(wire::ObjectRecord{argument.ref->id, owner_of(argument.ref)});
    else
      writer.bytes(value->bytes().data(), value->size());
    writer.align();
  }
}

void Runtime::push(TaskRecord* task, Peer* worker, uint32_t claim) {
  const TaskSpec& spec = *task->spec;
  task->state = TaskState::kPushed;
  task->worker = worker;
  task->claim = claim;
  uint32_t number = 0;
  if (spec.function) {
    number = spec.function->number;
    if (worker->knows_function.size() <= number) worker->knows_function.resize(number + 1);
    if (!worker->knows_function[number]) {
      worker->knows_function[number] = true;
      wire::DefineFunction define{spec.function->id, number};
      const std::string& blob = spec.function->blob;
      send(worker, static_cast<uint16_t>(RecordType::kDefineFunction), rpc::Urgency::kTask,
           {std::span(reinterpret_cast<const uint8_t*>(&define), sizeof define),
            std::span(reinterpret_cast<const uint8_t*>(blob.data()), blob.size())});
    }
  }
  if (claim != wire::kNoClaim && worker->link)
    worker->link->own_claim(claim).store(rpc::claim_word(claim, rpc::Claim::kOffered),
                                         std::memory_order_release);

  static thread_local std::string out;
  out.clear();
  wire::RecordWriter writer(out);
  wire::PushTask push{};
  push.token = task->token();
  push.incarnation = task->actor != nullptr ? task->actor->info.incarnation : 0;
  push.task = task->id;
  push.function = number;
  push.claim = worker->link ? claim : wire::kNoClaim;
  push.num_returns = spec.num_returns;
  push.argument_count = static_cast<uint32_t>(task->arguments.size());
  push.max_calls = spec.max_calls;
  push.method_bytes = static_cast<uint16_t>(std::min<size_t>(spec.method.size(), 0xFFFF));
  push.group_bytes = static_cast<uint16_t>(std::min<size_t>(spec.group.size(), 0xFFFF));
  push.name_bytes = static_cast<uint16_t>(std::min<size_t>(spec.name.size(), 0xFFFF));
  push.retry_classes_bytes = static_cast<uint16_t>(std::min<size_t>(spec.retry_classes.size(), 0xFFFF));
  push.attempt = task->attempt;
  push.mode = spec.mode;
  push.retry_exceptions = spec.retry_exceptions;
  writer.put(push);
  if (spec.mode != wire::ReturnMode::kStatic) {
    const Stream& stream = *task->stream;
    writer.put(wire::StreamStart{spec.backpressure, stream.arrived,
                                 stream.abandoned ? wire::kStreamAbandoned : stream.consumed});
  }
  writer.bytes(spec.method.data(), push.method_bytes);
  writer.bytes(spec.group.data(), push.group_bytes);
  writer.bytes(spec.name.data(), push.name_bytes);
  writer.bytes(spec.retry_classes.data(), push.retry_classes_bytes);
  writer.align();
  encode_arguments(writer, *task);
  send(worker, static_cast<uint16_t>(RecordType::kPushTask), rpc::Urgency::kTask,
       {std::span(reinterpret_cast<const uint8_t*>(out.data()), out.size())});
  if (out.capacity() > size_t{1} << 20) out.shrink_to_fit();
}

/// True: the task was not begun and is this process's again.
bool Runtime::take_back(TaskRecord* task) {
  if (task->state != TaskState::kPushed || task->claim == wire::kNoClaim || !task->worker->link) return false;
  uint32_t offered = rpc::claim_word(task->claim, rpc::Claim::kOffered);
  if (!task->worker->link->own_claim(task->claim)
           .compare_exchange_strong(offered, rpc::claim_word(task->claim, rpc::Claim::kTaken),
                                    std::memory_order_acq_rel))
    return false;
  remove_in_flight(task);
  return true;
}

void Runtime::take_back_unbegun(Lease* lease) {
  std::vector<TaskRecord*> tasks = lease->in_flight;
  std::vector<TaskRecord*> mine;
  for (auto task = tasks.rbegin(); task != tasks.rend(); ++task)
    if (take_back(*task)) mine.push_back(*task);
  lease->progress_ns = now_ns();
  // The head overstays: what comes back waits for another worker, not for this one.
  lease->shape->run_ns = std::max(lease->shape->run_ns, kShortTaskNs);
  for (TaskRecord* task : mine) enqueue(task);
}

void Runtime::remove_in_flight(TaskRecord* task) {
  if (Lease* lease = task->lease) {
    size_t before = lease->in_flight.size();
    std::erase(lease->in_flight, task);
    if (before == 2 && lease->in_flight.size() == 1) --pipelined_;
    if (lease->in_flight.empty()) lease->idle_since_ns = now_ns();
    task->lease = nullptr;
  }
  if (task->actor != nullptr) {
    std::deque<TaskRecord*>& calls = task->actor->in_flight;
    if (!calls.empty() && calls.front() == task)
      calls.pop_front();
    else
      std::erase(calls, task);
  }
}

void Runtime::task_done(Peer* from, std::span<const uint8_t> body) {
  wire::RecordReader reader(body);
  auto done = reader.get<wire::TaskDone>();
  reader.align();
  if (!reader.ok()) return;
  TaskRecord* task = task_of(done.token);
  if (task == nullptr || task->state != TaskState::kPushed || task->worker != from) return;
  Lease* lease = task->lease;
  remove_in_flight(task);
  if (lease != nullptr) {
    lease->progress_ns = lease->idle_since_ns == 0 ? 0 : now_ns();
    Shape* shape = lease->shape;
    double run = static_cast<double>(done.run_ns);
    shape->run_ns = shape->run_ns < 0 ? run : shape->run_ns * 0.875 + run * 0.125;
    if (done.worker_exits != 0) {
      lease->worker_exits = true;
      take_back_unbegun(lease);
    }
    complete(task, from, done, reader);
    if (lease->in_flight.empty() && (lease->recalled || lease->worker_exits)) {
      return_lease(lease, lease->worker_exits);
    } else {
      pump(shape);
    }
    return;
  }
  complete(task, from, done, reader);
}

/// Of an attempt that is retried: nobody reads its exception, nor what it made before that.
void Runtime::give_back_results(const TaskRecord& task, Peer* from, const wire::TaskDone& done,
                                wire::RecordReader& reader) {
  std::vector<Entry*> foreign;
  for (uint32_t i = 0; i < done.result_count; ++i) {
    std::optional<ParsedResult> result = parse_result(reader);
    if (!result) break;
    if (result->header.kind == wire::ResultKind::kStored) store_->erase(wire::result_id(task.id, i));
    accept_result(nullptr, *result, from, foreign);
  }
  take_over(foreign, from, done.untaken);
}

void Runtime::complete(TaskRecord* task, Peer* from, const wire::TaskDone& done, wire::RecordReader& reader) {
  if (done.status == wire::TaskStatus::kRaisedRetryable && task->retries_left != 0 && !task->cancelled) {
    if (task->retries_left > 0) --task->retries_left;
    ++task->attempt;
    give_back_results(*task, from, done, reader);
    if (task->actor != nullptr) {
      task->state = TaskState::kQueued;
      task->actor->queue.push_front(task);
      pump_actor(task->actor);
    } else {
      enqueue(task);
    }
    return;
  }
  if (done.status == wire::TaskStatus::kWrongIncarnation) {
    attempt_failed(task, from->death, false);
    return;
  }
  std::vector<Entry*> foreign;
  for (uint32_t i = 0; i < done.result_count; ++i) {
    std::optional<ParsedResult> result = parse_result(reader);
    if (!result) break;
    Entry* entry = i < task->returns.size() ? task->returns[i] : nullptr;
    // An error is the stream's last item as well.
    const bool is_item = task->stream && task->spec->mode == wire::ReturnMode::kStreaming &&
                         result->header.is_error != 0 && !task->stream->ended;
    if (is_item) end_stream(task, task->stream->arrived, Blob::copy(result->value));
    if (entry == nullptr && result->header.kind == wire::ResultKind::kStored)
      store_->erase(wire::result_id(task->id, i));
    accept_result(entry, *result, from, foreign);
    if (is_item && !task->stream->abandoned && entry != nullptr && entry->contained)
      objects_.contain(task->stream->items.back(), *entry->contained);
  }
  if (task->stream && !task->stream->ended) end_stream(task, done.stream_items, nullptr);
  // A worker that sent fewer results than were asked for has a bug or told an error once for all.
  for (uint32_t i = 0; i < task->returns.size(); ++i) {
    Entry* entry = task->returns[i];
    if (entry == nullptr || entry->ready()) continue;
    resolve_inline(entry, lost_object_error(entry->id, "its task ended without this result"), true);
  }
  take_over(foreign, from, done.untaken);
  if (done.holds_refs != 0) {
    task->holding = true;
    task->state = TaskState::kDone;
    return;
  }
  end_task(task);
}

void Runtime::end_task(TaskRecord* task) {
  for (Entry* entry : task->returns)
    if (entry != nullptr) entry->task = nullptr;
  if (task->stream) task->stream->task = nullptr;
  std::vector<Entry*> pinned = std::move(task->pinned);
  std::shared_ptr<Stream> stream = std::move(task->stream);
  if (stream && task->spec->mode == wire::ReturnMode::kDynamic) {
    // The items live on inside the result, if it came.
    for (Entry* entry : stream->items) pinned.push_back(entry);
    pinned.push_back(stream->completed);
    stream->items.clear();
  }
  free_task(task);
  for (Entry* entry : pinned) objects_.unpin(entry);
}

void Runtime::fail_task(TaskRecord* task, BlobPtr error) {
  if (task->stream && task->spec->mode == wire::ReturnMode::kStreaming)
    end_stream(task, task->stream->arrived, error);
  std::vector<Entry*> returns = task->returns;
  for (Entry* entry : returns)
    if (entry != nullptr && !entry->ready()) resolve_inline(entry, error, true);
  if (task->actor != nullptr) {
    std::erase(task->actor->queue, task);
    std::erase(task->actor->orphans, task);
  }
  end_task(task);
}

/// What an attempt stored before its worker died, and did not tell any more: nobody will ever name it, and
/// the next attempt makes it again.
void Runtime::erase_untold(const TaskRecord& task) {
  for (size_t i = 0; i < task.returns.size(); ++i) store_->erase(wire::result_id(task.id, i));
  if (task.stream) store_->erase(wire::item_id(task.id, task.stream->arrived));
}

/// The worker died under it. What was not begun costs no retry.
void Runtime::attempt_failed(TaskRecord* task, const wire::Death& death, bool begun) {
  if (begun) erase_untold(*task);
  if (task->cancelled) {
    fail_task(task, cancelled_error(task->id, task->spec->name));
    return;
  }
  if (begun) {
    if (task->retries_left == 0) {
      fail_task(task, task_error(death, task->spec->name, task->attempt));
      return;
    }
    if (task->retries_left > 0) --task->retries_left;
    ++task->attempt;
  }
  enqueue(task);
}

// --- streams ---------------------------------------------------------------------------------

void Runtime::stream_item(Peer* from, std::span<const uint8_t> body) {
  wire::RecordReader reader(body);
  auto item = reader.get<wire::StreamItem>();
  reader.align();
  std::optional<ParsedResult> result = parse_result(reader);
  TaskRecord* task = task_of(item.token);
  if (!result || task == nullptr || task->worker != from || !task->stream) return;
  Stream& stream = *task->stream;
  std::vector<Entry*> foreign;
  ObjectId id = wire::item_id(task->id, item.index);
  if (item.index < stream.arrived || stream.ended || stream.abandoned) {
    // Made again by a retry, or not wanted any more.
    if (result->header.kind == wire::ResultKind::kStored && stream.abandoned) store_->erase(id);
    if (stream.abandoned) stream.arrived = std::max(stream.arrived, item.index + 1);
    accept_result(nullptr, *result, from, foreign);
    take_over(foreign, from, item.untaken);
    return;
  }
  stream.arrived = item.index + 1;
  Entry* entry = objects_.create(id);
  objects_.pin(entry);
  accept_result(entry, *result, from, foreign);
  take_over(foreign, from, item.untaken);
  stream.items.push_back(entry);
  if (!stream.waiters.empty()) fire(stream.waiters);
}

void Runtime::end_stream(TaskRecord* task, uint64_t total, BlobPtr error) {
  Stream& stream = *task->stream;
  if (stream.ended) return;
  if (error && !stream.abandoned) {
    Entry* entry = objects_.create(wire::item_id(task->id, stream.arrived));
    objects_.pin(entry);
    stream.items.push_back(entry);
    ++stream.arrived;
    resolve_inline(entry, std::move(error), true);
    total = stream.arrived;
  }
  stream.ended = true;
  stream.total = total;
  if (!stream.waiters.empty()) fire(stream.waiters);
}

WaitOutcome Runtime::next_item(Stream& stream, Clock::time_point until, Entry** item) {
  *item = nullptr;
  Waiter waiter;
  {
    std::lock_guard lock(mutex_);
    if (stream.items.empty() && !stream.ended) {
      waiter.remaining = 1;
      stream.waiters.push_back(&waiter);
    } else {
      waiter.done.word.store(1);
    }
  }
  WaitOutcome outcome = block_until(waiter.done, until);
  std::lock_guard lock(mutex_);
  std::erase(stream.waiters, &waiter);
  if (!stream.items.empty()) {
    Entry* entry = stream.items.front();
    stream.items.pop_front();
    ++stream.consumed;
    entry->handles.fetch_add(1, std::memory_order_relaxed);
    objects_.unpin(entry);
    *item = entry;
    if (stream.task != nullptr && stream.task->spec->backpressure >= 0 &&
        stream.task->state == TaskState::kPushed)
      send_flat(stream.task->worker, RecordType::kStreamCredit, rpc::Urgency::kUrgent,
                wire::StreamCredit{stream.task->token(), stream.consumed});
    flush();
    return WaitOutcome::kReady;
  }
  if (stream.ended) return WaitOutcome::kReady;
  return outcome == WaitOutcome::kReady ? WaitOutcome::kInterrupted : outcome;
}

Runtime::StreamState Runtime::stream_state(Stream& stream) {
  std::lock_guard lock(mutex_);
  if (!stream.items.empty()) return StreamState::kItem;
  return stream.ended ? StreamState::kEnded : StreamState::kWaiting;
}

void Runtime::abandon_stream(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(mutex_);
  if (stream->abandoned) return;
  stream->abandoned = true;
  for (Entry* entry : stream->items) objects_.unpin(entry);
  stream->items.clear();
  if (stream->task != nullptr && stream->task->state == TaskState::kPushed)
    send_flat(stream->task->worker, RecordType::kStreamCredit, rpc::Urgency::kUrgent,
              wire::StreamCredit{stream->task->token(), wire::kStreamAbandoned});
  objects_.unpin(stream->completed);
  flush();
}

// --- cancelling ------------------------------------------------------------------------------

void Runtime::cancel(Entry* entry, bool force, bool recursive) {
  std::lock_guard lock(mutex_);
  if (entry->task != nullptr)
    cancel_task(entry->task, force, recursive);
  else if (entry->owner != nullptr && !entry->ready())
    send_flat(entry->owner, RecordType::kCancelObject, rpc::Urgency::kUrgent,
              wire::CancelObject{entry->id, force, recursive, {}});
  flush();
}

void Runtime::cancel_task(TaskRecord* task, bool force, bool recursive) {
  if (task->state == TaskState::kDone) return;
  task->cancelled = true;
  switch (task->state) {
    case TaskState::kWaiting:
      unlink_dependencies(task);
      fail_task(task, cancelled_error(task->id, task->spec->name));
      return;
    case TaskState::kQueued: {
      ActorClient* actor = task->actor;
      if (actor == nullptr)
        std::erase(shape_of(*task->spec)->queue, task);
      else
        unlink_dependencies(task);
      fail_task(task, cancelled_error(task->id, task->spec->name));
      if (actor != nullptr) pump_actor(actor);  // calls may have waited behind it
      return;
    }
    case TaskState::kPushed:
      if (take_back(task)) {
        fail_task(task, cancelled_error(task->id, task->spec->name));
        return;
      }
      send_flat(task->worker, RecordType::kCancelTask, rpc::Urgency::kUrgent,
                wire::CancelTask{task->token(), task->id, recursive, {}});
      if (force && task->actor == nullptr) {
        std::string body =
            wire::encode(wire::KillWorker{task->worker->address, true, "cancelled with force=True"});
        send(&daemon_, static_cast<uint16_t>(wire::MessageType::kKillWorker), rpc::Urgency::kUrgent,
             {std::span(reinterpret_cast<const uint8_t*>(body.data()), body.size())});
      }
      return;
    case TaskState::kDone: return;
  }
}

void Runtime::cancel_children(const TaskId& parent, bool force) {
  std::lock_guard lock(mutex_);
  for (TaskRecord& task : tasks_)
    if (task.spec && task.parent == parent && task.state != TaskState::kDone) cancel_task(&task, force, true);
  flush();
}

}  // namespace skate::worker
