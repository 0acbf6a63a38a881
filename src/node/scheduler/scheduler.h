// The scheduler of one node: who gets which worker, for how long, and which workers to start and stop.
//
// Pure: events go in through the methods, time is an argument, decide() says what is to be done. The same
// class runs under the node daemon and in the simulator. It grants never more than there is (but for a
// blocked worker that resumes, which is over-subscribed until the books balance).
//
// Whose turn it is. By default the job that holds least goes first, in it the higher priority. Who starves,
// having got nothing for starving_us (no lease, and no task begun on one that it has), comes before all
// others, the longest wait first, whatever it asks for:
// - What it lacks is recalled: idle leases first, then those whose task began last, whoever holds them; a
//   recall unanswered is counted on for a bounded time, then all are recalled. A lease comes back when its
//   task ends.
// - What comes back is kept: nothing passes but what fits beside. It is served when the tasks have ended that
//   ran when its turn came.
// - If these take longer than keep_room_us, or than it had waited before where that is longer, others use the
//   room until so many of these have ended that only who passed is in the way; then room is kept again. With
//   each round the time doubles: it is served within four times the longest task, log2(longest task /
//   keep_room_us) + 1 rounds pass it at most, and a task that never ends makes nobody else wait.
// - What no end of a task can bring (an actor holds it) is not waited for, and hides nobody who waits.
//
// Placement groups: a reservation takes all bundles of a group that belong to this node, or none, as soon as
// they fit; what runs in a group takes from its bundle and never from the rest of the node.
// It does not: know processes, sockets, tasks or arguments. Single owner, no thread of its own.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "base/ids.h"
#include "node/scheduler/resource_book.h"

namespace skate::node {

/// A process of this node: a driver, or a worker (then it is also the start token). Never 0, never reused.
using ProcessNumber = uint64_t;
using LeaseNumber = uint64_t;

/// Workers are interchangeable exactly within one pool.
struct PoolKey {
  JobId job;
  std::string runtime_env;
  std::string language;
  friend auto operator<=>(const PoolKey&, const PoolKey&) = default;
};

/// Where a demand takes its resources from.
struct Place {
  PlacementGroupId group;  ///< nil: what no group has reserved
  int32_t bundle = -1;     ///< of the group; -1: any
  std::string barred;      ///< not empty: why it may not run on this node; it waits for another one
  friend auto operator<=>(const Place&, const Place&) = default;
};

/// By index within the group.
using Bundles = std::map<int32_t, Resources>;

struct SchedulerOptions {
  Resources total;
  ResourceInstances instances;
  int64_t quantum_us = 10'000;         ///< a lease lasts this long while others wait and it is used
  int64_t idle_lease_us = 200;         ///< who pauses for less between two tasks uses his lease
  int64_t recall_answer_us = 20'000;   ///< then others are recalled instead
  int64_t starving_us = 100'000;       ///< who got nothing for so long comes before all others
  int64_t keep_room_us = 1'000'000;    ///< for so long at least room is kept for him
  int64_t idle_worker_us = 1'000'000;  ///< a surplus idle worker is stopped after this
  int64_t declined_us = 10'000'000;    ///< one that declined is asked again after this
  uint32_t idle_workers_kept = 1;      ///< in all; by default as many as there are CPUs
  uint32_t starting_max = 4;           ///< workers that start at one time
  uint32_t workers_max = 1000;         ///< in all, actors included; from memory
  uint32_t start_failures_max = 3;     ///< in a row, then the shapes of that pool are refused
  int64_t start_retry_us = 100'000;    ///< after a failed start, times the failures in a row
};

struct Grant {
  ProcessNumber owner{};
  uint64_t shape_id{};
  LeaseNumber lease{};
  ProcessNumber worker{};
  ResourceInstances instances;
};
struct ActorPlacement {
  uint64_t actor{};  ///< the number given to place_actor()
  LeaseNumber lease{};
  ProcessNumber worker{};
  ResourceInstances instances;
};
struct Recall {
  ProcessNumber owner{};
  LeaseNumber lease{};
};
struct StartWorker {
  ProcessNumber worker{};
  PoolKey pool;
};
struct StopWorker {
  enum class Why : uint8_t { kIdle, kOwnerDied, kJobFinished };
  ProcessNumber worker{};
  Why why{};
};
struct Refusal {
  enum class Why : uint8_t {
    kInfeasible,      ///< stays queued
    kStartFailed,     ///< of a worker; dropped
    kBundleTooSmall,  ///< its bundle can never hold it; dropped
    kGroupRemoved,    ///< dropped
  };
  ProcessNumber owner{};  ///< 0 when it is an actor
  uint64_t shape_id{};    ///< or the actor's number
  Why why{};
  std::string message;
  PoolKey pool;  ///< of kStartFailed
};

/// The bundles of a reservation are taken; or (not ok) there is no room, and it was not to wait.
struct Reserved {
  PlacementGroupId group;
  uint64_t attempt{};
  bool ok = true;
};
/// Runs in a group that is given up: its worker must be killed.
struct Eviction {
  ProcessNumber worker{};
  PlacementGroupId group;
  std::string why;
};

struct Decisions {
  std::vector<Reserved> reserved;
  std::vector<Eviction> evictions;
  std::vector<Grant> grants;
  std::vector<ActorPlacement> placements;
  std::vector<Recall> recalls;
  std::vector<StartWorker> starts;
  std::vector<StopWorker> stops;
  std::vector<Refusal> refusals;
  bool workers_limit_reached{};  ///< set once each time the limit begins to hold somebody back
};

/// One who waits, what it lacks, and who holds that.
struct Wait {
  ProcessNumber owner{};
  uint64_t shape_id{};
  std::string function;
  Resources lacks;
  struct Holder {
    ProcessNumber worker{};
    std::string function;
    Resources holds;  ///< of what is lacked
    bool blocked{};
  };
  std::vector<Holder> holders;  ///< without idle leases
  /// It cannot end by itself: each holder of what it lacks waits, too, for something that is held likewise.
  bool deadlock{};
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // Events. What names an unknown process, lease or shape is late or repeated, and is ignored.
  ProcessNumber new_process();
  void start_job(const JobId& job, std::string language, uint32_t prestart);
  /// Stops its workers, but for detached actors and what works for them.
  void finish_job(const JobId& job);
  void demand(ProcessNumber owner, uint64_t shape_id, const JobId& job, const Resources& resources,
              const std::string& runtime_env, const std::string& function, int32_t priority, uint32_t wanted,
              uint64_t backlog, int64_t now_us, const Place& place = {});
  void lease_returned(ProcessNumber owner, LeaseNumber lease, bool worker_exits, int64_t now_us);
  void place_actor(uint64_t actor, const JobId& job, const Resources& placement, const Resources& running,
                   const std::string& runtime_env, const std::string& function, bool detached, int64_t now_us,
                   const Place& place = {});
  void cancel_actor(uint64_t actor);  ///< no effect once it is placed
  void actor_created(ProcessNumber worker);
  void worker_ready(ProcessNumber worker, int64_t now_us);
  void exit_declined(ProcessNumber worker, int64_t now_us);
  /// It started, but hangs in its set-up, and is about to be ended: one such is enough, for each costs long.
  void worker_hung(ProcessNumber worker);
  /// For every process, worker or driver: its demands, its leases and what it ran are gone.
  void process_died(ProcessNumber process, int64_t now_us);
  void blocked(ProcessNumber worker, bool is_blocked);
  /// When the task that `worker` runs began or, negative, when its last one ended; 0: it has run none.
  void works(ProcessNumber worker, int64_t work_us);

  /// Queues a reservation; Decisions::reserved tells when it is made. The same attempt again changes nothing
  /// (and is told again if it was made); a later one replaces the earlier, an earlier one is late.
  void reserve(const PlacementGroupId& group, uint64_t attempt, Bundles bundles, int64_t now_us,
               bool waits = true);
  /// From now on demands of the group are served.
  void commit(const PlacementGroupId& group, uint64_t attempt);
  /// Takes the reservation back, up to `attempt`: what runs in it is evicted; what waits for it waits on.
  void unreserve(const PlacementGroupId& group, uint64_t attempt, const std::string& why);
  /// The group is gone for good: as unreserve(), and what waits for it is refused.
  void end_group(const PlacementGroupId& group, const std::string& why);

  Decisions decide(int64_t now_us);
  /// When decide() should be called again if no event comes.
  std::optional<int64_t> next_deadline(int64_t now_us) const;

  // Views.
  Resources available() const { return available_at({}); }  ///< all on which no task or actor runs
  const Resources& total() const { return book_.total(); }
  uint64_t queued() const;
  /// Bundles that are made, by Ray's names (CPU_group_0_<id>, CPU_group_<id>, bundle_group_<id> ...).
  Resources bundle_resources(bool available) const;
  struct Holding {
    PlacementGroupId group;
    uint64_t attempt{};
  };
  std::vector<Holding> holdings() const;           ///< reservations made or queued
  bool cpu_wanted() const { return cpu_wanted_; }  ///< as of the last decide()
  size_t worker_count() const { return workers_.size(); }
  std::vector<ProcessNumber> leased_workers() const;  ///< actors' included
  std::vector<Wait> waits() const;
  std::optional<std::pair<ProcessNumber, LeaseNumber>> lease_of(ProcessNumber worker) const;
  ProcessNumber worker_of(LeaseNumber lease) const;  ///< 0: no such lease
  bool is_idle() const;                              ///< no lease, no demand, no actor: the books are whole
  std::string check() const;                         ///< empty, or which invariant does not hold; for tests

 private:
  enum class WorkerState : uint8_t { kStarting, kIdle, kLeased, kActor, kStopping };
  struct Worker {
    PoolKey pool;
    WorkerState state{};
    LeaseNumber lease{};
    bool blocked{};
    bool detached{};
    bool hung{};
    int64_t since_us{};
    int64_t no_reap_before_us{};
  };
  struct EntryKey {
    ProcessNumber owner{};  ///< 0: an actor, and `shape` is its number
    uint64_t shape{};
    friend auto operator<=>(const EntryKey&, const EntryKey&) = default;
  };
  /// Entries that the same free resources and the same workers satisfy.
  struct ClassKey {
    JobId job;
    int32_t priority{};
    Resources resources;
    PoolKey pool;
    Place place;
    friend auto operator<=>(const ClassKey&, const ClassKey&) = default;
  };
  /// What is kept free for somebody who starves.
  struct Room {
    int64_t kept_until_us{};  ///< 0: it is not
    LeaseNumber outlasted{};  ///< up to this one, leases lasted longer than it was kept: they must end first
  };
  struct Class : Room {
    ClassKey key;
    std::map<uint64_t, EntryKey> queue;  ///< by turn: those that want more than they hold
    bool feasible = true;                ///< can be served once leases end
  };
  /// One pool of resources: what no group has reserved (nil), or one bundle.
  struct Spot {
    PlacementGroupId group;
    int32_t bundle = -1;
    uint64_t attempt{};  ///< a bundle that closes may have a successor
    friend auto operator<=>(const Spot&, const Spot&) = default;
  };
  struct Bundle {
    Allocation reserved;
    ResourceBook book;
    uint32_t leases{};
    bool closing{};  ///< given back when the last lease ends
  };
  struct Group : Room {
    int64_t waiting_since_us{};
    uint64_t attempt{};
    Bundles wanted;  ///< until they are reserved
    Resources sum;   ///< of all bundles
    bool reserved{};
    bool committed{};
    bool told{};  ///< Decisions::reserved
    bool waits = true;
  };
  struct Entry {
    ClassKey class_key;
    std::string function;
    Resources running;  ///< of an actor
    bool detached{};
    uint32_t wanted{};
    uint32_t held{};
    uint64_t backlog{};
    uint64_t turn{};  ///< place in its class's queue, 0 when not queued
    /// It queued, got or returned a lease, or one of its leases began a task; none of these since.
    int64_t waiting_since_us{};
    bool refused{};
  };
  struct Lease {
    EntryKey entry;
    ClassKey class_key;
    std::string function;
    Resources running;
    ProcessNumber worker{};
    Spot spot;
    Allocation allocation;
    int64_t granted_us{};
    int64_t recalled_us = -1;  ///< -1: it is not
    int64_t begun_us{};        ///< of its task, or of its last one
    int64_t idle_since_us{};   ///< 0: it runs a task, or has run none yet
    bool at_work{};            ///< it runs a task, or is an actor's
  };
  struct Job {
    std::string language = "python";
    bool finished{};
    Resources used;
  };
  struct Pool {
    std::set<std::pair<int64_t, ProcessNumber>> idle;  ///< by idle time; the latest is the warmest
    uint32_t starting{};
    uint32_t prestart{};
    uint32_t failures{};
    bool hung{};
    int64_t retry_at_us{};
  };
  struct Waiter {
    int64_t since_us{};
    Class* cls{};    ///< or
    Group* group{};  ///< with this
    PlacementGroupId id;
  };
  static Resources to_come(const Lease& lease);
  Resources available_at(const Spot& spot) const;
  std::string check_available(const Spot& spot) const;
  struct Pass;    ///< what one decide() keeps
  struct Shares;  ///< what everybody will hold once the recalls so far are answered

  Job& job(const JobId& id) { return jobs_[id]; }
  void enqueue(const EntryKey& key, Entry& entry, int64_t now_us);
  void dequeue(const EntryKey& key, Entry& entry);
  void drop_entry(const EntryKey& key);
  void end_lease(LeaseNumber number);
  void make_idle(ProcessNumber number, Worker& worker, int64_t now_us);
  void stop(ProcessNumber number, StopWorker::Why why);
  void settle_refusals(int64_t now_us, Decisions& out);
  void refuse(const std::vector<EntryKey>& keys, Refusal::Why why, const std::string& message,
              const PoolKey& pool);
  std::string why_infeasible(const ClassKey& key, const Entry& entry) const;
  ResourceBook& book_at(const Spot& spot);
  const ResourceBook& book_at(const Spot& spot) const { return const_cast<Scheduler*>(this)->book_at(spot); }
  /// Where demands of this place may be served now; empty: nowhere (yet).
  std::vector<Spot> spots_of(const Place& place) const;
  bool is_feasible(const ClassKey& key) const;
  void review_classes(const PlacementGroupId& group);
  static bool has_room(ResourceBook book, const Bundles& bundles);
  bool try_reserve(const PlacementGroupId& id, Group& group);
  bool reserve_beside(const PlacementGroupId& id, Group& group, Pass& pass);
  void reserve_waiting(Pass& pass, Decisions& out);
  void close_bundles(const PlacementGroupId& id, Group& group, const std::string& why);
  void account(const Lease& lease, bool held);
  std::vector<Waiter> starving(int64_t now_us);
  int64_t waiting_since_us(const Class& cls) const;
  void keep_room(const Waiter& waiter, int64_t now_us, Pass& pass);
  void match(int64_t now_us, Pass& pass, Decisions& out);
  bool serve(Class& cls, int64_t now_us, Pass& pass, Decisions& out);
  void recall(int64_t now_us, const Pass& pass, Decisions& out);
  bool is_unused(const Lease& lease, int64_t now_us) const;
  bool is_recallable(const Lease& lease, int64_t now_us) const;
  bool is_overdue(const Lease& lease, int64_t now_us) const;
  bool may_recall_for(const Lease& lease, const EntryKey& waiter, const Entry& entry, Shares& shares) const;
  std::vector<Lease*> recallable(const Spot& spot, Resources lacks, bool lacks_worker, int64_t now_us,
                                 bool all, bool some, const std::function<bool(const Lease&)>& may);
  void start_workers(int64_t now_us, Pass& pass, Decisions& out);
  void reap(int64_t now_us, Decisions& out);

  SchedulerOptions options_;
  ResourceBook book_;
  ProcessNumber last_process_{};
  LeaseNumber last_lease_{};
  uint64_t last_turn_{};
  uint32_t starting_{};
  bool cpu_wanted_{};
  bool limit_reported_{};
  std::map<JobId, Job> jobs_;
  std::map<PoolKey, Pool> pools_;
  std::map<ProcessNumber, Worker> workers_;
  std::map<EntryKey, Entry> entries_;
  std::map<ClassKey, Class> classes_;
  std::map<LeaseNumber, Lease> leases_;
  std::map<PlacementGroupId, Group> groups_;
  std::map<Spot, Bundle> bundles_;
  std::vector<StopWorker> stops_;
  std::vector<Eviction> evictions_;
  std::vector<Refusal> refusals_;
};

}  // namespace skate::node
