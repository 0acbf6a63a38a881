// Waiting for objects, and their values on the way in and out.
#include <algorithm>

#include "wire/archive.h"
#include "worker/runtime.h"
#include "worker/values.h"

namespace skate::worker {

using wire::RecordType;

namespace {
// A signal that comes between the program's look at its flags and the futex call is seen after this long.
constexpr std::chrono::milliseconds kSleepMax{200};
}  // namespace

WaitOutcome Runtime::block_until(WaitWord& word, Clock::time_point until) {
  if (word.is_set()) return WaitOutcome::kReady;
  WaitOutcome outcome = WaitOutcome::kReady;
  bool lent = false;
  mailbox_->begin_active();
  while (!word.is_set()) {
    if (stopping_.load(std::memory_order_acquire)) {
      outcome = WaitOutcome::kInterrupted;
      break;
    }
    Clock::time_point now = Clock::now();
    if (now >= until) {
      outcome = WaitOutcome::kTimeout;
      break;
    }
    Clock::time_point wake = std::min(until, now + kSleepMax);
    bool slept = false;
    if (mailbox_->try_enter()) {
      while (!word.is_set() && !slept) {
        if (read_links() != 0 || word.is_set()) continue;
        if (mailbox_->spin(wake)) continue;
        if (!lent && is_worker_) {
          lent = true;
          lend_cpu();
        }
        mailbox_->sleep_as_reader(wake);
        slept = true;
      }
      if (slept) read_links();
      while (mailbox_->leave() && mailbox_->try_enter()) read_links();
    } else {
      // Another thread reads the links, and wakes this one.
      if (!lent && is_worker_) {
        lent = true;
        lend_cpu();
      }
      word.sleeping.store(1, std::memory_order_seq_cst);
      if (!word.is_set()) {
        mailbox_->end_active();
        // The reader may leave at any time, so this wait is short: then it takes the reading over.
        rpc::futex_sleep(word.word, 0, std::min<Clock::duration>(wake - now, std::chrono::milliseconds(20)));
        mailbox_->begin_active();
      }
      word.sleeping.store(0, std::memory_order_seq_cst);
      slept = true;
    }
    if (slept && !word.is_set() && Clock::now() < until) {
      outcome = WaitOutcome::kInterrupted;  // let the program look at its signals
      break;
    }
  }
  mailbox_->end_active();
  if (lent) take_cpu_back();
  return word.is_set() ? WaitOutcome::kReady : outcome;
}

void Runtime::lend_cpu() {
  give_back_unbegun();
  if (blocked_threads_.fetch_add(1) + 1 < max_concurrency_) return;
  mailbox_->slot().blocked.store(1, std::memory_order_seq_cst);
  if (segment_->node().cpus_wanted.load(std::memory_order_seq_cst) != 0) {
    std::lock_guard lock(mutex_);
    send(&daemon_, static_cast<uint16_t>(wire::MessageType::kWake), rpc::Urgency::kUrgent, {});
    flush();
  }
}

void Runtime::take_cpu_back() {
  blocked_threads_.fetch_sub(1);
  if (mailbox_->slot().blocked.exchange(0, std::memory_order_seq_cst) != 0 &&
      segment_->node().cpus_wanted.load(std::memory_order_seq_cst) != 0) {
    std::lock_guard lock(mutex_);
    send(&daemon_, static_cast<uint16_t>(wire::MessageType::kWake), rpc::Urgency::kUrgent, {});
    flush();
  }
}

WaitOutcome Runtime::wait(std::span<Entry* const> entries, size_t count, Clock::time_point until) {
  size_t ready = 0;
  for (Entry* entry : entries) {
    if (entry->ready() && ++ready >= count) return WaitOutcome::kReady;
  }
  // A few of many: to hang a waiter on each object would cost more than to look at all of them once more.
  constexpr size_t kManyObjects = 64;
  if (entries.size() > kManyObjects && count < entries.size() / 2) return wait_for_few(entries, count, until);
  return wait_on_each(entries, count, until, false);
}

WaitOutcome Runtime::wait_for_all(std::span<Entry* const> entries, Clock::time_point until) {
  return wait_on_each(entries, entries.size(), until, true);
}

WaitOutcome Runtime::wait_on_each(std::span<Entry* const> entries, size_t count, Clock::time_point until,
                                  bool until_error) {
  Waiter waiter;
  std::vector<Entry*> attached;
  {
    std::lock_guard lock(mutex_);
    size_t ready = 0;
    for (Entry* entry : entries) {
      if (!entry->ready()) continue;
      if (++ready >= count || (until_error && entry->is_error)) return WaitOutcome::kReady;
    }
    waiter.remaining = static_cast<uint32_t>(count - ready);
    waiter.until_error = until_error;
    for (Entry* entry : entries) {
      if (entry->ready()) continue;
      request_value(entry);
      entry->waiters.push_back(&waiter);
      attached.push_back(entry);
    }
    flush();
  }
  WaitOutcome outcome = block_until(waiter.done, until);
  std::lock_guard lock(mutex_);
  for (Entry* entry : attached) {
    if (entry->waiters.empty()) continue;
    std::erase(entry->waiters, &waiter);
  }
  return waiter.done.is_set() ? WaitOutcome::kReady : outcome;
}

WaitOutcome Runtime::wait_for_few(std::span<Entry* const> entries, size_t count, Clock::time_point until) {
  for (;;) {
    Waiter waiter;
    {
      std::lock_guard lock(mutex_);
      size_t ready = 0;
      for (Entry* entry : entries) {
        if (entry->ready()) {
          if (++ready >= count) return WaitOutcome::kReady;
        } else if (entry->owner != nullptr) {
          request_value(entry);
        }
      }
      waiter.remaining = static_cast<uint32_t>(count - ready);
      any_waiters_.push_back(&waiter);
      flush();
    }
    WaitOutcome outcome = block_until(waiter.done, until);
    {
      std::lock_guard lock(mutex_);
      std::erase(any_waiters_, &waiter);
    }
    if (outcome != WaitOutcome::kReady) return outcome;
  }
}

void Runtime::fire(std::vector<Waiter*>& waiters, bool is_error) {
  for (Waiter* waiter : waiters) {
    if (is_error && waiter->until_error && waiter->remaining != 0) waiter->remaining = 1;
    if (waiter->remaining == 0 || --waiter->remaining != 0) continue;
    if (waiter->cookie != 0) {
      callbacks_.push_back(waiter->cookie);
      callbacks_ready_.notify_one();
      delete waiter;
    } else {
      waiter->done.set();
    }
  }
  waiters.clear();
}

void Runtime::notify_when_ready(Entry* entry, uint64_t cookie) {
  std::lock_guard lock(mutex_);
  if (entry->ready()) {
    callbacks_.push_back(cookie);
    callbacks_ready_.notify_one();
    return;
  }
  request_value(entry);
  auto* waiter = new Waiter();  // deleted by fire
  waiter->remaining = 1;
  waiter->cookie = cookie;
  entry->waiters.push_back(waiter);
  flush();
}

void Runtime::notify_when_item(Stream& stream, uint64_t cookie) {
  std::lock_guard lock(mutex_);
  if (!stream.items.empty() || stream.ended) {
    callbacks_.push_back(cookie);
    callbacks_ready_.notify_one();
    return;
  }
  auto* waiter = new Waiter();
  waiter->remaining = 1;
  waiter->cookie = cookie;
  stream.waiters.push_back(waiter);
}

void Runtime::request_value(Entry* entry) {
  if (entry->owner == nullptr || entry->asked) return;
  entry->asked = true;
  if (entry->owner->state == Peer::State::kDead) return objects_.claim(entry);  // the answer says where it is
  send_flat(entry->owner, RecordType::kGetObject, rpc::Urgency::kUrgent, wire::GetObject{entry->id});
}

void Runtime::resolve_inline(Entry* entry, BlobPtr value, bool is_error) {
  entry->size_bytes = value->size();
  entry->value = std::move(value);
  entry->is_error = is_error;
  entry->state.store(ObjectState::kInline, std::memory_order_release);
  resolved(entry);
}

void Runtime::resolved(Entry* entry) {
  if (!entry->waiters.empty()) fire(entry->waiters, entry->is_error);
  for (Waiter* waiter : any_waiters_)
    if (waiter->remaining != 0 && --waiter->remaining == 0) waiter->done.set();
  if (entry->remote_waiters) {
    std::unique_ptr<std::vector<Peer*>> remote = std::move(entry->remote_waiters);
    for (Peer* peer : *remote) answer_get(peer, entry);
  }
  if (dependents_.empty()) return;
  auto found = dependents_.find(entry->id);
  if (found == dependents_.end()) return;
  std::vector<TaskRecord*> tasks = std::move(found->second);
  dependents_.erase(found);
  for (TaskRecord* task : tasks)
    if (--task->dependencies == 0) dependency_ready(task);
}

std::optional<Runtime::ParsedResult> Runtime::parse_result(wire::RecordReader& reader) {
  ParsedResult result;
  result.header = reader.get<wire::ResultHeader>();
  for (uint32_t i = 0; reader.ok() && i < result.header.contained_count; ++i)
    result.contained.push_back(reader.get<wire::ObjectRecord>());
  reader.align();
  if (result.header.kind == wire::ResultKind::kInline) {
    result.value = reader.bytes(result.header.value_bytes);
    reader.align();
  }
  if (!reader.ok()) return std::nullopt;
  return result;
}

void Runtime::encode_result(std::string& out, const OutgoingValue& value) const {
  wire::RecordWriter writer(out);
  wire::ResultHeader header{};
  header.value_bytes = value.size_bytes;
  header.contained_count = static_cast<uint32_t>(value.contained.size());
  header.kind = value.inline_value ? wire::ResultKind::kInline : wire::ResultKind::kStored;
  header.is_error = value.is_error;
  writer.put(header);
  for (const Entry* entry : value.contained) writer.put(wire::ObjectRecord{entry->id, owner_of(entry)});
}

/// `entry` may be null: the object is no longer wanted, but what came with it must be given back. `foreign`
/// grows by what this process keeps and neither it nor `from` owns: that wants registering.
void Runtime::accept_result(Entry* entry, const ParsedResult& result, Peer* from,
                            std::vector<Entry*>& foreign) {
  std::vector<Entry*> inner;
  for (const wire::ObjectRecord& record : result.contained) {
    Peer* owner = peer_of(record.owner);
    Entry* found = objects_.intern(record.object, owner);
    if (found == nullptr) continue;  // ours, and gone: the sender held it without a grant
    objects_.pin(found);
    if (owner == from && from != nullptr) objects_.received_grant(found, 1);
    inner.push_back(found);
    if (entry != nullptr && owner != nullptr && owner != from) foreign.push_back(found);
  }
  if (entry != nullptr) objects_.contain(entry, inner);
  if (from == &self_)
    for (Entry* found : inner)
      if (found->owner == nullptr) objects_.take_back(found->id, from, 1);
  for (Entry* found : inner) objects_.unpin(found);
  if (entry == nullptr) return;
  entry->size_bytes = result.header.value_bytes;
  entry->is_error = result.header.is_error != 0;
  if (result.header.kind == wire::ResultKind::kInline) {
    resolve_inline(entry, Blob::copy(result.value), entry->is_error);
  } else {
    entry->in_local_store = entry->owner == nullptr;
    entry->state.store(ObjectState::kStored, std::memory_order_release);
    resolved(entry);
  }
}

/// The sender of results holds the refs in them under a number until their owners know that this process
/// does.
void Runtime::take_over(const std::vector<Entry*>& foreign, Peer* from, uint64_t untaken) {
  if (untaken == 0) return;
  if (objects_.register_then(foreign, from, {Obligation::Kind::kResultsTaken, from, untaken, {}}))
    results_taken(from, untaken);
}

void Runtime::answer_get(Peer* to, Entry* entry) {
  if (to->state == Peer::State::kDead) return;  // grants would never come back
  std::string out;
  wire::RecordWriter writer(out);
  bool is_inline = entry->state.load() == ObjectState::kInline;
  writer.put(
      wire::ObjectValue{entry->id, is_inline ? wire::ValueStatus::kInline : wire::ValueStatus::kStored, {}});
  writer.align();
  OutgoingValue value;
  value.inline_value = entry->value;
  value.size_bytes = entry->size_bytes;
  value.is_error = entry->is_error;
  if (entry->contained) value.contained = *entry->contained;
  std::string result;
  encode_result(result, value);
  out += result;
  writer.align();
  if (is_inline) {
    writer.bytes(entry->value->data(), entry->value->size());
    writer.align();
  }
  if (entry->contained)
    for (Entry* inner : *entry->contained)
      if (inner->owner == nullptr) objects_.grant(inner, to, 1);
  send(to, static_cast<uint16_t>(RecordType::kObjectValue), rpc::Urgency::kUrgent,
       {std::span(reinterpret_cast<const uint8_t*>(out.data()), out.size())});
}

Result<ReadyValue> Runtime::read(Entry* entry, Clock::time_point until) {
  for (int attempt = 0;; ++attempt) {
    {
      std::lock_guard lock(mutex_);
      if (entry->state.load() == ObjectState::kInline) return ReadyValue{entry->value, nullptr};
    }
    if (std::optional<store::View> view = store_->get(entry->id))
      return ReadyValue{nullptr, std::make_shared<store::View>(std::move(*view))};
    store::ObjectState state = store_->info(entry->id).state;
    if (state == store::ObjectState::kSealed) continue;  // it was restored in between
    if (state != store::ObjectState::kSpilled || attempt >= 8)
      return ReadyValue{lost_object_error(entry->id, "its copy in the object store is gone"), nullptr};
    StoreReply reply;
    std::unique_lock lock(mutex_);
    uint64_t id = next_call_++;
    store_calls_[id] = &reply;
    send_daemon(wire::MessageType::kRestoreObjects, wire::RestoreObjects{id, {entry->id}});
    flush();
    bool done = true;
    if (until == Clock::time_point::max())
      replies_.wait(lock, [&] { return reply.done || stopping_.load(); });
    else
      done = replies_.wait_until(lock, until, [&] { return reply.done || stopping_.load(); });
    store_calls_.erase(id);
    if (done && !reply.done) return Error{ErrorCode::kCancelled, "the runtime has stopped"};
    if (!done) return Error{ErrorCode::kTimeout, "the object is still being restored from disk"};
    if (!reply.ok)
      return ReadyValue{lost_object_error(entry->id, "it could not be restored from disk: " + reply.message),
                        nullptr};
  }
}

Result<store::Writable> Runtime::create_stored(const ObjectId& id, uint64_t size) {
  Result<store::Writable> made = store_->create(id, size);
  for (int attempt = 0; !made.ok() && made.error().code == ErrorCode::kFull && attempt < 16; ++attempt) {
    StoreReply reply;
    {
      std::unique_lock lock(mutex_);
      uint64_t call = next_call_++;
      store_calls_[call] = &reply;
      send_daemon(wire::MessageType::kStoreSpace, wire::StoreSpace{call, size});
      flush();
      replies_.wait(lock, [&] { return reply.done || stopping_.load(); });
      store_calls_.erase(call);
      if (!reply.done) return Error{ErrorCode::kCancelled, "the runtime has stopped"};
    }
    if (!reply.ok) return Error{reply.code, reply.message};
    made = store_->create(id, size);
  }
  return made;
}

// --- handles ---------------------------------------------------------------------------------

ObjectId Runtime::next_put_id() {
  std::lock_guard lock(mutex_);
  if (++next_put_ == 0) put_task_ = TaskId::normal(next_sequence_++, welcome_.worker, job_);
  return ObjectId::of(put_task_, next_put_);
}

Entry* Runtime::put(const ObjectId& id, OutgoingValue value) {
  std::lock_guard lock(mutex_);
  Entry* entry = objects_.create(id);
  entry->handles.store(1, std::memory_order_relaxed);
  entry->size_bytes = value.size_bytes;
  entry->is_error = value.is_error;
  objects_.contain(entry, value.contained);
  for (Entry* inner : value.contained) objects_.unpin(inner);
  if (value.inline_value) {
    entry->value = std::move(value.inline_value);
    entry->state.store(ObjectState::kInline, std::memory_order_release);
  } else {
    entry->in_local_store = true;
    entry->state.store(ObjectState::kStored, std::memory_order_release);
  }
  return entry;
}

void Runtime::drop_handle(Entry* entry) {
  // The last handle goes under the lock, so that nobody finds an entry that is about to be freed.
  uint32_t handles = entry->handles.load(std::memory_order_relaxed);
  while (handles > 1)
    if (entry->handles.compare_exchange_weak(handles, handles - 1, std::memory_order_acq_rel)) return;
  std::lock_guard lock(mutex_);
  objects_.drop_handle(entry);
  flush();
}

void Runtime::drop_handles(std::span<Entry* const> entries) {
  std::lock_guard lock(mutex_);
  for (Entry* entry : entries) objects_.drop_handle(entry);
  flush();
}

void Runtime::pin(Entry* entry) {
  std::lock_guard lock(mutex_);
  objects_.pin(entry);
}

std::vector<Entry*> Runtime::pin_known(std::span<const wire::ValueRef> refs) {
  std::vector<Entry*> out;
  out.reserve(refs.size());
  std::lock_guard lock(mutex_);
  for (const wire::ValueRef& ref : refs) {
    Entry* entry = objects_.find(ref.id);
    SKATE_ASSERT(entry != nullptr, "a ref that is being encoded has no object");
    objects_.pin(entry);
    out.push_back(entry);
  }
  return out;
}

void Runtime::unpin_all(std::span<Entry* const> entries) {
  if (entries.empty()) return;
  std::lock_guard lock(mutex_);
  for (Entry* entry : entries) objects_.unpin(entry);
  flush();
}

Entry* Runtime::adopt(const ObjectId& id, Peer* owner, Entry* outer, IncomingTask* task,
                      std::vector<Entry*>& unknown) {
  Entry* entry = objects_.intern(id, owner);
  if (entry == nullptr) {  // ours once, and freed: stays a ref, of a lost object
    entry = objects_.create(id);
    entry->value = lost_object_error(id, "it was freed before this ref was used");
    entry->is_error = true;
    entry->state.store(ObjectState::kInline, std::memory_order_release);
  }
  entry->handles.fetch_add(1, std::memory_order_relaxed);
  if (owner != nullptr && entry->grants_in == 0) {
    if (outer != nullptr) {
      unknown.push_back(entry);
    } else if (task != nullptr) {
      objects_.pin(entry);  // until the task that brought it ends
      task->borrowed.push_back(entry);
    }
  }
  return entry;
}

void Runtime::register_adopted(const std::vector<Entry*>& unknown, Entry* outer) {
  if (unknown.empty()) return;
  objects_.pin(outer);
  if (objects_.register_then(unknown, outer->owner, {Obligation::Kind::kUnpin, nullptr, 0, outer->id}))
    objects_.unpin(outer);
  flush();
}

std::vector<Entry*> Runtime::adopt_refs(std::span<const wire::ObjectRecord> refs, Entry* outer,
                                        IncomingTask* task) {
  std::vector<Entry*> adopted, unknown;
  adopted.reserve(refs.size());
  std::lock_guard lock(mutex_);
  for (const wire::ObjectRecord& record : refs)
    adopted.push_back(adopt(record.object, peer_of(record.owner), outer, task, unknown));
  register_adopted(unknown, outer);
  return adopted;
}

std::vector<Entry*> Runtime::adopt_refs(const wire::ValueView& view, Entry* outer, IncomingTask* task) {
  std::vector<Entry*> adopted, unknown;
  adopted.reserve(view.ref_count());
  std::vector<Peer*> owners;
  std::lock_guard lock(mutex_);
  for (uint32_t i = 0; i < view.owner_count(); ++i) owners.push_back(peer_of(view.owner(i)));
  for (uint32_t i = 0; i < view.ref_count(); ++i) {
    wire::ValueRef ref = view.ref(i);
    adopted.push_back(adopt(ref.id, owners[ref.owner], outer, task, unknown));
  }
  register_adopted(unknown, outer);
  return adopted;
}

wire::Address Runtime::owner_of(const Entry* entry) const {
  return entry->owner == nullptr ? self() : entry->owner->address;
}

Entry* Runtime::find_or_lost(const ObjectId& id) {
  std::lock_guard lock(mutex_);
  Entry* entry = objects_.find(id);
  if (entry == nullptr) {
    entry = objects_.create(id);
    entry->value = lost_object_error(id,
                                     "no process of this cluster gave it to this one; a ref must travel as a "
                                     "ref, inside an argument, a result or an object");
    entry->is_error = true;
    entry->state.store(ObjectState::kInline, std::memory_order_release);
  }
  entry->handles.fetch_add(1, std::memory_order_relaxed);
  return entry;
}

}  // namespace skate::worker
