// SimProcess: a driver or a worker without its program and its threads: the real ObjectTable, and what
// Runtime does around it: tasks on leases, calls of actors, results, claims of what the dead owned, leaving
// in order. Its program is chance: it puts, submits, calls, reads, keeps and drops. Lives from its start
// until the daemon has noticed its end; what it says goes through SimObjects, never to another process
// directly.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "node/scheduler/scheduler.h"
#include "rt/task_group.h"
#include "wire/node_messages.h"
#include "worker/ownership/object_table.h"
#include "worker/peer.h"

namespace skate::sim {

using node::LeaseNumber;
using node::ProcessNumber;

/// A process's id tells its number.
wire::Address address_of(const NodeId& node, ProcessNumber process);
ProcessNumber number_of(const wire::Address& address);
/// Of the ids of its calls of actors.
uint64_t first_sequence(ProcessNumber process);

/// Shapes of tasks: in no placement group; and one for each group.
inline constexpr uint64_t kPlainShape = 1, kFirstGroupShape = 100;

using Ref = std::pair<ObjectId, wire::Address>;  // an object and its owner

struct Message {
  enum class Kind : uint8_t {
    // Between processes.
    kRegister,
    kRegistered,
    kRelease,
    kPinsReleased,
    kResultsTaken,
    kPush,
    kDone,
    kGet,
    kValue,
    // To the daemon: of objects,
    kOpen,       // a link with `who`
    kClaim,      // holds `ids` of `who`
    kLetGo,      // no longer holds `id`
    kHandOver,   // `objects`, the part `count`
    kAbandoned,  // a result that was stored for a dead owner
    // and of leases.
    kDemand,  // of the shape `token`: `count` leases for `backlog` tasks in `group`
    kLeaseReturn,
    kExitDeclined,
    // From the daemon.
    kDied,
    kClaimed,
    kHold,  // hold `id` for it
    kUnhold,
    kHandedOver,
    kGrant,  // of the worker `who`, for the shape `count`
    kRecall,
    kRefused,  // the shape `token`; for good if `gone`
    kExit,     // it is idle
  };
  Kind kind{};
  ObjectId id = {};
  uint64_t count = 0;
  uint64_t token = 0;  // of a task, a lease, a shape
  uint64_t backlog = 0;
  bool holds = false;
  bool gone = false;
  bool stored = false;
  bool exits = false;  // the worker does
  ProcessNumber who = 0;
  PlacementGroupId group = {};
  std::vector<ObjectId> ids = {};
  wire::ObjectsClaimed claimed = {};
  std::vector<wire::KeptObject> objects = {};
  std::vector<Ref> refs = {};  // inside arguments, inside the result, inside the object
};

class SimObjects;

class SimProcess final : public worker::OwnershipEffects {
 public:
  SimProcess(SimObjects& objects, ProcessNumber self, const JobId& job);

  /// What its program does.
  enum class Mood : uint8_t {
    kWorks,
    kFinishes,  ///< begins nothing new
    kDrops,     ///< and keeps nothing
  };
  void start(bool is_driver);
  /// Tasks that it shall submit; `done` counts those that are.
  void give_work(uint64_t shape, const PlacementGroupId& group, uint32_t tasks, uint32_t* done);
  /// What waits in the group fails, and what is to come.
  void group_gone(uint64_t shape);
  /// The end of the last handle to this actor of its shall end it.
  void made_actor(const ActorId& actor);
  void become_actor() { hosts_actor_ = true; }
  void stop() { program_.stop(); }
  void handle(ProcessNumber from, const Message& message);
  /// After each batch of whatever changed its state.
  void flush();

  const JobId& job() const { return job_; }
  worker::ObjectTable& table() { return table_; }
  bool owns(const ObjectId& id) const;
  uint32_t granted_to(const ObjectId& id, ProcessNumber process);
  bool has_dealt() const { return has_dealt_; }
  bool is_leaving() const { return leaving_ != Leaving::kNo; }
  /// Empty, or what it waits for; what it keeps.
  std::string waiting();
  std::string leftovers() const;

 private:
  using Entry = worker::Entry;
  using Peer = worker::Peer;
  enum class Leaving : uint8_t { kNo, kWanted, kOffered, kRefused, kMay };  // as in Runtime
  struct Task {                                                             // submitted
    ProcessNumber worker{};                                                 // 0: it waits for a lease
    uint64_t shape{};                                                       // 0: a call of an actor
    ObjectId result;
    std::vector<Entry*> pinned;
    uint64_t work_us{};
    bool holding{};  // done, but the worker keeps some of the arguments
  };
  struct Shape {
    PlacementGroupId group;
    uint32_t left{};  // to be submitted
    uint32_t* done{};
    std::deque<uint64_t> queue;
    uint32_t running{};
    bool gone{};
  };
  struct Lease {
    uint64_t shape{};
    ProcessNumber worker{};
    std::optional<uint64_t> task;
    bool recalled{};
    bool exits{};
  };
  struct Incoming {
    uint64_t number{};
    ProcessNumber from{};
    uint64_t token{};
    ObjectId result;
    std::vector<Entry*> locals;
    std::vector<Entry*> borrowed;
  };

  rt::Task<void> run();
  rt::Task<void> execute(uint64_t number, uint64_t work_us);
  bool act();
  void put();
  bool submit();
  bool call_actor();
  bool read_some();
  bool drop_some();
  bool drop_everything();
  void finish(Incoming task);
  void leave_step();
  rt::Task<void> leave();
  void handed_over(const Message& message);
  void stay();

  uint64_t below(uint64_t bound);
  Peer* peer(ProcessNumber number);
  Peer* peer(const wire::Address& address);  // null: this process
  ProcessNumber number(const Peer* peer) const { return number_of(peer->address); }
  Ref ref_of(const Entry* entry);
  std::vector<Ref> refs_of(const std::vector<Entry*>& entries);
  void send(Peer* to, Message message);
  std::vector<Entry*> pick_held(size_t most);
  void hold(Entry* entry);
  Entry* create(const TaskId& task);
  TaskId next_task();
  Entry* adopt(const Ref& ref);
  uint64_t make_task(uint64_t shape, const TaskId& id);
  void push(uint64_t token, ProcessNumber worker);
  void demand(uint64_t shape);
  void pump(LeaseNumber lease);
  void granted(const Message& message);
  void pushed(ProcessNumber from, const Message& message);
  void done(ProcessNumber from, const Message& message);
  void value(Peer* sender, const Message& message);
  void take_result(Entry* entry, const Message& message, ProcessNumber from, std::vector<Entry*>& foreign);
  void answer(Peer* to, Entry* entry);
  void resolve(Entry* entry, bool stored = false);
  void fail_task(uint64_t token);
  void end_task(uint64_t token);
  void died(ProcessNumber who);
  void claimed(const wire::ObjectsClaimed& answer);
  void send_claims();

  void register_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void release_ref(Peer* owner, const ObjectId& id, uint32_t count) override;
  void pins_released(Peer* to, uint64_t token) override;
  void results_taken(Peer* to, uint64_t token) override;
  void erase_stored(const ObjectId& id) override;
  void actor_out_of_scope(const ObjectId& handle) override;
  void object_gone(Entry& entry) override;

  SimObjects& objects_;
  const ProcessNumber self_;
  const wire::Address address_;
  const JobId job_;
  bool is_driver_ = false;
  bool hosts_actor_ = false;
  bool has_dealt_ = false;
  uint64_t calls_left_;  // then it leaves, as by max_calls
  Leaving leaving_ = Leaving::kNo;
  bool leaves_idle_ = false;
  uint64_t parts_ = 0;
  std::map<ProcessNumber, Peer> peers_;
  Peer daemon_;
  worker::ObjectTable table_{*this};
  std::vector<Entry*> held_;     // one handle each
  std::vector<Entry*> handles_;  // of actors that it made
  uint64_t sequence_ = 0;        // of tasks and puts
  uint64_t calls_ = 0;           // of actors
  uint64_t last_token_ = 0;
  uint64_t last_incoming_ = 0;
  std::map<uint64_t, Task> tasks_;
  std::map<uint64_t, Shape> shapes_;
  std::map<LeaseNumber, Lease> leases_;
  std::vector<Incoming> running_;
  std::map<std::pair<ProcessNumber, uint64_t>, std::vector<Entry*>> untaken_;
  std::map<ProcessNumber, std::vector<ObjectId>> claims_;  // of what the dead owned, until send_claims
  rt::TaskGroup program_;
};

}  // namespace skate::sim
