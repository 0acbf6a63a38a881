// Running what others push here: the worker's side of tasks and actor calls.
#include <unistd.h>

#include <algorithm>

#include "wire/archive.h"
#include "worker/runtime.h"
#include "worker/values.h"

namespace skate::worker {

using wire::RecordType;

namespace {
int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

void poke_event_fd(int fd) {
  if (fd < 0) return;
  uint64_t one = 1;
  [[maybe_unused]] ssize_t n = write(fd, &one, sizeof one);
}
}  // namespace

bool Runtime::parse_arguments(IncomingTask& task, wire::RecordReader& reader, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    auto header = reader.get<wire::ArgumentHeader>();
    std::span<const uint8_t> keyword = reader.bytes(header.keyword_bytes);
    reader.align();
    std::span<const uint8_t> body = reader.bytes(header.body_bytes);
    reader.align();
    if (!reader.ok()) return false;
    IncomingTask::Arg argument;
    argument.keyword = {reinterpret_cast<const char*>(keyword.data()), keyword.size()};
    if (header.kind == wire::ArgumentKind::kValue) {
      argument.value = body;
    } else {
      if (body.size() != sizeof(wire::ObjectRecord)) return false;
      wire::ObjectRecord record;
      std::memcpy(&record, body.data(), sizeof record);
      Entry* entry = objects_.intern(record.object, peer_of(record.owner));
      if (entry == nullptr) return false;
      objects_.pin(entry);
      if (entry->owner != nullptr && entry->grants_in == 0) {
        // What it contains is safe only as long as it is: the submitter's pin must last until we are known.
        objects_.pin(entry);
        task.borrowed.push_back(entry);
      }
      if (!entry->ready()) entry->state.store(ObjectState::kStored, std::memory_order_release);
      argument.stored = entry;
    }
    task.arguments.push_back(argument);
  }
  return true;
}

void Runtime::accept_task(Peer* from, std::span<const uint8_t> body) {
  auto task = std::make_shared<IncomingTask>();
  task->from = from;
  task->record = Blob::copy(body);
  wire::RecordReader reader(task->record->bytes());
  task->header = reader.get<wire::PushTask>();
  if (task->header.mode != wire::ReturnMode::kStatic) {
    task->stream = reader.get<wire::StreamStart>();
    task->stream_consumed.store(task->stream.consumed);
  }
  task->method = reader.text(task->header.method_bytes);
  task->group = reader.text(task->header.group_bytes);
  task->name = reader.text(task->header.name_bytes);
  task->retry_classes = reader.text(task->header.retry_classes_bytes);
  reader.align();
  const wire::PushTask& header = task->header;
  if (!reader.ok()) return;
  bool actor_call = task->header.task.actor() != ActorId{};
  if (actor_call && header.incarnation != actor_incarnation_) {
    wire::TaskDone done{};
    done.token = header.token;
    done.status = wire::TaskStatus::kWrongIncarnation;
    send_flat(from, RecordType::kTaskDone, rpc::Urgency::kTask, done);
    return;
  }
  if (!actor_call) {
    if (header.function >= from->functions.size() || !from->functions[header.function]) return;
    task->function = from->functions[header.function];
    task->lease = from->lease;
  }
  if (!parse_arguments(*task, reader, header.argument_count)) {
    forget_task(*task);
    return;
  }
  if (!keep_groups_.load() && !run_queues_.contains(task->group)) task->group.clear();
  std::string group = keep_groups_.load() ? "" : task->group;
  run_queues_[group].push_back(std::move(task));
  run_ready_[group].notify_one();
  poke_event_fd(event_fd_);
  if (!actor_call && blocked_threads_.load() != 0) {
    // The task that runs here waits for others: nothing may wait behind it.
    std::deque<std::shared_ptr<IncomingTask>>& queue = run_queues_[group];
    std::shared_ptr<IncomingTask> last = queue.back();
    if (begin(*last)) {
      queue.pop_back();
      send_flat(from, RecordType::kTaskReturned, rpc::Urgency::kUrgent,
                wire::TaskReturned{last->header.token});
      forget_task(*last);
    }
  }
}

/// Claims the task; false: its owner took it back.
bool Runtime::begin(IncomingTask& task) {
  if (task.create || task.header.claim == wire::kNoClaim || task.from == nullptr || !task.from->link)
    return true;
  uint32_t offered = rpc::claim_word(task.header.claim, rpc::Claim::kOffered);
  return task.from->link->peer_claim(task.header.claim)
      .compare_exchange_strong(offered, rpc::claim_word(task.header.claim, rpc::Claim::kBegun),
                               std::memory_order_acq_rel);
}

void Runtime::give_back_unbegun() {
  std::lock_guard lock(mutex_);
  std::deque<std::shared_ptr<IncomingTask>>& queue = run_queues_[""];
  std::deque<std::shared_ptr<IncomingTask>> kept;
  for (std::shared_ptr<IncomingTask>& task : queue) {
    if (task->create || task->header.claim == wire::kNoClaim) {
      kept.push_back(task);
    } else if (begin(*task)) {
      send_flat(task->from, RecordType::kTaskReturned, rpc::Urgency::kUrgent,
                wire::TaskReturned{task->header.token});
      forget_task(*task);
    } else {
      forget_task(*task);
    }
  }
  queue.swap(kept);
  flush();
}

void Runtime::release_arguments(IncomingTask& task) {
  for (IncomingTask::Arg& argument : task.arguments)
    if (argument.stored != nullptr) objects_.unpin(argument.stored);
  task.arguments.clear();
}

/// For a task that is not run: nothing of it was kept.
void Runtime::forget_task(IncomingTask& task) {
  release_arguments(task);
  for (Entry* entry : task.borrowed) objects_.unpin(entry);
  task.borrowed.clear();
}

std::shared_ptr<IncomingTask> Runtime::pop_task(const std::string& group) {
  std::deque<std::shared_ptr<IncomingTask>>& queue = run_queues_[group];
  while (!queue.empty()) {
    std::shared_ptr<IncomingTask> task = std::move(queue.front());
    queue.pop_front();
    if (!begin(*task)) {
      forget_task(*task);
      continue;
    }
    task->begun = true;
    task->begun_ns = now_ns();
    if (!task->create) {
      if (task->from->state == Peer::State::kDead) {
        forget_task(*task);
        continue;
      }
      running_[{task->from, task->header.token}] = task;
      if (task->function) mailbox_->slot().work_us.store(task->begun_ns / 1000, std::memory_order_relaxed);
    }
    return task;
  }
  return nullptr;
}

std::shared_ptr<IncomingTask> Runtime::next_task(const std::string& group, bool reads) {
  if (!reads) {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (std::shared_ptr<IncomingTask> task = pop_task(group)) return task;
      if (exiting_.load() || stopping_.load()) return nullptr;
      run_ready_[group].wait(lock);
    }
  }
  for (;;) {
    {
      std::lock_guard lock(mutex_);
      if (std::shared_ptr<IncomingTask> task = pop_task(group)) return task;
      if (exiting_.load() || stopping_.load()) return nullptr;
    }
    auto has_work = [&] {
      std::lock_guard lock(mutex_);
      return !run_queues_[group].empty() || exiting_.load() || stopping_.load();
    };
    if (mailbox_->try_enter()) {
      do {
        while (!has_work()) {
          if (read_links() != 0) continue;
          if (mailbox_->spin(Clock::time_point::max())) continue;
          mailbox_->sleep_as_reader(Clock::now() + std::chrono::hours(1));
        }
        read_links();
      } while (mailbox_->leave() && mailbox_->try_enter());
    } else {
      std::unique_lock lock(mutex_);
      run_ready_[group].wait_for(lock, std::chrono::milliseconds(1), [&] {
        return !run_queues_[group].empty() || exiting_.load() || stopping_.load();
      });
    }
  }
}

std::vector<std::shared_ptr<IncomingTask>> Runtime::take_tasks() {
  std::vector<std::shared_ptr<IncomingTask>> out;
  std::lock_guard lock(mutex_);
  for (auto& [group, queue] : run_queues_) {
    while (std::shared_ptr<IncomingTask> task = pop_task(group)) out.push_back(std::move(task));
  }
  return out;
}

void Runtime::set_event_fd(int fd) {
  std::lock_guard lock(mutex_);
  event_fd_ = fd;
  poke_event_fd(fd);
}

void Runtime::serve_group(const std::string& group) {
  std::lock_guard lock(mutex_);
  run_queues_[group];
  run_ready_[group];
}

/// Refs of the arguments that are still held go on the owners' books. True: the submitter must keep its pins.
bool Runtime::register_leftovers(IncomingTask& task) {
  if (task.borrowed.empty()) return false;
  std::vector<Entry*> borrowed;
  borrowed.swap(task.borrowed);
  std::vector<Entry*> kept;
  for (Entry* entry : borrowed) {
    if (entry->handles.load() == 0 && entry->pins == 1)
      objects_.unpin(entry);
    else
      kept.push_back(entry);
  }
  if (kept.empty()) return false;
  bool met = objects_.register_then(kept, task.from,
                                    {Obligation::Kind::kPinsReleased, task.from, task.header.token, {}});
  for (Entry* entry : kept) objects_.unpin(entry);
  return !met;
}

/// A result that nobody waits for here. Its owner may have died, and the daemon have given it to others.
void Runtime::abandon_stored(const ObjectId& id) {
  send_daemon(wire::MessageType::kEraseObjects, wire::EraseObjects{{id}});
}

/// The number under which refs in this value are to be held, new if `number` is 0; else `number`. Those of a
/// third process are held: `to` must first be on its books.
uint64_t Runtime::number_untaken(const OutgoingValue& value, const Peer* to, uint64_t number) {
  for (const Entry* entry : value.contained)
    if (number == 0 && entry->owner != nullptr && entry->owner != to) number = ++untaken_number_;
  return number;
}

void Runtime::export_contained(const std::vector<Entry*>& contained, Peer* to, uint64_t untaken) {
  for (Entry* entry : contained) {
    if (entry->owner == nullptr) {
      objects_.grant(entry, to, 1);
      objects_.unpin(entry);
    } else if (entry->owner == to) {
      // Its owner finds its own object in the result; our hold lasts until the result was read, since the
      // messages to it keep their order.
      objects_.unpin(entry);
    } else {
      untaken_results_[{to, untaken}].push_back(entry);
    }
  }
}

void Runtime::finish(const std::shared_ptr<IncomingTask>& task, wire::TaskStatus status,
                     std::vector<OutgoingValue> results, bool worker_exits) {
  std::lock_guard lock(mutex_);
  running_.erase({task->from, task->header.token});
  answer(*task, status, std::move(results), worker_exits);
  flush();
}

void Runtime::answer(IncomingTask& task, wire::TaskStatus status, std::vector<OutgoingValue> results,
                     bool worker_exits) {
  static thread_local std::string out;
  out.clear();
  wire::TaskDone done{};
  done.token = task.header.token;
  if (task.begun) {
    const int64_t ended_ns = now_ns();
    done.run_ns = static_cast<uint64_t>(std::max<int64_t>(0, ended_ns - task.begun_ns));
    // Before the result is told: who has it may ask for this lease's room at once.
    if (task.function) mailbox_->slot().work_us.store(-(ended_ns / 1000), std::memory_order_relaxed);
  }
  done.stream_items = task.stream_items;
  done.result_count = static_cast<uint32_t>(results.size());
  done.status = status;
  done.worker_exits = worker_exits;
  release_arguments(task);
  done.holds_refs = register_leftovers(task);
  for (const OutgoingValue& value : results) done.untaken = number_untaken(value, task.from, done.untaken);
  wire::RecordWriter writer(out);
  writer.put(done);
  writer.align();
  for (const OutgoingValue& value : results) {
    encode_result(out, value);
    writer.align();
    if (value.inline_value) {
      writer.bytes(value.inline_value->data(), value.inline_value->size());
      writer.align();
    }
  }
  if (task.from->state != Peer::State::kDead) {
    for (const OutgoingValue& value : results) export_contained(value.contained, task.from, done.untaken);
    send(task.from, static_cast<uint16_t>(RecordType::kTaskDone), rpc::Urgency::kTask,
         {std::span(reinterpret_cast<const uint8_t*>(out.data()), out.size())});
  } else {
    for (size_t i = 0; i < results.size(); ++i) {
      for (Entry* entry : results[i].contained) objects_.unpin(entry);
      if (!results[i].inline_value) abandon_stored(wire::result_id(task.header.task, i));
    }
  }
  if (out.capacity() > size_t{1} << 20) out.shrink_to_fit();
}

void Runtime::finish_actor_creation(const std::shared_ptr<IncomingTask>& task, bool ok, BlobPtr error) {
  wire::ActorCreated created{task->create->spec.actor, task->create->incarnation, ok, {}};
  if (error) {
    std::span<const uint8_t> bytes = error->bytes();
    created.error_value.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  std::lock_guard lock(mutex_);
  // What the constructor keeps of its arguments' refs. The creator holds them as long as both live; beyond
  // that its heir must know who needs them.
  for (Entry* entry : task->borrowed) {
    if (entry->handles.load() != 0 || entry->pins > 1) objects_.claim(entry);
    objects_.unpin(entry);
  }
  task->borrowed.clear();
  send_daemon_body(static_cast<uint16_t>(wire::MessageType::kActorCreated), wire::encode(created));
  forget_task(*task);
  flush();
}

ObjectId Runtime::item_id(const IncomingTask& task) const {
  return wire::item_id(task.header.task, task.stream_items);
}

bool Runtime::may_send_item(const IncomingTask& task) const {
  if (task.stream.backpressure < 0) return true;
  uint64_t consumed = task.stream_consumed.load(std::memory_order_acquire);
  if (consumed == wire::kStreamAbandoned) return true;
  return task.stream_items <
         std::max(task.stream.arrived, consumed + static_cast<uint64_t>(task.stream.backpressure));
}

bool Runtime::skip_item(IncomingTask& task) const {
  if (task.stream_items >= task.stream.arrived || task.stream_consumed.load() == wire::kStreamAbandoned)
    return false;
  ++task.stream_items;
  return true;
}

WaitOutcome Runtime::wait_for_credit(const std::shared_ptr<IncomingTask>& task) {
  uint32_t ticket = credit_word_.load(std::memory_order_seq_cst);
  if (may_send_item(*task) || task->cancelled.load() || exiting_.load()) return WaitOutcome::kReady;
  rpc::futex_sleep(credit_word_, ticket, std::chrono::milliseconds(200));
  return may_send_item(*task) || task->cancelled.load() ? WaitOutcome::kReady : WaitOutcome::kInterrupted;
}

bool Runtime::send_item(const std::shared_ptr<IncomingTask>& task, OutgoingValue value) {
  std::string out;
  wire::RecordWriter writer(out);
  std::lock_guard lock(mutex_);
  if (task->stream_consumed.load() == wire::kStreamAbandoned || task->from->state == Peer::State::kDead) {
    for (Entry* entry : value.contained) objects_.unpin(entry);
    if (!value.inline_value) abandon_stored(item_id(*task));
    return false;
  }
  const uint64_t untaken = number_untaken(value, task->from, 0);
  writer.put(wire::StreamItem{task->header.token, task->stream_items, untaken});
  writer.align();
  encode_result(out, value);
  writer.align();
  if (value.inline_value) {
    writer.bytes(value.inline_value->data(), value.inline_value->size());
    writer.align();
  }
  export_contained(value.contained, task->from, untaken);
  send(task->from, static_cast<uint16_t>(RecordType::kStreamItem), rpc::Urgency::kTask,
       {std::span(reinterpret_cast<const uint8_t*>(out.data()), out.size())});
  ++task->stream_items;
  flush();
  return true;
}

void Runtime::on_cancel(std::function<void(const std::shared_ptr<IncomingTask>&, bool)> handler) {
  std::lock_guard lock(mutex_);
  cancel_handler_ = std::move(handler);
}

void Runtime::cancel_incoming(Peer* from, std::span<const uint8_t> body) {
  wire::RecordReader reader(body);
  auto cancel = reader.get<wire::CancelTask>();
  if (!reader.ok()) return;
  auto found = running_.find({from, cancel.token});
  if (found != running_.end()) {
    found->second->cancelled.store(true);
    cancels_due_.emplace_back(found->second, cancel.recursive != 0);
    credit_word_.fetch_add(1);
    rpc::futex_wake_all(credit_word_);
    return;
  }
  for (auto& [group, queue] : run_queues_) {
    for (auto at = queue.begin(); at != queue.end(); ++at) {
      std::shared_ptr<IncomingTask> task = *at;
      if (task->from != from || task->header.token != cancel.token) continue;
      task->cancelled.store(true);
      if (task->header.claim != wire::kNoClaim) return;
      // A call of an actor, and not begun: nobody need wait for the calls before it to hear so.
      queue.erase(at);
      OutgoingValue error;
      error.inline_value = cancelled_error(task->header.task, task->name);
      error.size_bytes = error.inline_value->size();
      error.is_error = true;
      size_t count = task->header.mode == wire::ReturnMode::kStatic ? task->header.num_returns : 1;
      answer(*task, wire::TaskStatus::kCancelled, std::vector<OutgoingValue>(count, error), false);
      return;
    }
  }
}

void Runtime::report_ready(std::string failure) {
  std::lock_guard lock(mutex_);
  send_daemon(wire::MessageType::kWorkerReady, wire::WorkerReady{std::move(failure)});
  flush();
}

void Runtime::begin_exit(wire::Death reason) {
  exit_reason_ = std::move(reason);
  exiting_.store(true, std::memory_order_release);
  for (auto& [group, ready] : run_ready_) ready.notify_all();
  credit_word_.fetch_add(1);
  rpc::futex_wake_all(credit_word_);
  leaving_changed_.notify_all();
  poke_event_fd(event_fd_);
  // The thread that reads may sleep until a link is marked.
  rpc::ring(mailbox_->bell(), welcome_.daemon_link, rpc::Urgency::kUrgent, -1);
}

void Runtime::request_exit(wire::Death reason) {
  std::lock_guard lock(mutex_);
  begin_exit(std::move(reason));
}

wire::Death Runtime::exit_reason() {
  std::lock_guard lock(mutex_);
  return exit_reason_;
}

void Runtime::set_source(std::string_view name) {
  char* source = mailbox_->slot().source;
  size_t size = std::min<size_t>(name.size(), sizeof(rpc::ProcessSlot::source) - 1);
  std::memcpy(source, name.data(), size);
  source[size] = '\0';
}

}  // namespace skate::worker
