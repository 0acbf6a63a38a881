#include "sim/sim_process.h"

#include <algorithm>
#include <cstring>

#include "rt/sleep.h"
#include "sim/sim_objects.h"

namespace skate::sim {

using worker::Entry;
using worker::ObjectState;
using worker::Obligation;
using worker::Peer;
using Kind = Message::Kind;

namespace {
constexpr uint64_t kLeasesWanted = 4, kLeasesWantedInGroup = 2;
constexpr uint64_t kPausesNs = 20'000'000;
constexpr size_t kHeldMax = 12;
}  // namespace

wire::Address address_of(const NodeId& node, ProcessNumber process) {
  wire::Address address;
  address.node = node;
  std::memcpy(address.worker.data(), &process, sizeof process);
  std::memcpy(address.worker.data() + sizeof process, node.data(), WorkerId::kSize - sizeof process);
  return address;
}
ProcessNumber number_of(const wire::Address& address) {
  ProcessNumber process = 0;
  std::memcpy(&process, address.worker.data(), sizeof process);
  return process;
}
uint64_t first_sequence(ProcessNumber process) { return (process + 1) * 2 * wire::kSequencesMax; }

SimProcess::SimProcess(SimObjects& objects, ProcessNumber self, const JobId& job)
    : objects_(objects),
      self_(self),
      address_(address_of(objects.node(), self)),
      job_(job),
      program_(objects.loop()) {
  calls_left_ = 1 + below(20);
  sequence_ = first_sequence(self);  // or ids of different processes would have one hash
}

void SimProcess::start(bool is_driver) {
  is_driver_ = is_driver;
  if (!is_driver) give_work(kPlainShape, {}, static_cast<uint32_t>(below(4)), nullptr);
  program_.spawn(run());
}

bool SimProcess::owns(const ObjectId& id) const {
  const Entry* entry = table_.find(id);
  return entry != nullptr && entry->owner == nullptr;
}

uint32_t SimProcess::granted_to(const ObjectId& id, ProcessNumber process) {
  return owns(id) ? table_.granted_to(table_.find(id), peer(process)) : 0;
}

uint64_t SimProcess::below(uint64_t bound) { return objects_.loop().random().below(bound); }

Peer* SimProcess::peer(ProcessNumber number) {
  if (number == self_) return nullptr;
  Peer& found = peers_[number];
  found.address = address_of(objects_.node(), number);
  return &found;
}

Peer* SimProcess::peer(const wire::Address& address) { return peer(number_of(address)); }

Ref SimProcess::ref_of(const Entry* entry) {
  return {entry->id, entry->owner == nullptr ? address_ : entry->owner->address};
}

std::vector<Ref> SimProcess::refs_of(const std::vector<Entry*>& entries) {
  std::vector<Ref> refs;
  for (const Entry* entry : entries) refs.push_back(ref_of(entry));
  return refs;
}

void SimProcess::send(Peer* to, Message message) {
  if (to->state != Peer::State::kDead) objects_.send(self_, number(to), std::move(message));
}

// What the program does.

rt::Task<void> SimProcess::run() {
  while (true) {
    co_await rt::sleep_for(rt::Duration(below(kPausesNs)));
    if (!act()) continue;
    flush();
    objects_.check();
  }
}

/// False: it did nothing.
bool SimProcess::act() {
  if (objects_.mood() == Mood::kDrops) return drop_everything();
  if (!handles_.empty() && !objects_.options().gentle && below(300) == 0) {
    table_.drop_handle(handles_.back());
    handles_.pop_back();
    return true;
  }
  const bool begins = objects_.mood() == Mood::kWorks && !is_leaving();
  const bool makes = begins && (is_driver_ || !running_.empty());
  const uint64_t what = below(12);
  if (what < 1) return makes && (put(), true);
  if (what < 4) return makes && submit();
  if (what < 6) return makes && call_actor();
  if (what < 8) return begins && read_some();
  return held_.size() > below(kHeldMax) && drop_some();
}

std::vector<Entry*> SimProcess::pick_held(size_t most) {
  std::vector<Entry*> picked;
  for (uint64_t i = below(most + 1); i > 0 && !held_.empty(); --i)
    picked.push_back(held_[below(held_.size())]);
  if (!handles_.empty() && below(10) == 0) picked.push_back(handles_[below(handles_.size())]);
  return picked;
}

void SimProcess::hold(Entry* entry) {
  entry->handles.fetch_add(1);
  held_.push_back(entry);
}

Entry* SimProcess::create(const TaskId& task) {
  const ObjectId id = ObjectId::of(task, 1);
  objects_.made(id, self_);
  has_dealt_ = true;
  return table_.create(id);
}

TaskId SimProcess::next_task() { return TaskId::normal(++sequence_, address_.worker, job_); }

void SimProcess::put() {
  std::vector<Entry*> inner = pick_held(3);
  Entry* entry = create(next_task());
  hold(entry);
  for (Entry* one : inner) objects_.contains(entry->id, one->id);
  table_.contain(entry, inner);
  entry->in_local_store = below(2) == 0;
  if (entry->in_local_store) objects_.store(entry->id, refs_of(inner));
  entry->state = entry->in_local_store ? ObjectState::kStored : ObjectState::kInline;
}

void SimProcess::made_actor(const ActorId& actor) {
  Entry* handle = create(TaskId::actor_creation(actor));
  handle->state = ObjectState::kInline;
  handle->keeps_actor = true;
  handle->handles.fetch_add(1);
  handles_.push_back(handle);
}

void SimProcess::give_work(uint64_t shape, const PlacementGroupId& group, uint32_t tasks, uint32_t* done) {
  Shape& work = shapes_[shape];
  work.group = group;
  work.left = tasks;
  work.done = done;
}

bool SimProcess::submit() {
  std::vector<uint64_t> open;
  for (const auto& [number, shape] : shapes_)
    if (shape.left > 0) open.push_back(number);
  if (open.empty()) return false;
  const uint64_t number = open[below(open.size())];
  const uint64_t token = make_task(number, next_task());
  const uint64_t longest_us = number != kPlainShape ? 100'000 : below(50) == 0 ? 2'000'000 : 8'000;
  tasks_.at(token).work_us = below(longest_us);
  --shapes_.at(number).left;
  shapes_.at(number).queue.push_back(token);
  demand(number);
  return true;
}

bool SimProcess::call_actor() {
  const auto [worker, actor] = objects_.daemon().some_actor(job_);
  if (worker == 0 || worker == self_ || peer(worker)->state == Peer::State::kDead) return false;
  ++objects_.counts().calls;
  const uint64_t token = make_task(0, TaskId::actor_call(first_sequence(self_) + ++calls_, actor));
  tasks_.at(token).work_us = below(5'000);
  push(token, worker);
  return true;
}

uint64_t SimProcess::make_task(uint64_t shape, const TaskId& id) {
  Task task;
  task.pinned = pick_held(3);
  for (Entry* entry : task.pinned) table_.pin(entry);
  Entry* result = create(id);
  hold(result);
  task.shape = shape;
  task.result = result->id;
  tasks_.emplace(++last_token_, std::move(task));
  return last_token_;
}

bool SimProcess::read_some() {
  if (held_.empty()) return false;
  Entry* outer = held_[below(held_.size())];
  if (!outer->ready()) {
    if (outer->owner == nullptr || outer->asked) return false;
    outer->asked = true;
    if (outer->owner->state == Peer::State::kDead)
      table_.claim(outer);
    else
      send(outer->owner, {.kind = Kind::kGet, .id = outer->id});
    return true;
  }
  if (!outer->contained) return false;
  std::vector<Entry*> unknown;
  for (Entry* inner : *outer->contained) {
    objects_.touch_inside(outer->id, inner->id);
    Entry* entry = adopt(ref_of(inner));
    held_.push_back(entry);
    if (entry->owner != nullptr && entry->grants_in == 0) unknown.push_back(entry);
  }
  if (unknown.empty()) return true;
  table_.pin(outer);
  if (table_.register_then(unknown, outer->owner, {Obligation::Kind::kUnpin, nullptr, 0, outer->id}))
    table_.unpin(outer);
  return true;
}

bool SimProcess::drop_some() {
  if (held_.empty()) return false;
  std::swap(held_[below(held_.size())], held_.back());
  Entry* entry = held_.back();
  held_.pop_back();
  table_.drop_handle(entry);
  return true;
}

bool SimProcess::drop_everything() {
  const bool any = !held_.empty() || !handles_.empty();
  while (drop_some()) continue;
  for (Entry* handle : std::exchange(handles_, {})) table_.drop_handle(handle);
  return any;
}

// Its own tasks.

void SimProcess::demand(uint64_t number) {
  const Shape& shape = shapes_.at(number);
  if (shape.gone) return;
  const uint64_t most = number == kPlainShape ? kLeasesWanted : kLeasesWantedInGroup;
  Message message{.kind = Kind::kDemand, .token = number, .backlog = shape.queue.size()};
  message.count = std::min<uint64_t>(most, shape.queue.size() + shape.running);
  message.group = shape.group;
  objects_.tell_daemon(self_, std::move(message));
}

void SimProcess::granted(const Message& message) {
  if (message.who == self_) return objects_.fail("a worker is leased to itself");
  leases_[message.token] = {message.count, message.who, {}, false, false};
  pump(message.token);
}

void SimProcess::pump(LeaseNumber number) {
  Lease& lease = leases_.at(number);
  if (lease.task) return;
  Shape& shape = shapes_.at(lease.shape);
  if (lease.recalled || lease.exits || shape.queue.empty()) {
    const uint64_t of = lease.shape;
    objects_.tell_daemon(self_, {.kind = Kind::kLeaseReturn, .token = number, .exits = lease.exits});
    leases_.erase(number);
    return demand(of);
  }
  lease.task = shape.queue.front();
  shape.queue.pop_front();
  ++shape.running;
  push(*lease.task, lease.worker);
}

void SimProcess::push(uint64_t token, ProcessNumber worker) {
  Task& task = tasks_.at(token);
  task.worker = worker;
  Message message{.kind = Kind::kPush, .id = task.result, .count = task.work_us, .token = token};
  message.refs = refs_of(task.pinned);
  send(peer(worker), std::move(message));
}

void SimProcess::done(ProcessNumber from, const Message& message) {
  const auto found = tasks_.find(message.token);
  if (found == tasks_.end() || found->second.worker != from || found->second.holding)
    return objects_.fail("a task was done twice");
  const uint64_t of = found->second.shape;
  std::vector<Entry*> foreign;
  const bool any_foreign = std::any_of(message.refs.begin(), message.refs.end(), [&](const Ref& ref) {
    return ref.second != address_ && number_of(ref.second) != from;
  });
  Entry* result = table_.find(found->second.result);
  if (result == nullptr && message.stored) objects_.erase(found->second.result);
  take_result(result, message, from, foreign);
  if (any_foreign && table_.register_then(foreign, peer(from),
                                          {Obligation::Kind::kResultsTaken, peer(from), message.token, {}}))
    results_taken(peer(from), message.token);
  if (message.holds)
    tasks_.at(message.token).holding = true;
  else
    end_task(message.token);
  if (of == 0) return;
  Shape& shape = shapes_.at(of);
  --shape.running;
  if (shape.done != nullptr) ++*shape.done;
  for (auto& [number, lease] : leases_) {
    if (lease.task != message.token) continue;
    lease.task.reset();
    lease.exits = message.exits;
    return pump(number);
  }
}

void SimProcess::fail_task(uint64_t token) {
  if (Entry* entry = table_.find(tasks_.at(token).result); entry != nullptr && !entry->ready()) {
    entry->is_error = true;
    resolve(entry);
  }
  end_task(token);
}

void SimProcess::end_task(uint64_t token) {
  auto found = tasks_.find(token);
  std::vector<Entry*> pinned = std::move(found->second.pinned);
  tasks_.erase(found);
  for (Entry* entry : pinned) table_.unpin(entry);
}

void SimProcess::group_gone(uint64_t number) {
  Shape& shape = shapes_[number];
  shape.gone = true;
  shape.left = 0;
  for (uint64_t token : std::exchange(shape.queue, {})) fail_task(token);
}

// Tasks of others.

void SimProcess::pushed(ProcessNumber from, const Message& message) {
  if (is_leaving()) return objects_.fail("a task was pushed to a worker that leaves");
  if (!hosts_actor_ && !running_.empty()) return objects_.fail("two tasks were pushed to one worker");
  has_dealt_ = true;
  Incoming task{++last_incoming_, from, message.token, message.id, {}, {}};
  for (const Ref& ref : message.refs) {
    Entry* entry = adopt(ref);
    task.locals.push_back(entry);
    if (entry->owner != nullptr && entry->grants_in == 0) {
      table_.pin(entry);
      task.borrowed.push_back(entry);
    }
  }
  running_.push_back(std::move(task));
  objects_.daemon().works(self_, true);
  program_.spawn(execute(last_incoming_, message.count));
}

rt::Task<void> SimProcess::execute(uint64_t number, uint64_t work_us) {
  co_await rt::sleep_for(std::chrono::microseconds(work_us));
  if (objects_.loop().random().chance(objects_.options().crash_probability)) {
    objects_.end(self_, wire::DeathKind::kSignalled);
    co_return;
  }
  if (objects_.mood() == Mood::kWorks) {
    if (below(2) == 0) put();
    if (below(4) == 0) submit();
    if (below(4) == 0) call_actor();
  }
  const auto found = std::find_if(running_.begin(), running_.end(),
                                  [&](const Incoming& task) { return task.number == number; });
  Incoming task = std::move(*found);
  running_.erase(found);
  finish(std::move(task));
  flush();
}

Entry* SimProcess::adopt(const Ref& ref) {
  Entry* entry = table_.intern(ref.first, peer(ref.second));
  if (entry == nullptr) {  // ours, and freed
    entry = table_.create(ref.first);
    entry->state = ObjectState::kInline;
    if (!objects_.is_known(ref.first)) objects_.fail("an unknown object came");
  }
  entry->handles.fetch_add(1);
  return entry;
}

void SimProcess::finish(Incoming task) {
  objects_.daemon().works(self_, false);
  // The result holds something of the arguments, of what the process kept, or new.
  std::vector<Entry*> contained = pick_held(2);
  for (Entry* entry : task.locals)
    if (below(3) == 0) contained.push_back(entry);
  // An object that contains itself, by whatever way, is never freed: counting does not see cycles.
  std::erase_if(contained, [&](Entry* entry) { return objects_.reaches(entry->id, task.result); });
  for (Entry* entry : contained) {
    table_.pin(entry);
    objects_.contains(task.result, entry->id);
  }
  for (Entry* entry : task.locals) {
    if (below(3) == 0)
      held_.push_back(entry);  // an actor keeps it
    else
      table_.drop_handle(entry);
  }
  std::vector<Entry*> kept;
  for (Entry* entry : task.borrowed) {
    if (entry->handles.load() == 0 && entry->pins == 1)
      table_.unpin(entry);
    else
      kept.push_back(entry);
  }
  Peer* from = peer(task.from);
  const bool owner_lives = from->state != Peer::State::kDead;
  Message done{.kind = Kind::kDone, .token = task.token};
  done.stored = below(2) == 0;
  if (done.stored) objects_.store(task.result, refs_of(contained));
  if (done.stored && !owner_lives) objects_.tell_daemon(self_, {.kind = Kind::kAbandoned, .id = task.result});
  done.holds = !kept.empty() &&
               !table_.register_then(kept, from, {Obligation::Kind::kPinsReleased, from, task.token, {}});
  for (Entry* entry : kept) table_.unpin(entry);
  done.refs = refs_of(contained);
  for (Entry* entry : contained) {
    if (!owner_lives) {
      table_.unpin(entry);
    } else if (entry->owner == nullptr) {
      table_.grant(entry, from, 1);
      table_.unpin(entry);
    } else if (entry->owner != from) {
      untaken_[{task.from, task.token}].push_back(entry);
    }
  }
  if (!hosts_actor_ && --calls_left_ == 0) {
    done.exits = true;
    leaving_ = Leaving::kWanted;
  }
  send(from, std::move(done));
  if (owner_lives)
    for (Entry* entry : contained)
      if (entry->owner == from) table_.unpin(entry);
}

// Messages.

void SimProcess::flush() {
  send_claims();
  leave_step();
}

void SimProcess::handle(ProcessNumber from, const Message& message) {
  Peer* sender = peer(from);
  switch (message.kind) {
    case Kind::kRegister: {
      const bool ours = owns(message.id);
      if (ours) table_.grant(table_.find(message.id), sender, static_cast<uint32_t>(message.count));
      return send(sender, {.kind = Kind::kRegistered, .id = message.id, .gone = !ours});
    }
    case Kind::kRegistered: {
      Entry* entry = table_.find(message.id);
      if (message.gone && entry != nullptr && entry->grants_in > 0 && table_.last_answer(message.id))
        --entry->grants_in;
      return table_.registered(message.id);
    }
    case Kind::kRelease:
      if (!table_.take_back(message.id, sender, static_cast<uint32_t>(message.count)) &&
          objects_.nobody_died())
        objects_.fail("more came back than was granted");
      return;
    case Kind::kPinsReleased:
      if (tasks_.contains(message.token)) end_task(message.token);
      return;
    case Kind::kResultsTaken: {
      auto node = untaken_.extract({from, message.token});
      if (!node.empty())
        for (Entry* entry : node.mapped()) table_.unpin(entry);
      return;
    }
    case Kind::kPush: return pushed(from, message);
    case Kind::kDone: return done(from, message);
    case Kind::kGet: {
      Entry* entry = table_.find(message.id);
      if (!owns(message.id)) return send(sender, {.kind = Kind::kValue, .id = message.id, .gone = true});
      if (entry->ready()) return answer(sender, entry);
      if (!entry->remote_waiters) entry->remote_waiters = std::make_unique<std::vector<Peer*>>();
      entry->remote_waiters->push_back(sender);
      return;
    }
    case Kind::kValue: return value(sender, message);
    case Kind::kDied:
      if (peer(message.who)->state != Peer::State::kDead) {
        objects_.drain(message.who, self_);  // what it wrote before is read first
        died(message.who);
      }
      claims_[message.who];  // the daemon waits for an answer, though it be empty
      return;
    case Kind::kClaimed: return claimed(message.claimed);
    case Kind::kHold:
      if (owns(message.id)) table_.grant(table_.find(message.id), &daemon_, 1);
      return;
    case Kind::kUnhold: table_.take_back(message.id, &daemon_, 1); return;
    case Kind::kHandedOver: return handed_over(message);
    case Kind::kGrant: return granted(message);
    case Kind::kRecall:
      if (auto lease = leases_.find(message.token); lease != leases_.end()) {
        lease->second.recalled = true;
        pump(message.token);
      }
      return;
    case Kind::kRefused: return message.gone ? group_gone(message.token) : demand(message.token);
    case Kind::kExit:
      if (leaving_ != Leaving::kNo) return;  // it is on its way
      leaves_idle_ = true;
      leaving_ = Leaving::kWanted;
      return;
    default: return objects_.fail("a process was sent what is the daemon's");
  }
}

void SimProcess::take_result(Entry* entry, const Message& message, ProcessNumber from,
                             std::vector<Entry*>& foreign) {
  std::vector<Entry*> inner;
  for (const auto& [id, owner] : message.refs) {
    Entry* found = table_.intern(id, peer(owner));
    if (found == nullptr) continue;
    if (entry != nullptr) objects_.touch_inside(entry->id, id);
    table_.pin(found);
    if (number_of(owner) == from) table_.received_grant(found, 1);
    inner.push_back(found);
    if (owner != address_ && number_of(owner) != from) foreign.push_back(found);
  }
  if (entry != nullptr)
    table_.contain(entry, inner);
  else
    foreign.clear();
  for (Entry* found : inner) table_.unpin(found);
  if (entry == nullptr) return;
  entry->in_local_store = message.stored && entry->owner == nullptr;
  resolve(entry, message.stored);
}

void SimProcess::resolve(Entry* entry, bool stored) {
  entry->state = stored ? ObjectState::kStored : ObjectState::kInline;
  if (!entry->remote_waiters) return;
  auto waiters = std::move(entry->remote_waiters);
  for (Peer* waiter : *waiters) answer(waiter, entry);
}

void SimProcess::answer(Peer* to, Entry* entry) {
  if (to->state == Peer::State::kDead) return;
  Message message{.kind = Kind::kValue, .id = entry->id};
  message.stored = entry->state == ObjectState::kStored;
  if (entry->contained)
    for (Entry* inner : *entry->contained) {
      message.refs.push_back(ref_of(inner));
      if (inner->owner == nullptr) table_.grant(inner, to, 1);
    }
  send(to, std::move(message));
}

void SimProcess::value(Peer* sender, const Message& message) {
  Entry* entry = table_.find(message.id);
  if (entry != nullptr && (entry->owner != sender || entry->ready())) entry = nullptr;
  if (message.gone) {
    if (entry == nullptr) return;
    entry->is_error = true;
    return resolve(entry);
  }
  std::vector<Entry*> foreign;
  take_result(entry, message, number(sender), foreign);
  if (foreign.empty()) return;
  table_.pin(entry);
  if (table_.register_then(foreign, sender, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
    table_.unpin(entry);
}

// Deaths of others, after Runtime::peer_died and objects_claimed.

void SimProcess::died(ProcessNumber who) {
  peer(who)->state = Peer::State::kDead;
  std::vector<uint64_t> its;
  for (const auto& [token, task] : tasks_)
    if (task.worker == who) its.push_back(token);
  std::vector<uint64_t> again;  // shapes
  for (uint64_t token : its) {
    Task& task = tasks_.at(token);
    if (task.holding) {
      end_task(token);
    } else if (task.shape == 0) {
      fail_task(token);
    } else {
      Shape& shape = shapes_.at(task.shape);
      --shape.running;
      task.worker = 0;
      if (shape.gone) {
        fail_task(token);
      } else {
        again.push_back(task.shape);
        shape.queue.push_front(token);
      }
    }
  }
  std::erase_if(leases_, [&](const auto& one) { return one.second.worker == who; });
  for (uint64_t shape : again) demand(shape);
  for (auto next = untaken_.begin(); next != untaken_.end();) {
    if (next->first.first != who) {
      ++next;
      continue;
    }
    std::vector<Entry*> held = std::move(next->second);
    next = untaken_.erase(next);
    for (Entry* entry : held) table_.unpin(entry);
  }
  table_.peer_died(peer(who));
}

void SimProcess::claimed(const wire::ObjectsClaimed& answer) {
  for (const wire::KeptObject& kept : answer.kept) {
    Entry* entry = table_.find(kept.id);
    if (entry != nullptr && !entry->ready() && table_.last_answer(kept.id)) {
      table_.pin(entry);
      std::vector<Entry*> inner;
      for (const auto& [id, owner] : kept.contained) {
        objects_.touch_inside(kept.id, id);
        if (Entry* found = table_.intern(id, peer(owner))) inner.push_back(found);
      }
      table_.contain(entry, inner);
      resolve(entry, kept.stored);
      if (table_.register_then(inner, entry->owner, {Obligation::Kind::kUnpin, nullptr, 0, entry->id}))
        table_.unpin(entry);
    }
    table_.registered(kept.id);
  }
  for (const ObjectId& id : answer.lost) {
    Entry* entry = table_.find(id);
    if (entry != nullptr && table_.last_answer(id)) {
      if (!entry->ready()) objects_.refused(self_, number_of(answer.owner), id);
      table_.pin(entry);
      entry->grants_in = 0;
      if (!entry->ready()) {
        entry->is_error = true;
        resolve(entry);
      }
      table_.unpin(entry);
    }
    table_.registered(id);
  }
}

void SimProcess::send_claims() {
  for (auto& [who, ids] : std::exchange(claims_, {}))
    objects_.tell_daemon(self_, {.kind = Kind::kClaim, .who = who, .ids = std::move(ids)});
}

// Its own end in order, after Runtime::leave_step.

void SimProcess::leave_step() {
  if (leaving_ == Leaving::kRefused && table_.granted_any()) return;
  if (leaving_ != Leaving::kWanted && leaving_ != Leaving::kRefused) return;
  if (!running_.empty() || !tasks_.empty() || !untaken_.empty() || !table_.may_give()) {
    if (leaves_idle_) stay();
    return;
  }
  std::vector<Entry*> given = table_.give(2, 3);
  if (given.empty()) {
    leaving_ = Leaving::kMay;
    program_.spawn(leave());
    return;
  }
  Message message{.kind = Kind::kHandOver, .count = ++parts_};
  for (Entry* entry : given) {
    wire::KeptObject kept;
    kept.id = entry->id;
    kept.stored = entry->state.load() == ObjectState::kStored;
    if (!kept.stored) kept.value = "v";
    if (entry->contained) kept.contained = refs_of(*entry->contained);
    message.objects.push_back(std::move(kept));
  }
  leaving_ = Leaving::kOffered;
  objects_.tell_daemon(self_, std::move(message));
}

rt::Task<void> SimProcess::leave() {
  co_await rt::sleep_for(rt::Duration(below(1'000'000)));
  objects_.end_in_order(self_);
}

void SimProcess::handed_over(const Message& message) {
  if (leaving_ != Leaving::kOffered || message.count != parts_) return;
  leaving_ = message.holds ? Leaving::kWanted : Leaving::kRefused;
  if (message.holds) return;  // the flush that follows goes on
  ++objects_.counts().refusals;
  table_.take_home();
  if (leaves_idle_) stay();
}

void SimProcess::stay() {
  table_.take_home();
  leaving_ = Leaving::kNo;
  leaves_idle_ = false;
  objects_.tell_daemon(self_, {.kind = Kind::kExitDeclined});
}

// Effects.

void SimProcess::register_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state == Peer::State::kDead)
    claims_[number(owner)].push_back(id);
  else
    send(owner, {.kind = Kind::kRegister, .id = id, .count = count});
}

void SimProcess::release_ref(Peer* owner, const ObjectId& id, uint32_t count) {
  if (owner->state != Peer::State::kDead)
    return send(owner, {.kind = Kind::kRelease, .id = id, .count = count});
  send_claims();  // in order
  objects_.tell_daemon(self_, {.kind = Kind::kLetGo, .id = id});
}

void SimProcess::pins_released(Peer* to, uint64_t token) {
  send(to, {.kind = Kind::kPinsReleased, .token = token});
}
void SimProcess::results_taken(Peer* to, uint64_t token) {
  send(to, {.kind = Kind::kResultsTaken, .token = token});
}
void SimProcess::erase_stored(const ObjectId& id) { objects_.erase(id); }
void SimProcess::object_gone(Entry& entry) { objects_.let_go(self_, entry.id); }
void SimProcess::actor_out_of_scope(const ObjectId& handle) {
  objects_.daemon().out_of_scope(handle.task().actor());
}

// In the end.

std::string SimProcess::waiting() {
  std::string out;
  table_.for_each([&](const Entry& entry) {
    if (entry.asked && !entry.ready()) out += entry.id.hex() + " ";
  });
  if (!tasks_.empty()) out += std::to_string(tasks_.size()) + " tasks ";
  if (!running_.empty()) out += std::to_string(running_.size()) + " tasks of others ";
  return out;
}

std::string SimProcess::leftovers() const {
  if (table_.size() + tasks_.size() + untaken_.size() == 0) return "";
  return std::to_string(table_.size()) + " objects, " + std::to_string(tasks_.size()) + " tasks, " +
         std::to_string(untaken_.size()) + " results that were not taken";
}

}  // namespace skate::sim
