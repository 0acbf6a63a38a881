// The scheduler of one node: who gets which worker, for how long, and which workers to start and stop.
//
// Pure: events go in through the methods, time is an argument, decide() says what is to be done. The same
// class runs under the node daemon and in the simulator. It grants never more than there is (but for a
// blocked worker that resumes, which is over-subscribed until the books balance), and every queued shape
// is served within a bounded number of quanta as long as leases are returned when they are recalled.
// It does not: know processes, sockets, tasks or arguments. Single owner, no thread of its own.
#pragma once

#include <deque>
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

struct SchedulerOptions {
  Resources total;
  ResourceInstances instances;
  int64_t quantum_us = 10'000;         ///< a lease lasts this long while others wait
  int64_t starving_us = 100'000;       ///< then room is kept free for a shape that nothing fits into
  int64_t keep_room_us = 1'000'000;    ///< at most so long at a time, then others may use it as long
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
  enum class Why : uint8_t { kInfeasible, kStartFailed };
  ProcessNumber owner{};  ///< 0 when it is an actor
  uint64_t shape_id{};    ///< or the actor's number
  Why why{};
  std::string message;
  PoolKey pool;  ///< of kStartFailed
};

struct Decisions {
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
    Resources holds;
    bool blocked{};
  };
  std::vector<Holder> holders;
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
              uint64_t backlog, int64_t now_us);
  void lease_returned(ProcessNumber owner, LeaseNumber lease, bool worker_exits, int64_t now_us);
  void place_actor(uint64_t actor, const JobId& job, const Resources& placement, const Resources& running,
                   const std::string& runtime_env, const std::string& function, bool detached,
                   int64_t now_us);
  void cancel_actor(uint64_t actor);  ///< no effect once it is placed
  void actor_created(ProcessNumber worker);
  void worker_ready(ProcessNumber worker, int64_t now_us);
  void exit_declined(ProcessNumber worker, int64_t now_us);
  /// For every process, worker or driver: its demands, its leases and what it ran are gone.
  void process_died(ProcessNumber process, int64_t now_us);
  void blocked(ProcessNumber worker, bool is_blocked);

  Decisions decide(int64_t now_us);
  /// When decide() should be called again if no event comes.
  std::optional<int64_t> next_deadline(int64_t now_us) const;

  // Views.
  Resources available() const { return book_.available(); }
  const Resources& total() const { return book_.total(); }
  uint64_t queued() const;
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
    friend auto operator<=>(const ClassKey&, const ClassKey&) = default;
  };
  struct Class {
    ClassKey key;
    std::map<uint64_t, EntryKey> queue;  ///< by turn: those that want more than they hold
    int64_t waiting_since_us = -1;
    int64_t room_kept_until_us{};
    int64_t room_again_at_us{};
    bool feasible = true;
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
    bool refused{};
  };
  struct Lease {
    EntryKey entry;
    ClassKey class_key;
    std::string function;
    Resources running;
    ProcessNumber worker{};
    Allocation allocation;
    int64_t granted_us{};
    bool recalled{};
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
    int64_t retry_at_us{};
  };
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
  void match(int64_t now_us, Pass& pass, Decisions& out);
  bool serve(Class& cls, int64_t now_us, Pass& pass, Decisions& out);
  void recall(int64_t now_us, const Pass& pass, Decisions& out);
  bool may_recall_for(const Lease& lease, const EntryKey& waiter, const Entry& entry, Shares& shares) const;
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
  std::vector<StopWorker> stops_;
};

}  // namespace skate::node
