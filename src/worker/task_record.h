// What a submitter keeps of a task: the specification shared by all calls of one remote function, and the
// record of one call from submission to its end.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "wire/node_messages.h"
#include "wire/records.h"
#include "worker/ownership/object_table.h"

namespace skate::worker {

class Peer;
struct Lease;
struct Shape;
struct ActorClient;
struct TaskRecord;

/// A pickled function or class, exported to a peer at most once under its content hash.
struct Function {
  FunctionId id;
  uint32_t number = 0;  ///< this process's, in DefineFunction and PushTask
  std::string blob;
  std::string name;
};

struct TaskSpec {
  std::shared_ptr<const Function> function;  ///< null for a method of an actor
  std::string name;
  std::string method;
  std::string group;  ///< concurrency group of a method
  uint32_t num_returns = 1;
  wire::ReturnMode mode = wire::ReturnMode::kStatic;
  wire::LeaseShape shape;
  int64_t max_retries = 0;  ///< -1 without limit
  bool retry_exceptions = false;
  std::string retry_classes;  ///< of an actor's call: only these, pickled; empty: as its method says
  uint32_t max_calls = 0;
  int64_t backpressure = -1;
  mutable Shape* shape_queue = nullptr;  ///< found at the first submission
};

/// One argument as submitted. A ref is sent as its value once it is ready.
struct Argument {
  std::string keyword;
  BlobPtr value;         ///< flat value, or
  Entry* ref = nullptr;  ///< a ref whose value is meant
};

enum class TaskState : uint8_t { kWaiting, kQueued, kPushed, kDone };

/// Items of a streaming generator, in the order in which they were made.
struct Stream {
  std::deque<Entry*> items;  ///< arrived and not yet read; each pinned
  uint64_t arrived = 0;
  uint64_t consumed = 0;
  bool ended = false;
  uint64_t total = ~uint64_t{0};
  Entry* completed = nullptr;  ///< ready when the generator has ended; pinned
  bool abandoned = false;      ///< its consumer is gone
  std::vector<Waiter*> waiters;
  TaskRecord* task = nullptr;
};

struct TaskRecord {
  TaskId id;
  std::shared_ptr<const TaskSpec> spec;
  std::vector<Argument> arguments;
  std::vector<Entry*> pinned;  ///< all that the arguments hold
  std::vector<Entry*> returns;
  std::shared_ptr<Stream> stream;
  TaskId parent;
  uint32_t index = 0;  ///< in the task slab; with `generation` it makes the token
  uint32_t generation = 0;
  uint32_t dependencies = 0;  ///< arguments that are not ready
  int64_t retries_left = 0;
  uint16_t attempt = 0;
  TaskState state = TaskState::kWaiting;
  bool cancelled = false;
  bool holding = false;  ///< done, but pins stay until PinsReleased
  uint32_t claim = wire::kNoClaim;
  Lease* lease = nullptr;
  ActorClient* actor = nullptr;
  Peer* worker = nullptr;                     ///< where it was pushed to
  std::unique_ptr<wire::ActorSpec> creation;  ///< set: not a call, but an actor to be placed

  uint64_t token() const { return uint64_t{generation} << 32 | index; }
};

struct Lease {
  uint64_t id = 0;
  Shape* shape = nullptr;
  Peer* worker = nullptr;
  std::vector<TaskRecord*> in_flight;  ///< in push order
  bool recalled = false;
  bool worker_exits = false;
  int64_t idle_since_ns = 0;
  int64_t progress_ns = 0;  ///< of the last push to an idle worker or completion
};

/// Tasks that any lease of one kind can run.
struct Shape {
  uint64_t id = 0;
  wire::LeaseShape description;
  std::deque<TaskRecord*> queue;
  std::vector<Lease*> leases;
  uint32_t demand = 0;  ///< as last told to the daemon
  int64_t demand_changed_ns = 0;
  double run_ns = -1;  ///< moving average; below 0: nothing known yet
};

struct ActorClient {
  ActorId id;
  wire::ActorInfo info;
  Peer* peer = nullptr;
  bool known = false;  ///< control has told its state
  bool asked = false;
  bool registered = false;            ///< created here: registration is acknowledged
  std::deque<TaskRecord*> queue;      ///< not yet sent, in order
  std::deque<TaskRecord*> in_flight;  ///< sent to the current life, in order
  std::deque<TaskRecord*> orphans;    ///< sent to a life that ended, until control says what comes next
  wire::Death last_death;
  TaskRecord* creation = nullptr;  ///< keeps what the constructor's arguments hold
  uint64_t pending_calls() const { return queue.size() + in_flight.size(); }
};

}  // namespace skate::worker
