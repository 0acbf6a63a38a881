#include "node/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"

namespace skate::node {

struct Scheduler::Pass {
  std::map<Spot, Resources> reserved;  ///< set aside for who starves and for workers that start
  std::map<PoolKey, uint32_t> wanted;  ///< workers that a grant waits for
  std::map<const Class*, uint32_t> waiting_for_worker;
  std::map<JobId, Resources> promised;  ///< counts as used when turns are decided
  std::set<const Class*> stuck;
  std::set<const Room*> kept;
  bool at_workers_max = false;
};

Scheduler::Scheduler(SchedulerOptions options)
    : options_(std::move(options)), book_(options_.total, options_.instances) {}

ProcessNumber Scheduler::new_process() { return ++last_process_; }

// --- events ---------------------------------------------------------------------------------------------

void Scheduler::start_job(const JobId& id, std::string language, uint32_t prestart) {
  job(id).language = language;
  pools_[PoolKey{id, "", std::move(language)}].prestart += prestart;
}

void Scheduler::finish_job(const JobId& id) {
  job(id).finished = true;
  std::set<ProcessNumber> spared;
  for (const auto& [number, worker] : workers_)
    if (worker.pool.job == id && worker.detached) spared.insert(number);
  for (size_t before = 0; before != spared.size();) {  // what they lease works on, and so do its leases
    before = spared.size();
    for (const auto& [number, lease] : leases_)
      if (spared.count(lease.entry.owner)) spared.insert(lease.worker);
  }
  for (const auto& [number, worker] : workers_)
    if (worker.pool.job == id && !spared.count(number)) stop(number, StopWorker::Why::kJobFinished);
  for (auto& [key, pool] : pools_)
    if (key.job == id) pool.prestart = 0;
  // Its actors that were never placed: control decides about those. Demands go with their owners.
}

void Scheduler::demand(ProcessNumber owner, uint64_t shape_id, const JobId& job_id,
                       const Resources& resources, const std::string& runtime_env,
                       const std::string& function, int32_t priority, uint32_t wanted, uint64_t backlog,
                       int64_t now_us, const Place& place) {
  EntryKey key{owner, shape_id};
  auto [found, fresh] = entries_.try_emplace(key);
  Entry& entry = found->second;
  if (fresh) {
    entry.class_key = {job_id, priority, resources, PoolKey{job_id, runtime_env, job(job_id).language},
                       place};
    std::erase_if(entry.class_key.resources, [](const auto& item) { return item.second <= 0; });
    entry.function = function;
  }
  entry.wanted = wanted;
  entry.backlog = backlog;
  if (wanted > entry.held) {
    enqueue(key, entry, now_us);
  } else {
    dequeue(key, entry);
    if (wanted == 0 && entry.held == 0) entries_.erase(found);
  }
}

void Scheduler::lease_returned(ProcessNumber owner, LeaseNumber number, bool worker_exits, int64_t now_us) {
  auto found = leases_.find(number);
  if (found == leases_.end() || found->second.entry.owner != owner) return;
  ProcessNumber worker_number = found->second.worker;
  EntryKey key = found->second.entry;
  end_lease(number);
  if (auto entry = entries_.find(key); entry != entries_.end()) {
    entry->second.waiting_since_us = now_us;  // it had its turn
    if (entry->second.wanted > entry->second.held) {
      enqueue(key, entry->second, now_us);
    } else if (entry->second.wanted == 0 && entry->second.held == 0) {
      entries_.erase(entry);
    }
  }
  auto worker = workers_.find(worker_number);
  SKATE_ASSERT(worker != workers_.end(), "a lease without its worker");
  worker->second.blocked = false;
  worker->second.lease = 0;
  if (worker->second.state != WorkerState::kLeased) return;
  if (worker_exits) {
    worker->second.state = WorkerState::kStopping;
  } else {
    make_idle(worker_number, worker->second, now_us);
    if (job(worker->second.pool.job).finished) stop(worker_number, StopWorker::Why::kJobFinished);
  }
}

void Scheduler::place_actor(uint64_t actor, const JobId& job_id, const Resources& placement,
                            const Resources& running, const std::string& runtime_env,
                            const std::string& function, bool detached, int64_t now_us, const Place& place) {
  EntryKey key{0, actor};
  auto [found, fresh] = entries_.try_emplace(key);
  if (!fresh) return;
  Entry& entry = found->second;
  entry.class_key = {job_id, 0, placement, PoolKey{job_id, runtime_env, job(job_id).language}, place};
  std::erase_if(entry.class_key.resources, [](const auto& item) { return item.second <= 0; });
  entry.function = function;
  entry.running = running;
  entry.detached = detached;
  entry.wanted = 1;
  enqueue(key, entry, now_us);
}

void Scheduler::cancel_actor(uint64_t actor) { drop_entry(EntryKey{0, actor}); }

void Scheduler::actor_created(ProcessNumber number) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kActor) return;
  Lease& lease = leases_.at(worker->second.lease);
  account(lease, false);
  book_at(lease.spot).shrink(lease.allocation, lease.running);
  account(lease, true);
}

void Scheduler::worker_ready(ProcessNumber number, int64_t now_us) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kStarting) return;
  Pool& pool = pools_[worker->second.pool];
  --pool.starting;
  --starting_;
  pool.failures = 0;
  pool.hung = false;
  make_idle(number, worker->second, now_us);
}

void Scheduler::exit_declined(ProcessNumber number, int64_t now_us) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kStopping || worker->second.lease)
    return;
  make_idle(number, worker->second, now_us);
  worker->second.no_reap_before_us = now_us + options_.declined_us;
}

void Scheduler::worker_hung(ProcessNumber number) {
  auto worker = workers_.find(number);
  if (worker != workers_.end() && worker->second.state == WorkerState::kStarting) worker->second.hung = true;
}

void Scheduler::process_died(ProcessNumber number, int64_t now_us) {
  if (auto worker = workers_.find(number); worker != workers_.end()) {
    Pool& pool = pools_[worker->second.pool];
    if (worker->second.state == WorkerState::kStarting) {
      --pool.starting;
      --starting_;
      ++pool.failures;
      pool.hung |= worker->second.hung;
      pool.retry_at_us = now_us + options_.start_retry_us * pool.failures;
    } else if (worker->second.state == WorkerState::kIdle) {
      pool.idle.erase({worker->second.since_us, number});
    }
    if (LeaseNumber lease = worker->second.lease) {
      EntryKey key = leases_.at(lease).entry;
      end_lease(lease);
      if (auto entry = entries_.find(key); entry != entries_.end()) {
        if (entry->second.wanted > entry->second.held) {
          enqueue(key, entry->second, now_us);
        } else if (entry->second.wanted == 0 && entry->second.held == 0) {
          entries_.erase(entry);
        }
      }
    }
    workers_.erase(worker);
  }
  for (auto entry = entries_.lower_bound({number, 0});
       entry != entries_.end() && entry->first.owner == number;) {
    EntryKey key = entry->first;
    ++entry;
    drop_entry(key);
  }
  for (const auto& [id, lease] : leases_)
    if (lease.entry.owner == number) stop(lease.worker, StopWorker::Why::kOwnerDied);
}

void Scheduler::blocked(ProcessNumber number, bool is_blocked) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.lease == 0 || worker->second.blocked == is_blocked) return;
  worker->second.blocked = is_blocked;
  if (worker->second.state != WorkerState::kLeased) return;  // an actor keeps what it has
  Lease& lease = leases_.at(worker->second.lease);
  if (is_blocked) {
    book_at(lease.spot).lend_cpu(lease.allocation);
  } else {
    book_at(lease.spot).reclaim_cpu(lease.allocation);
  }
}

void Scheduler::works(ProcessNumber number, int64_t work_us) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kLeased) return;
  Lease& lease = leases_.at(worker->second.lease);
  lease.at_work = work_us > 0;
  if (work_us >= 0) {
    lease.begun_us = work_us;
    lease.idle_since_us = 0;
    if (auto entry = entries_.find(lease.entry); entry != entries_.end())
      entry->second.waiting_since_us = std::max(entry->second.waiting_since_us, work_us);
  } else {  // what it ran before this lease says nothing
    lease.idle_since_us = -work_us > lease.granted_us ? -work_us : 0;
  }
}

// --- placement groups -----------------------------------------------------------------------------------

void Scheduler::reserve(const PlacementGroupId& id, uint64_t attempt, Bundles bundles, int64_t now_us,
                        bool waits) {
  auto [found, fresh] = groups_.try_emplace(id);
  Group& group = found->second;
  if (!fresh && attempt < group.attempt) return;
  if (!fresh && attempt == group.attempt) {
    group.told = false;
    return;
  }
  if (!fresh) close_bundles(id, group, "its placement group is placed anew");
  group = {};
  group.waiting_since_us = now_us;
  group.attempt = attempt;
  group.waits = waits;
  for (const auto& [index, bundle] : bundles) add_to(group.sum, bundle);
  group.wanted = std::move(bundles);
}

bool Scheduler::has_room(ResourceBook trial, const Bundles& bundles) {
  return std::all_of(bundles.begin(), bundles.end(), [&](const auto& bundle) {
    if (!trial.fits(bundle.second)) return false;
    trial.take(bundle.second);
    return true;
  });
}

bool Scheduler::try_reserve(const PlacementGroupId& id, Group& group) {
  if (!has_room(book_, group.wanted)) return false;
  for (const auto& [index, wanted] : group.wanted) {
    Allocation reserved = book_.take(wanted);
    ResourceBook book(reserved);
    bundles_.emplace(Spot{id, index, group.attempt}, Bundle{std::move(reserved), std::move(book), 0, false});
  }
  group.reserved = true;
  return true;
}

void Scheduler::commit(const PlacementGroupId& id, uint64_t attempt) {
  auto found = groups_.find(id);
  if (found == groups_.end() || found->second.attempt != attempt || !found->second.reserved) return;
  found->second.committed = true;
  review_classes(id);
}

void Scheduler::close_bundles(const PlacementGroupId& id, Group& group, const std::string& why) {
  for (auto item = bundles_.lower_bound(Spot{id, INT32_MIN, 0});
       item != bundles_.end() && item->first.group == id;) {
    Bundle& bundle = item->second;
    if (bundle.leases == 0) {
      book_.give_back(std::move(bundle.reserved));
      item = bundles_.erase(item);
      continue;
    }
    bundle.closing = true;
    ++item;
  }
  for (const auto& [number, lease] : leases_)
    if (lease.spot.group == id) evictions_.push_back({lease.worker, id, why});
  group.reserved = group.committed = false;
  review_classes(id);
}

void Scheduler::unreserve(const PlacementGroupId& id, uint64_t attempt, const std::string& why) {
  auto found = groups_.find(id);
  if (found == groups_.end() || found->second.attempt > attempt) return;
  close_bundles(id, found->second, why);
  groups_.erase(found);
}

void Scheduler::end_group(const PlacementGroupId& id, const std::string& why) {
  if (auto found = groups_.find(id); found != groups_.end()) {
    close_bundles(id, found->second, why);
    groups_.erase(found);
  }
  std::vector<EntryKey> waiting;
  for (const auto& [class_key, cls] : classes_)
    if (class_key.place.group == id)
      for (const auto& [turn, key] : cls.queue) waiting.push_back(key);
  refuse(waiting, Refusal::Why::kGroupRemoved, why, {});
}

std::vector<Scheduler::Spot> Scheduler::spots_of(const Place& place) const {
  if (!place.barred.empty()) return {};
  if (place.group.is_nil()) return {Spot{}};
  auto group = groups_.find(place.group);
  if (group == groups_.end() || !group->second.committed) return {};
  std::vector<Spot> out;
  for (auto item = bundles_.lower_bound(Spot{place.group, INT32_MIN, 0});
       item != bundles_.end() && item->first.group == place.group; ++item)
    if (!item->second.closing && (place.bundle < 0 || place.bundle == item->first.bundle))
      out.push_back(item->first);
  return out;
}

ResourceBook& Scheduler::book_at(const Spot& spot) {
  if (spot.group.is_nil()) return book_;
  auto found = bundles_.find(spot);
  SKATE_ASSERT(found != bundles_.end(), "a bundle is gone while it is used");
  return found->second.book;
}

bool Scheduler::is_feasible(const ClassKey& key) const {
  const std::vector<Spot> spots = spots_of(key.place);
  return std::any_of(spots.begin(), spots.end(),
                     [&](const Spot& spot) { return book_at(spot).feasible(key.resources); });
}

void Scheduler::review_classes(const PlacementGroupId& id) {
  for (auto& [key, cls] : classes_)
    if (key.place.group == id) cls.feasible = is_feasible(key);
}

/// False: it does not fit, or not beside what is set aside for others.
bool Scheduler::reserve_beside(const PlacementGroupId& id, Group& group, Pass& pass) {
  return book_.fits_beside(group.sum, pass.reserved[Spot{}]) && try_reserve(id, group);
}

/// Groups that fit are reserved, those that have waited longest first; a smaller one may overtake.
void Scheduler::reserve_waiting(Pass& pass, Decisions& out) {
  std::vector<std::pair<int64_t, PlacementGroupId>> order;
  for (const auto& [id, group] : groups_) {
    if (!group.reserved && !pass.kept.contains(&group)) order.emplace_back(group.waiting_since_us, id);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [since_us, id] : order) {
    Group& group = groups_.at(id);
    if (reserve_beside(id, group, pass) || group.waits) continue;
    out.reserved.push_back({id, group.attempt, false});
    groups_.erase(id);
  }
  for (auto& [id, group] : groups_)
    if (group.reserved && !std::exchange(group.told, true)) out.reserved.push_back({id, group.attempt, true});
}

/// Only what comes out of the open pool counts towards a job's share; a group was paid for as a whole.
void Scheduler::account(const Lease& lease, bool held) {
  if (!lease.spot.group.is_nil()) return;
  Resources& used = job(lease.class_key.job).used;
  if (held) {
    add_to(used, lease.allocation.amounts);
  } else {
    subtract_from(used, lease.allocation.amounts);
  }
}

Resources Scheduler::bundle_resources(bool available) const {
  // Each bundle has a thousand of these, of which Ray's tasks take a thousandth each.
  constexpr int64_t kMarker = 1000 * wire::kResourceUnit;
  constexpr int64_t kMarkerShare = wire::kResourceUnit / 1000;
  Resources out;
  std::map<Spot, int64_t> idle_leases;
  for (const auto& [number, lease] : leases_)
    if (available && !lease.at_work) ++idle_leases[lease.spot];
  for (const auto& [spot, bundle] : bundles_) {
    auto group = groups_.find(spot.group);
    if (bundle.closing || group == groups_.end() || !group->second.committed) continue;
    const std::string id = spot.group.hex(), index = std::to_string(spot.bundle);
    auto add = [&](const std::string& name, int64_t units) {
      out[name + "_group_" + index + "_" + id] += units;
      out[name + "_group_" + id] += units;
    };
    for (const auto& [name, units] : available ? available_at(spot) : bundle.book.total()) add(name, units);
    add("bundle", kMarker - (available ? (bundle.leases - idle_leases[spot]) * kMarkerShare : 0));
  }
  return out;
}

std::vector<Scheduler::Holding> Scheduler::holdings() const {
  std::vector<Holding> out;
  for (const auto& [id, group] : groups_) out.push_back({id, group.attempt});
  return out;
}

// --- state ----------------------------------------------------------------------------------------------

void Scheduler::enqueue(const EntryKey& key, Entry& entry, int64_t now_us) {
  if (entry.turn != 0) return;
  auto [cls, fresh] = classes_.try_emplace(entry.class_key);
  if (fresh) {
    cls->second.key = entry.class_key;
    cls->second.feasible = is_feasible(entry.class_key);
  }
  entry.turn = ++last_turn_;
  entry.waiting_since_us = now_us;
  cls->second.queue.emplace(entry.turn, key);
}

void Scheduler::dequeue(const EntryKey&, Entry& entry) {
  if (entry.turn == 0) return;
  auto cls = classes_.find(entry.class_key);
  SKATE_ASSERT(cls != classes_.end(), "a queued entry without its class");
  cls->second.queue.erase(entry.turn);
  entry.turn = 0;
  if (cls->second.queue.empty()) classes_.erase(cls);
}

void Scheduler::drop_entry(const EntryKey& key) {
  auto found = entries_.find(key);
  if (found == entries_.end()) return;
  dequeue(key, found->second);
  entries_.erase(found);
}

void Scheduler::end_lease(LeaseNumber number) {
  auto found = leases_.find(number);
  SKATE_ASSERT(found != leases_.end(), "a lease ends twice");
  Lease& lease = found->second;
  account(lease, false);
  book_at(lease.spot).give_back(std::move(lease.allocation));
  if (auto bundle = bundles_.find(lease.spot); bundle != bundles_.end()) {
    if (--bundle->second.leases == 0 && bundle->second.closing) {
      book_.give_back(std::move(bundle->second.reserved));
      bundles_.erase(bundle);
    }
  }
  if (auto entry = entries_.find(lease.entry); entry != entries_.end()) --entry->second.held;
  if (auto worker = workers_.find(lease.worker); worker != workers_.end()) worker->second.lease = 0;
  leases_.erase(found);
}

void Scheduler::make_idle(ProcessNumber number, Worker& worker, int64_t now_us) {
  worker.state = WorkerState::kIdle;
  worker.since_us = now_us;
  pools_[worker.pool].idle.insert({now_us, number});
}

void Scheduler::stop(ProcessNumber number, StopWorker::Why why) {
  auto found = workers_.find(number);
  if (found == workers_.end()) return;
  Worker& worker = found->second;
  if (worker.state == WorkerState::kStopping && why == StopWorker::Why::kIdle) return;
  if (worker.state == WorkerState::kIdle) pools_[worker.pool].idle.erase({worker.since_us, number});
  if (worker.state == WorkerState::kStarting) {
    --pools_[worker.pool].starting;
    --starting_;
  }
  worker.state = WorkerState::kStopping;
  stops_.push_back({number, why});
}

// --- decisions ------------------------------------------------------------------------------------------

Decisions Scheduler::decide(int64_t now_us) {
  Decisions out;
  Pass pass;
  settle_refusals(now_us, out);
  match(now_us, pass, out);
  start_workers(now_us, pass, out);
  recall(now_us, pass, out);
  reap(now_us, out);
  out.stops = std::exchange(stops_, {});
  out.evictions = std::exchange(evictions_, {});
  for (Refusal& refusal : std::exchange(refusals_, {})) out.refusals.push_back(std::move(refusal));
  if (pass.at_workers_max && !limit_reported_) out.workers_limit_reached = true;
  limit_reported_ = pass.at_workers_max;
  cpu_wanted_ = false;
  for (const auto& [key, cls] : classes_)
    if (cls.feasible)
      for (const Spot& spot : spots_of(key.place))
        if (book_at(spot).lacking(key.resources).count("CPU")) cpu_wanted_ = true;
  for (const auto& [id, group] : groups_)
    if (!group.reserved && book_.lacking(group.sum).count("CPU")) cpu_wanted_ = true;
  return out;
}

void Scheduler::refuse(const std::vector<EntryKey>& keys, Refusal::Why why, const std::string& message,
                       const PoolKey& pool) {
  for (const EntryKey& key : keys) {
    refusals_.push_back({key.owner, key.shape, why, message, pool});
    Entry& entry = entries_.at(key);
    dequeue(key, entry);
    entry.wanted = entry.held;
    if (entry.held == 0) entries_.erase(key);
  }
}

std::string Scheduler::why_infeasible(const ClassKey& key, const Entry& entry) const {
  if (!key.place.barred.empty()) return "'" + entry.function + "' " + key.place.barred;
  Resources most;
  for (const auto& [name, units] : key.resources) {
    auto total = book_.total().find(name);
    most[name] = total == book_.total().end() ? 0 : total->second;
  }
  return "'" + entry.function + "' asks for " + describe(key.resources) + "; of these the whole node has " +
         describe(most);
}

void Scheduler::settle_refusals(int64_t, Decisions& out) {
  for (auto& [key, pool] : pools_) {
    if (pool.failures < options_.start_failures_max && !pool.hung) continue;
    const std::string why =
        pool.hung ? "a worker was ended before it was ready"
                  : "a worker ended " + std::to_string(pool.failures) + " times in a row before it was ready";
    pool.failures = 0;  // a later demand tries again
    pool.hung = false;
    pool.prestart = 0;
    std::vector<EntryKey> refused;
    for (const auto& [class_key, cls] : classes_)
      if (class_key.pool == key)
        for (const auto& [turn, entry] : cls.queue) refused.push_back(entry);
    refuse(refused, Refusal::Why::kStartFailed, why, key);
  }
  std::vector<std::pair<std::string, std::vector<EntryKey>>> too_large;
  for (const auto& [class_key, cls] : classes_) {
    if (cls.feasible) continue;
    if (!class_key.place.group.is_nil() && class_key.place.barred.empty()) {
      // A group that is not there yet may come; one that is has the bundles that it will always have.
      auto group = groups_.find(class_key.place.group);
      if (group == groups_.end() || !group->second.committed) continue;
      std::vector<EntryKey> keys;
      for (const auto& [turn, key] : cls.queue) keys.push_back(key);
      std::string where = "no bundle of";
      if (class_key.place.bundle >= 0) where = "the bundle " + std::to_string(class_key.place.bundle) + " of";
      too_large.emplace_back("it asks for " + describe(class_key.resources) + ", and " + where +
                                 " its placement group " + class_key.place.group.hex() +
                                 (class_key.place.bundle >= 0 ? " does not have" : " has") + " that",
                             std::move(keys));
      continue;
    }
    for (const auto& [turn, key] : cls.queue) {
      Entry& entry = entries_.at(key);
      if (std::exchange(entry.refused, true)) continue;
      out.refusals.push_back(
          {key.owner, key.shape, Refusal::Why::kInfeasible, why_infeasible(class_key, entry), {}});
    }
  }
  for (const auto& [message, keys] : too_large) refuse(keys, Refusal::Why::kBundleTooSmall, message, {});
}

/// Who has got nothing for so long that his turn comes before all others', longest wait first.
std::vector<Scheduler::Waiter> Scheduler::starving(int64_t now_us) {
  std::vector<Waiter> out;
  auto consider = [&](const Waiter& waiter) {
    if (now_us - waiter.since_us >= options_.starving_us) out.push_back(waiter);
  };
  for (auto& [key, cls] : classes_)
    if (cls.feasible) consider({waiting_since_us(cls), &cls, nullptr, {}});
  for (auto& [id, group] : groups_)
    if (!group.reserved) consider({group.waiting_since_us, nullptr, &group, id});
  std::stable_sort(out.begin(), out.end(),
                   [](const Waiter& a, const Waiter& b) { return a.since_us < b.since_us; });
  return out;
}

int64_t Scheduler::waiting_since_us(const Class& cls) const {
  int64_t since_us = INT64_MAX;
  for (const auto& [turn, key] : cls.queue) since_us = std::min(since_us, entries_.at(key).waiting_since_us);
  return since_us;
}

/// What `waiter` needs goes to nobody else, as long as the ends of leases can bring it; but not of those that
/// have outlasted the time for which room was kept: these must end first, and till then others may pass.
void Scheduler::keep_room(const Waiter& waiter, int64_t now_us, Pass& pass) {
  Room& room = waiter.cls ? static_cast<Room&>(*waiter.cls) : *waiter.group;
  if (room.kept_until_us != 0 && now_us >= room.kept_until_us) room = {0, last_lease_};
  const Resources& need = waiter.cls ? waiter.cls->key.resources : waiter.group->sum;
  for (const Spot& spot : waiter.cls ? spots_of(waiter.cls->key.place) : std::vector<Spot>{Spot{}}) {
    ResourceBook then = book_at(spot);
    for (const auto& [number, lease] : leases_)
      if (number > room.outlasted && lease.entry.owner != 0 && lease.spot == spot)
        then.give_back(lease.allocation);
    if (waiter.cls ? !then.fits(need) : !has_room(std::move(then), waiter.group->wanted)) continue;
    // As long as it has waited: however long tasks are, after a few rounds they end in time.
    if (room.kept_until_us == 0)
      room.kept_until_us = now_us + std::max(options_.keep_room_us, now_us - waiter.since_us);
    add_to(pass.reserved[spot], need);
    pass.kept.insert(&room);
    return;
  }
  room.kept_until_us = 0;
}

void Scheduler::match(int64_t now_us, Pass& pass, Decisions& out) {
  for (const Waiter& waiter : starving(now_us))
    if (waiter.cls ? !serve(*waiter.cls, now_us, pass, out) : !reserve_beside(waiter.id, *waiter.group, pass))
      keep_room(waiter, now_us, pass);
  reserve_waiting(pass, out);
  while (true) {
    Class* next = nullptr;
    std::tuple<int64_t, int32_t, uint64_t> best;
    std::map<JobId, int64_t> shares;
    for (auto& [key, cls] : classes_) {
      if (!cls.feasible || pass.kept.contains(&cls) || pass.stuck.count(&cls)) continue;
      auto [share, fresh] = shares.try_emplace(key.job, 0);
      if (fresh) {
        Resources used = job(key.job).used;
        add_to(used, pass.promised[key.job]);
        share->second = book_.dominant_share(used);
      }
      std::tuple<int64_t, int32_t, uint64_t> rank{share->second, -key.priority, cls.queue.begin()->first};
      if (next == nullptr || rank < best) {
        next = &cls;
        best = rank;
      }
    }
    if (next == nullptr) return;
    if (!serve(*next, now_us, pass, out)) pass.stuck.insert(next);
  }
}

/// One grant, or one worker asked for. False when nothing more can be done for this class in this pass.
/// The class is gone after its last grant; then nothing may touch it.
bool Scheduler::serve(Class& cls, int64_t now_us, Pass& pass, Decisions& out) {
  const ClassKey class_key = cls.key;
  const std::vector<Spot> spots = spots_of(class_key.place);
  const auto spot = std::find_if(spots.begin(), spots.end(), [&](const Spot& candidate) {
    return book_at(candidate).fits_beside(class_key.resources, pass.reserved[candidate]);
  });
  if (spot == spots.end()) return false;
  Pool& pool = pools_[class_key.pool];
  // A worker is never leased to itself: it would run behind what it waits for, if it could run it at all.
  auto longest = cls.queue.end();
  for (auto item = cls.queue.begin(); item != cls.queue.end(); ++item) {
    if (pool.idle.empty() || (pool.idle.size() == 1 && pool.idle.begin()->second == item->second.owner))
      continue;
    if (longest == cls.queue.end() ||
        entries_.at(item->second).waiting_since_us < entries_.at(longest->second).waiting_since_us)
      longest = item;
  }
  if (longest == cls.queue.end()) {
    uint32_t waiting = 0;
    for (const auto& [turn, key] : cls.queue) {
      const Entry& entry = entries_.at(key);
      waiting += entry.wanted - entry.held;
      if (waiting >= options_.starting_max) break;
    }
    uint32_t& asked = pass.waiting_for_worker[&cls];
    if (asked >= waiting) return false;
    ++asked;
    ++pass.wanted[class_key.pool];
    add_to(pass.reserved[*spot], class_key.resources);
    if (spot->group.is_nil()) add_to(pass.promised[class_key.job], class_key.resources);
    return true;
  }
  const EntryKey key = longest->second;
  auto warmest = std::prev(pool.idle.end());
  if (warmest->second == key.owner) --warmest;
  const ProcessNumber worker_number = warmest->second;
  pool.idle.erase(warmest);
  Worker& worker = workers_.at(worker_number);

  Entry& entry = entries_.at(key);
  Lease lease{key,
              class_key,
              entry.function,
              entry.running,
              worker_number,
              *spot,
              book_at(*spot).take(class_key.resources),
              now_us};
  lease.at_work = key.owner == 0;
  if (auto bundle = bundles_.find(*spot); bundle != bundles_.end()) ++bundle->second.leases;
  ResourceInstances instances = lease.allocation.instances();
  account(lease, true);
  LeaseNumber number = ++last_lease_;
  worker.lease = number;
  worker.blocked = false;
  leases_.emplace(number, std::move(lease));

  static_cast<Room&>(cls) = {};
  entry.waiting_since_us = now_us;
  ++entry.held;
  bool last = cls.queue.size() == 1 && entry.held >= entry.wanted;
  if (last) {  // the class is about to go: forget its address
    pass.stuck.erase(&cls);
    pass.waiting_for_worker.erase(&cls);
  }
  if (key.owner == 0) {
    worker.state = WorkerState::kActor;
    worker.detached = entry.detached;
    out.placements.push_back({key.shape, number, worker_number, std::move(instances)});
    drop_entry(key);
  } else {
    worker.state = WorkerState::kLeased;
    out.grants.push_back({key.owner, key.shape, number, worker_number, std::move(instances)});
    if (entry.held >= entry.wanted) {
      dequeue(key, entry);
    } else {  // to the back of its class
      cls.queue.erase(entry.turn);
      entry.turn = ++last_turn_;
      cls.queue.emplace(entry.turn, key);
    }
  }
  return true;
}

struct Scheduler::Shares {
  std::map<EntryKey, int64_t> held;
  std::map<JobId, Resources> used;
  void move(const Lease& from, const EntryKey& to, const ClassKey& to_class) {
    --held[from.entry];
    ++held[to];
    if (!from.spot.group.is_nil()) return;
    subtract_from(used[from.class_key.job], from.allocation.amounts);
    add_to(used[to_class.job], to_class.resources);
  }
};

bool Scheduler::may_recall_for(const Lease& lease, const EntryKey& waiter, const Entry& entry,
                               Shares& shares) const {
  if (lease.entry == waiter) return false;
  const ClassKey& theirs = lease.class_key;
  const ClassKey& ours = entry.class_key;
  if (theirs.job != ours.job)
    return book_.dominant_share(shares.used[theirs.job]) > book_.dominant_share(shares.used[ours.job]);
  if (ours.priority != theirs.priority) return ours.priority > theirs.priority;
  auto share = [&](const EntryKey& key, const ClassKey& cls) {
    return shares.held[key] * std::max<int64_t>(1, book_.dominant_share(cls.resources));
  };
  return share(lease.entry, theirs) > share(waiter, ours);
}

/// What the end of a lease brings: its CPU is not among that while it is lent.
Resources Scheduler::to_come(const Lease& lease) {
  Resources amounts = lease.allocation.amounts;
  if (lease.allocation.cpu_lent) amounts.erase("CPU");
  return amounts;
}

bool Scheduler::is_unused(const Lease& lease, int64_t now_us) const {
  return lease.idle_since_us != 0 && now_us - lease.idle_since_us >= options_.idle_lease_us;
}

bool Scheduler::is_recallable(const Lease& lease, int64_t now_us) const {
  return lease.recalled_us < 0 && lease.entry.owner != 0 &&
         (is_unused(lease, now_us) || now_us - lease.granted_us >= options_.quantum_us);
}

bool Scheduler::is_overdue(const Lease& lease, int64_t now_us) const {
  return lease.recalled_us >= 0 && now_us - lease.recalled_us >= options_.recall_answer_us;
}

/// Leases of `spot` whose end brings what `lacks` (or, anywhere, a worker), those first that are likely to
/// end soon; with `all` not just enough of them. Empty when that is not enough, unless `some` will do.
std::vector<Scheduler::Lease*> Scheduler::recallable(const Spot& spot, Resources lacks, bool lacks_worker,
                                                     int64_t now_us, bool all, bool some,
                                                     const std::function<bool(const Lease&)>& may) {
  std::vector<std::tuple<bool, int64_t, LeaseNumber, Lease*>> order;
  for (auto& [number, lease] : leases_) {
    if (!is_recallable(lease, now_us)) continue;
    const bool unused = is_unused(lease, now_us);
    // Whose task began last is likely to have short ones.
    order.emplace_back(!unused, unused ? lease.idle_since_us : -std::max(lease.begun_us, lease.granted_us),
                       number, &lease);
  }
  std::sort(order.begin(), order.end());
  std::vector<Lease*> victims;
  const Resources lacked = lacks;
  const bool lacked_worker = lacks_worker;
  for (const auto& [used, time_us, number, lease] : order) {
    if (!all && lacks.empty() && !lacks_worker) break;
    const Resources amounts = lease->spot == spot ? to_come(*lease) : Resources{};
    const Resources& sought = all ? lacked : lacks;
    const bool helps = (all ? lacked_worker : lacks_worker) ||
                       std::any_of(sought.begin(), sought.end(),
                                   [&](const auto& lack) { return amounts.count(lack.first) > 0; });
    if (!helps || !may(*lease)) continue;
    victims.push_back(lease);
    lacks_worker = false;
    for (const auto& [name, units] : amounts)
      if (auto lack = lacks.find(name); lack != lacks.end() && (lack->second -= units) <= 0)
        lacks.erase(lack);
  }
  if (!some && (!lacks.empty() || lacks_worker)) victims.clear();
  return victims;
}

void Scheduler::recall(int64_t now_us, const Pass& pass, Decisions& out) {
  std::map<Spot, Resources> coming{{Spot{}, book_.available()}};
  std::map<Spot, ResourceBook> then{{Spot{}, book_}};
  for (const auto& [spot, bundle] : bundles_) {
    coming[spot] = bundle.book.available();
    then.emplace(spot, bundle.book);
  }
  int64_t workers_coming = 0;
  Shares shares;
  auto comes = [&](const Lease& lease) {
    add_to(coming[lease.spot], to_come(lease));
    then.at(lease.spot).give_back(lease.allocation);
    ++workers_coming;
  };
  auto lacking = [&](const Resources& need, const Spot& spot) {
    const Resources& have = coming[spot];
    Resources lacks;
    for (const auto& [name, units] : need)
      if (auto there = have.find(name); there == have.end() || there->second < units)
        lacks[name] = units - (there == have.end() ? 0 : std::max<int64_t>(0, there->second));
    // Enough in sum may still be scattered over GPUs.
    return lacks.empty() ? then.at(spot).lacking(need) : lacks;
  };
  for (const auto& [id, held_by] : jobs_) shares.used[id] = held_by.used;
  int64_t last_overdue_us = -1;
  bool may_be_recalled = false;
  for (const auto& [number, lease] : leases_) {
    const bool overdue = is_overdue(lease, now_us);
    if (overdue) last_overdue_us = std::max(last_overdue_us, lease.recalled_us);
    may_be_recalled |= is_recallable(lease, now_us);
    if (lease.recalled_us < 0 || overdue) {
      ++shares.held[lease.entry];
      continue;
    }
    if (lease.spot.group.is_nil()) subtract_from(shares.used[lease.class_key.job], lease.allocation.amounts);
    comes(lease);
  }
  auto call_back = [&](Lease& lease) {
    lease.recalled_us = now_us;
    comes(lease);
    out.recalls.push_back({lease.entry.owner, workers_.at(lease.worker).lease});
  };
  // For who was not answered in time, all are called that may be.
  auto is_urgent = [&](int64_t since_us) { return last_overdue_us >= since_us; };
  // A group takes its room for good, as an actor does: leases are recalled for it whoever holds them.
  for (const auto& [id, group] : groups_) {
    if (group.reserved) continue;
    for (Lease* lease :
         recallable(Spot{}, lacking(group.sum, Spot{}), false, now_us, is_urgent(group.waiting_since_us),
                    pass.kept.contains(&group), [](const Lease&) { return true; }))
      call_back(*lease);
    if (lacking(group.sum, Spot{}).empty()) subtract_from(coming[Spot{}], group.sum);
  }
  // Those for whom room is kept come first, the longest wait before others; what is kept is not others'.
  std::vector<std::tuple<int64_t, int64_t, int32_t, uint64_t, const Class*>> order;
  for (const auto& [key, cls] : classes_)
    if (cls.feasible)
      order.emplace_back(pass.kept.contains(&cls) ? waiting_since_us(cls) : INT64_MAX,
                         book_.dominant_share(job(key.job).used), -key.priority, cls.queue.begin()->first,
                         &cls);
  std::sort(order.begin(), order.end());
  for (const auto& [since_us, share, priority, turn, cls] : order) {
    const Resources& need = cls->key.resources;
    const std::vector<Spot> spots = spots_of(cls->key.place);
    const auto fitting = std::find_if(spots.begin(), spots.end(), [&](const Spot& spot) {
      return book_at(spot).fits(need) && lacking(need, spot).empty();
    });
    const bool waits_for_worker = fitting != spots.end();
    if (waits_for_worker && !pass.at_workers_max) {
      subtract_from(coming[*fitting], need);
      continue;
    }
    const bool kept = pass.kept.contains(cls);
    bool served = true;
    for (auto item = cls->queue.begin(); (served || may_be_recalled) && item != cls->queue.end(); ++item) {
      served = true;
      const EntryKey key = item->second;
      const Entry& entry = entries_.at(key);
      const bool urgent = is_urgent(entry.waiting_since_us);
      // Who starves may take from anybody, but one lease at a time.
      bool starves = now_us - entry.waiting_since_us >= options_.starving_us;
      for (uint32_t missing = entry.wanted - entry.held; served && missing > 0; --missing) {
        served = false;
        for (const Spot& spot : spots) {
          if (!book_at(spot).feasible(need)) continue;
          const bool lacks_worker = waits_for_worker && workers_coming <= 0;
          const Resources lacks = lacking(need, spot);
          const Shares before = shares;
          const bool lacked = lacks_worker || !lacks.empty();
          const std::vector<Lease*> victims =
              recallable(spot, lacks, lacks_worker, now_us, urgent, kept && starves, [&](const Lease& lease) {
                const bool may = lease.entry != key && (starves || is_unused(lease, now_us) ||
                                                        may_recall_for(lease, key, entry, shares));
                if (may && !urgent) shares.move(lease, key, cls->key);
                return may;
              });
          if (lacked && victims.empty()) {
            shares = before;
            continue;
          }
          for (Lease* lease : victims) call_back(*lease);
          subtract_from(coming[spot], need);
          if (waits_for_worker) --workers_coming;
          served = true;
          break;
        }
        starves = false;
      }
    }
  }
}

void Scheduler::start_workers(int64_t now_us, Pass& pass, Decisions& out) {
  for (auto& [key, pool] : pools_) {
    auto asked = pass.wanted.find(key);
    uint32_t wanted = asked == pass.wanted.end() ? 0 : asked->second;
    uint32_t count = std::max(wanted > pool.starting ? wanted - pool.starting : 0, pool.prestart);
    if (count == 0 || now_us < pool.retry_at_us) continue;
    while (count > 0 && starting_ < options_.starting_max) {
      if (workers_.size() >= options_.workers_max) {
        // An idle worker of another pool makes place; its end brings us back here.
        Pool* oldest = nullptr;
        for (auto& [other_key, other] : pools_)
          if (!other.idle.empty() && (!oldest || *other.idle.begin() < *oldest->idle.begin()))
            oldest = &other;
        if (wanted > 0) pass.at_workers_max = true;
        if (oldest && wanted > 0) stop(oldest->idle.begin()->second, StopWorker::Why::kIdle);
        break;
      }
      ProcessNumber number = new_process();
      workers_[number] = Worker{key, WorkerState::kStarting, 0, false, false, false, now_us, 0};
      out.starts.push_back({number, key});
      ++pool.starting;
      ++starting_;
      --count;
      if (pool.prestart > 0) --pool.prestart;
    }
  }
}

void Scheduler::reap(int64_t now_us, Decisions&) {
  size_t idle = 0;
  std::vector<std::pair<int64_t, ProcessNumber>> old;
  for (const auto& [key, pool] : pools_) {
    idle += pool.idle.size();
    for (const auto& item : pool.idle) {
      if (item.first + options_.idle_worker_us > now_us) break;
      if (workers_.at(item.second).no_reap_before_us <= now_us) old.push_back(item);
    }
  }
  std::sort(old.begin(), old.end());
  for (const auto& [since, number] : old) {
    if (idle <= options_.idle_workers_kept) break;
    stop(number, StopWorker::Why::kIdle);
    --idle;
  }
}

std::optional<int64_t> Scheduler::next_deadline(int64_t now_us) const {
  std::optional<int64_t> next;
  auto at = [&](int64_t time_us) {
    if (time_us > now_us && (!next || time_us < *next)) next = time_us;
  };
  bool waiting = false;
  auto wake_for = [&](int64_t since_us, const Room& room) {
    waiting = true;
    at(since_us + options_.starving_us);
    at(room.kept_until_us);
  };
  for (const auto& [key, cls] : classes_)
    if (cls.feasible) wake_for(waiting_since_us(cls), cls);
  for (const auto& [id, group] : groups_)
    if (!group.reserved) wake_for(group.waiting_since_us, group);
  for (const auto& [number, lease] : leases_) {
    if (!waiting) break;
    if (lease.entry.owner == 0) continue;
    if (lease.recalled_us >= 0) {
      at(lease.recalled_us + options_.recall_answer_us);
      continue;
    }
    at(lease.granted_us + options_.quantum_us);
    // That one becomes idle is not told; it is looked for.
    at(lease.idle_since_us != 0 ? lease.idle_since_us + options_.idle_lease_us
                                : now_us + options_.starving_us);
  }
  size_t idle = 0;
  for (const auto& [key, pool] : pools_) {
    if (waiting || pool.prestart > 0) at(pool.retry_at_us);
    idle += pool.idle.size();
  }
  if (idle > options_.idle_workers_kept)
    for (const auto& [key, pool] : pools_)
      for (const auto& [since_us, number] : pool.idle)
        at(std::max(since_us + options_.idle_worker_us, workers_.at(number).no_reap_before_us));
  return next;
}

// --- views ----------------------------------------------------------------------------------------------

Resources Scheduler::available_at(const Spot& spot) const {
  const ResourceBook& book = book_at(spot);
  Resources out;
  for (const auto& [name, total] : book.total()) out[name] = book.free_of(name);
  for (const auto& [number, lease] : leases_)
    if (!lease.at_work && lease.spot == spot) add_to(out, to_come(lease));
  // Last: idle leases make up for what blocked workers that went on have taken beyond what was free.
  for (auto& [name, units] : out) units = std::max<int64_t>(0, units);
  return out;
}

uint64_t Scheduler::queued() const {
  uint64_t sum = 0;
  for (const auto& [key, entry] : entries_)
    sum += std::max<uint64_t>(entry.backlog, entry.wanted > entry.held ? entry.wanted - entry.held : 0);
  return sum;
}

std::vector<ProcessNumber> Scheduler::leased_workers() const {
  std::vector<ProcessNumber> out;
  for (const auto& [number, lease] : leases_) out.push_back(lease.worker);
  return out;
}

std::optional<std::pair<ProcessNumber, LeaseNumber>> Scheduler::lease_of(ProcessNumber worker) const {
  auto found = workers_.find(worker);
  if (found == workers_.end() || found->second.lease == 0) return std::nullopt;
  return std::pair{leases_.at(found->second.lease).entry.owner, found->second.lease};
}

ProcessNumber Scheduler::worker_of(LeaseNumber lease) const {
  auto found = leases_.find(lease);
  return found == leases_.end() ? 0 : found->second.worker;
}

std::vector<Wait> Scheduler::waits() const {
  std::vector<Wait> out;
  for (const auto& [class_key, cls] : classes_) {
    const std::vector<Spot> spots = spots_of(class_key.place);
    if (spots.size() != 1) continue;  // any of several bundles: no single answer to who holds what it lacks
    const Spot spot = spots.front();
    Resources lacks = book_at(spot).lacking(class_key.resources);
    if (lacks.empty()) continue;
    for (const auto& [turn, key] : cls.queue) {
      Wait wait{key.owner, key.shape, entries_.at(key).function, lacks, {}, cls.feasible};
      for (const auto& [number, lease] : leases_) {
        Resources holds;
        for (const auto& [name, units] : lacks)
          if (auto held = lease.allocation.amounts.find(name); held != lease.allocation.amounts.end())
            holds[name] = held->second;
        if (holds.empty() || lease.spot != spot) continue;
        if (lease.idle_since_us == 0)
          wait.holders.push_back({lease.worker, lease.function, holds, workers_.at(lease.worker).blocked});
        else if (holds.size() > holds.count("CPU"))
          wait.deadlock = false;  // it is recalled
      }
      out.push_back(std::move(wait));
    }
  }
  // The largest set in which every holder of what cannot be lent is itself blocked on a wait of the set.
  for (bool changed = true; changed;) {
    changed = false;
    std::set<ProcessNumber> stuck_owners;
    for (const Wait& wait : out)
      if (wait.deadlock) stuck_owners.insert(wait.owner);
    for (Wait& wait : out) {
      if (!wait.deadlock) continue;
      size_t kept = 0;
      bool ends = false;
      for (const auto& holder : wait.holders) {
        bool lendable = std::all_of(holder.holds.begin(), holder.holds.end(),
                                    [](const auto& item) { return item.first == "CPU"; });
        if (lendable) continue;
        ++kept;
        if (!holder.blocked || !stuck_owners.count(holder.worker)) ends = true;
      }
      if (kept == 0 || ends) {
        wait.deadlock = false;
        changed = true;
      }
    }
  }
  return out;
}

bool Scheduler::is_idle() const {
  return leases_.empty() && entries_.empty() && classes_.empty() && groups_.empty() && bundles_.empty() &&
         book_.is_whole();
}

std::string Scheduler::check_available(const Spot& spot) const {
  const ResourceBook& book = book_at(spot);
  Resources used;
  for (const auto& [number, lease] : leases_)
    if (lease.at_work && lease.spot == spot) add_to(used, to_come(lease));
  if (spot.group.is_nil())
    for (const auto& [other, bundle] : bundles_) add_to(used, bundle.reserved.amounts);
  const Resources available = available_at(spot);
  for (const auto& [name, units] : available) {
    auto total = book.total().find(name);
    if (total == book.total().end()) return name + " is available and does not exist";
    if (units < 0) return "less than no " + name + " is available";
    if (units > total->second) return "more " + name + " is available than there is";
    if (units != std::max<int64_t>(0, total->second - used[name]))
      return "what is available of " + name + " is not what nothing runs on";
  }
  return available.size() == book.total().size() ? "" : "a resource is not among those available";
}

std::string Scheduler::check() const {
  if (auto wrong = book_.check(); !wrong.empty()) return wrong;
  if (auto wrong = check_available(Spot{}); !wrong.empty()) return wrong;
  std::map<Spot, Resources> held, lent;
  std::map<Spot, uint32_t> held_in;
  for (const auto& [number, lease] : leases_) {
    if (!lease.spot.group.is_nil() && !bundles_.contains(lease.spot)) return "a lease outlives its bundle";
    add_to(held[lease.spot], lease.allocation.amounts);
    lent[lease.spot]["CPU"] += lease.allocation.cpu_lent;
    ++held_in[lease.spot];
    auto worker = workers_.find(lease.worker);
    if (worker == workers_.end() || worker->second.lease != number) return "a lease and its worker disagree";
  }
  for (const auto& [spot, bundle] : bundles_) {
    if (auto wrong = bundle.book.check(); !wrong.empty()) return "in a bundle, " + wrong;
    if (auto wrong = check_available(spot); !wrong.empty()) return "in a bundle, " + wrong;
    add_to(held[Spot{}], bundle.reserved.amounts);
    if (bundle.leases != held_in[spot]) return "a bundle miscounts its leases";
    if (bundle.closing && bundle.leases == 0) return "a closed bundle is kept";
    if (!bundle.closing && !groups_.contains(spot.group)) return "a bundle outlives its group";
    for (const auto& [name, units] : bundle.book.total())
      if (bundle.book.free_of(name) + held[spot][name] - lent[spot][name] != units)
        return name + " of a bundle does not add up";
  }
  for (const auto& [name, units] : book_.total())
    if (book_.free_of(name) + held[Spot{}][name] - lent[Spot{}][name] != units)
      return name + " does not add up";
  uint32_t starting = 0;
  for (const auto& [key, pool] : pools_) {
    starting += pool.starting;
    for (const auto& [since, number] : pool.idle)
      if (auto found = workers_.find(number);
          found == workers_.end() || found->second.state != WorkerState::kIdle)
        return "a worker in the idle list is not idle";
  }
  if (starting != starting_) return "starting workers do not add up";
  if (starting_ > options_.starting_max) return "too many workers start at once";
  if (workers_.size() > options_.workers_max) return "too many workers";
  std::map<EntryKey, uint32_t> leases_held;
  for (const auto& [number, lease] : leases_) ++leases_held[lease.entry];
  for (const auto& [key, entry] : entries_) {
    if (entry.held != leases_held[key]) return "an entry miscounts its leases";
    if ((entry.turn != 0) != (entry.wanted > entry.held)) return "an entry is queued wrongly";
  }
  for (const auto& [key, cls] : classes_)
    if (cls.queue.empty()) return "an empty class is kept";
  return "";
}

}  // namespace skate::node
