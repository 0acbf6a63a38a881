#include "node/scheduler/scheduler.h"

#include <algorithm>

#include "base/assert.h"

namespace skate::node {

struct Scheduler::Pass {
  Resources reserved;                  ///< set aside for the starving class and for workers that start
  std::map<PoolKey, uint32_t> wanted;  ///< workers that a grant waits for
  std::map<const Class*, uint32_t> waiting_for_worker;
  std::map<JobId, Resources> promised;  ///< counts as used when turns are decided
  std::set<const Class*> stuck;
  const Class* starving = nullptr;
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
                       int64_t now_us) {
  EntryKey key{owner, shape_id};
  auto [found, fresh] = entries_.try_emplace(key);
  Entry& entry = found->second;
  if (fresh) {
    entry.class_key = {job_id, priority, resources, PoolKey{job_id, runtime_env, job(job_id).language}};
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
                            const std::string& function, bool detached, int64_t now_us) {
  EntryKey key{0, actor};
  auto [found, fresh] = entries_.try_emplace(key);
  if (!fresh) return;
  Entry& entry = found->second;
  entry.class_key = {job_id, 0, placement, PoolKey{job_id, runtime_env, job(job_id).language}};
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
  Resources& used = job(lease.class_key.job).used;
  subtract_from(used, lease.allocation.amounts);
  book_.shrink(lease.allocation, lease.running);
  add_to(used, lease.allocation.amounts);
}

void Scheduler::worker_ready(ProcessNumber number, int64_t now_us) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kStarting) return;
  Pool& pool = pools_[worker->second.pool];
  --pool.starting;
  --starting_;
  pool.failures = 0;
  make_idle(number, worker->second, now_us);
}

void Scheduler::exit_declined(ProcessNumber number, int64_t now_us) {
  auto worker = workers_.find(number);
  if (worker == workers_.end() || worker->second.state != WorkerState::kStopping || worker->second.lease)
    return;
  make_idle(number, worker->second, now_us);
  worker->second.no_reap_before_us = now_us + options_.declined_us;
}

void Scheduler::process_died(ProcessNumber number, int64_t now_us) {
  if (auto worker = workers_.find(number); worker != workers_.end()) {
    Pool& pool = pools_[worker->second.pool];
    if (worker->second.state == WorkerState::kStarting) {
      --pool.starting;
      --starting_;
      ++pool.failures;
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
    book_.lend_cpu(lease.allocation);
  } else {
    book_.reclaim_cpu(lease.allocation);
  }
}

// --- state ----------------------------------------------------------------------------------------------

void Scheduler::enqueue(const EntryKey& key, Entry& entry, int64_t now_us) {
  if (entry.turn != 0) return;
  auto [cls, fresh] = classes_.try_emplace(entry.class_key);
  if (fresh) {
    cls->second.key = entry.class_key;
    cls->second.feasible = book_.feasible(entry.class_key.resources);
  }
  entry.turn = ++last_turn_;
  if (cls->second.queue.empty()) cls->second.waiting_since_us = now_us;
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
  subtract_from(job(lease.class_key.job).used, lease.allocation.amounts);
  book_.give_back(std::move(lease.allocation));
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
  out.stops = std::move(stops_);
  stops_.clear();
  if (pass.at_workers_max && !limit_reported_) out.workers_limit_reached = true;
  limit_reported_ = pass.at_workers_max;
  cpu_wanted_ = false;
  for (const auto& [key, cls] : classes_)
    if (cls.feasible && book_.lacking(key.resources).count("CPU")) cpu_wanted_ = true;
  return out;
}

void Scheduler::settle_refusals(int64_t, Decisions& out) {
  for (auto& [key, pool] : pools_) {
    if (pool.failures < options_.start_failures_max) continue;
    pool.failures = 0;  // a later demand tries again
    pool.prestart = 0;
    std::vector<EntryKey> refused;
    for (const auto& [class_key, cls] : classes_)
      if (class_key.pool == key)
        for (const auto& [turn, entry] : cls.queue) refused.push_back(entry);
    for (const EntryKey& entry_key : refused) {
      out.refusals.push_back({entry_key.owner, entry_key.shape, Refusal::Why::kStartFailed,
                              "a worker ended " + std::to_string(options_.start_failures_max) +
                                  " times in a row before it was ready",
                              key});
      Entry& entry = entries_.at(entry_key);
      dequeue(entry_key, entry);
      entry.wanted = entry.held;
      if (entry.held == 0) entries_.erase(entry_key);
    }
  }
  for (const auto& [class_key, cls] : classes_) {
    if (cls.feasible) continue;
    for (const auto& [turn, key] : cls.queue) {
      Entry& entry = entries_.at(key);
      if (std::exchange(entry.refused, true)) continue;
      Resources most;
      for (const auto& [name, units] : class_key.resources) {
        auto total = book_.total().find(name);
        most[name] = total == book_.total().end() ? 0 : total->second;
      }
      out.refusals.push_back({key.owner,
                              key.shape,
                              Refusal::Why::kInfeasible,
                              "'" + entry.function + "' asks for " + describe(class_key.resources) +
                                  "; of these the whole node has " + describe(most),
                              {}});
    }
  }
}

void Scheduler::match(int64_t now_us, Pass& pass, Decisions& out) {
  // Who starves is served first; until it can be, room is kept for it, for a bounded time.
  Class* starving = nullptr;
  for (auto& [key, cls] : classes_) {
    if (!cls.feasible || now_us - cls.waiting_since_us < options_.starving_us) continue;
    if (cls.room_kept_until_us != 0 && now_us >= cls.room_kept_until_us) {
      cls.room_kept_until_us = 0;
      cls.room_again_at_us = now_us + options_.keep_room_us;
    }
    if (now_us < cls.room_again_at_us) continue;
    if (starving == nullptr || cls.waiting_since_us < starving->waiting_since_us) starving = &cls;
  }
  if (starving != nullptr) {
    if (book_.fits(starving->key.resources)) {
      serve(*starving, now_us, pass, out);
    } else {
      // Only where leases that end can make the room; actors stay.
      Resources reachable = book_.available();
      for (const auto& [number, lease] : leases_)
        if (lease.entry.owner != 0) add_to(reachable, lease.allocation.amounts);
      bool reached = std::all_of(starving->key.resources.begin(), starving->key.resources.end(),
                                 [&](const auto& item) { return reachable[item.first] >= item.second; });
      if (reached) {
        if (starving->room_kept_until_us == 0) starving->room_kept_until_us = now_us + options_.keep_room_us;
        pass.starving = starving;
        add_to(pass.reserved, starving->key.resources);
      }
    }
  }
  while (true) {
    Class* next = nullptr;
    std::tuple<int64_t, int32_t, uint64_t> best;
    std::map<JobId, int64_t> shares;
    for (auto& [key, cls] : classes_) {
      if (!cls.feasible || &cls == pass.starving || pass.stuck.count(&cls)) continue;
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
  if (!book_.fits_beside(class_key.resources, pass.reserved)) return false;
  Pool& pool = pools_[class_key.pool];
  if (pool.idle.empty()) {
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
    add_to(pass.reserved, class_key.resources);
    add_to(pass.promised[class_key.job], class_key.resources);
    return true;
  }
  ProcessNumber worker_number = pool.idle.rbegin()->second;
  pool.idle.erase(std::prev(pool.idle.end()));
  Worker& worker = workers_.at(worker_number);

  EntryKey key = cls.queue.begin()->second;
  Entry& entry = entries_.at(key);
  Lease lease{key,           class_key,     entry.function,
              entry.running, worker_number, book_.take(class_key.resources),
              now_us,        false};
  ResourceInstances instances = lease.allocation.instances();
  add_to(job(class_key.job).used, lease.allocation.amounts);
  LeaseNumber number = ++last_lease_;
  worker.lease = number;
  worker.blocked = false;
  leases_.emplace(number, std::move(lease));

  cls.waiting_since_us = now_us;
  cls.room_kept_until_us = cls.room_again_at_us = 0;
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
    subtract_from(used[from.class_key.job], from.allocation.amounts);
    ++held[to];
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

void Scheduler::recall(int64_t now_us, const Pass& pass, Decisions& out) {
  Resources coming = book_.available();
  int64_t workers_coming = 0;
  Shares shares;
  for (const auto& [id, held_by] : jobs_) shares.used[id] = held_by.used;
  for (const auto& [number, lease] : leases_) {
    if (!lease.recalled) {
      ++shares.held[lease.entry];
      continue;
    }
    subtract_from(shares.used[lease.class_key.job], lease.allocation.amounts);
    Resources amounts = lease.allocation.amounts;
    if (lease.allocation.cpu_lent) amounts.erase("CPU");
    add_to(coming, amounts);
    ++workers_coming;
  }
  std::vector<std::tuple<int64_t, int32_t, uint64_t, const Class*>> order;
  for (const auto& [key, cls] : classes_)
    if (cls.feasible)
      order.emplace_back(book_.dominant_share(job(key.job).used), -key.priority, cls.queue.begin()->first,
                         &cls);
  std::sort(order.begin(), order.end());
  for (const auto& [share, priority, turn, cls] : order) {
    const Resources& need = cls->key.resources;
    bool waits_for_worker = book_.fits(need);
    if (waits_for_worker && !pass.at_workers_max) {
      subtract_from(coming, need);
      continue;
    }
    bool starves = now_us - cls->waiting_since_us >= options_.starving_us;
    bool served = true;
    for (auto item = cls->queue.begin(); served && item != cls->queue.end(); ++item) {
      const Entry& entry = entries_.at(item->second);
      for (uint32_t missing = entry.wanted - entry.held; served && missing > 0; --missing) {
        Resources lacks;
        for (const auto& [name, units] : need)
          if (auto have = coming.find(name); have == coming.end() || have->second < units)
            lacks[name] = units - (have == coming.end() ? 0 : std::max<int64_t>(0, have->second));
        bool lacks_worker = waits_for_worker && workers_coming <= 0;
        std::vector<LeaseNumber> victims;
        const Shares before = shares;
        for (auto& [number, lease] : leases_) {  // in the order in which they were granted
          if (lacks.empty() && !lacks_worker) break;
          if (lease.recalled || lease.entry.owner == 0 || now_us - lease.granted_us < options_.quantum_us)
            continue;
          Resources frees = lease.allocation.amounts;
          if (lease.allocation.cpu_lent) frees.erase("CPU");
          bool helps = lacks_worker || std::any_of(lacks.begin(), lacks.end(), [&](const auto& lack) {
                         return frees.count(lack.first) > 0;
                       });
          bool own = lease.entry == item->second;
          if (!helps || own) continue;
          if (!may_recall_for(lease, item->second, entry, shares) && !(starves && entry.held == 0)) continue;
          victims.push_back(number);
          shares.move(lease, item->second, cls->key);
          lacks_worker = false;
          for (const auto& [name, units] : frees)
            if (auto lack = lacks.find(name); lack != lacks.end() && (lack->second -= units) <= 0)
              lacks.erase(lack);
        }
        served = lacks.empty() && !lacks_worker;
        if (!served) {
          shares = before;
          break;
        }
        for (LeaseNumber number : victims) {
          Lease& lease = leases_.at(number);
          lease.recalled = true;
          Resources frees = lease.allocation.amounts;
          if (lease.allocation.cpu_lent) frees.erase("CPU");
          add_to(coming, frees);
          ++workers_coming;
          out.recalls.push_back({lease.entry.owner, number});
        }
        subtract_from(coming, need);
        if (waits_for_worker) --workers_coming;
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
      workers_[number] = Worker{key, WorkerState::kStarting, 0, false, false, now_us, 0};
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
  for (const auto& [key, cls] : classes_) {
    if (!cls.feasible) continue;
    waiting = true;
    at(cls.waiting_since_us + options_.starving_us);
    at(cls.room_kept_until_us);
    at(cls.room_again_at_us);
  }
  if (waiting)
    for (const auto& [number, lease] : leases_)
      if (!lease.recalled && lease.entry.owner != 0) at(lease.granted_us + options_.quantum_us);
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
    Resources lacks = book_.lacking(class_key.resources);
    if (lacks.empty()) continue;
    for (const auto& [turn, key] : cls.queue) {
      Wait wait{key.owner, key.shape, entries_.at(key).function, lacks, {}, cls.feasible};
      for (const auto& [number, lease] : leases_) {
        Resources holds;
        for (const auto& [name, units] : lacks)
          if (auto held = lease.allocation.amounts.find(name); held != lease.allocation.amounts.end())
            holds[name] = held->second;
        if (!holds.empty())
          wait.holders.push_back({lease.worker, lease.function, holds, workers_.at(lease.worker).blocked});
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
  return leases_.empty() && entries_.empty() && classes_.empty() && book_.is_whole();
}

std::string Scheduler::check() const {
  if (auto wrong = book_.check(); !wrong.empty()) return wrong;
  Resources held, lent;
  for (const auto& [number, lease] : leases_) {
    add_to(held, lease.allocation.amounts);
    lent["CPU"] += lease.allocation.cpu_lent;
    auto worker = workers_.find(lease.worker);
    if (worker == workers_.end() || worker->second.lease != number) return "a lease and its worker disagree";
  }
  for (const auto& [name, units] : book_.total())
    if (book_.free_of(name) + held[name] - lent[name] != units) return name + " does not add up";
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
